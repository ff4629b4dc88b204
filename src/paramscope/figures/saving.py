"""Saving a figure as PNG and PDF with its provenance, and reading that back."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.provenance import Provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table_provenance
from paramscope.errors import ArtifactError
from paramscope.figures.style import DPI, in_style

KEY = "paramscope"
WATERMARK = "synthetic"


def save(figure: Figure, path: Path, made_by: Provenance) -> None:
    """Write `figure` to `path` (PNG, 200 dpi) and beside it as PDF, whole or not at all.

    Both carry the provenance, whose content digest is over the PNG's pixels: the PNG under
    the text key `paramscope`, the PDF as its keywords. Equal figures give equal bytes. A
    figure of synthetic data is watermarked here, so that none can be saved without.
    """
    with in_style():
        if made_by.synthetic:
            watermark(figure)
        pixels = _draw(figure)
        figure.set_layout_engine("none")  # the PDF keeps the PNG's layout
        described = made_by.to_json(_digest(pixels))
        with atomic(path) as png, atomic(path.with_suffix(".pdf")) as pdf:
            text = PngImagePlugin.PngInfo()
            text.add_text(KEY, described)
            Image.fromarray(pixels).save(png, "png", pnginfo=text, dpi=(DPI, DPI))
            figure.savefig(
                pdf,
                format="pdf",
                dpi=DPI,  # of what is rasterised in it
                metadata={
                    "Title": path.stem,
                    "Subject": f"{KEY} figure, provenance in the keywords",
                    "Keywords": described,
                    "CreationDate": None,
                },
            )


def _draw(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    FigureCanvasBase(figure)  # takes the drawn canvas' place, whose buffers can go
    return pixels


def watermark(figure: Figure) -> None:
    """Write `synthetic` across the figure and into its title, once."""
    if any(text.get_gid() == WATERMARK for text in figure.texts):
        return
    figure.text(
        0.5,
        0.48,
        WATERMARK,
        gid=WATERMARK,
        rotation=30,
        ha="center",
        va="center",
        fontsize=11 * figure.get_figwidth(),
        color="#808080",
        alpha=0.16,
        zorder=100,
        in_layout=False,
    )
    figure.suptitle(
        f"{figure.get_suptitle()}\nSynthetic data: planted units, not a language model's",
        x=0.01,
        ha="left",
        linespacing=1.4,
    )


def read_figure_provenance(path: Path) -> dict[str, Any]:
    """The provenance in a PNG that `save` wrote, its pixels checked against their digest.

    Raises:
        ArtifactError: no such file, not one of ours, or pixels that are not what was saved.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such figure; run the rule that makes it")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
            described = json.loads(image.info[KEY])
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise ArtifactError(f"{path}: not a figure of paramscope: {error!r}") from error
    if _digest(pixels) != described["content_digest"]:
        raise ArtifactError(f"{path}: pixels differ from what was saved; remove it and redraw it")
    return dict(described)


def any_synthetic(paths: Iterable[Path]) -> bool:
    """Whether any of these tables (Parquet) or records (JSON) came from a planted model."""
    described = (
        read_record(path)["provenance"] if path.suffix == ".json" else read_table_provenance(path)
        for path in paths
    )
    return any(provenance["synthetic"] for provenance in described)


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
