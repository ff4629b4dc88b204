"""What figures of DP-SGD's cost share: looks of methods and of memory's parts, and notes."""

import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.patches import Patch

from paramscope.artifacts.profiles import Profile, of_workload, variant_told
from paramscope.errors import ArtifactError
from paramscope.figures.style import INK
from paramscope.names import DPSGD_PARTS

# Okabe and Ito's palette (jfly.uni-koeln.de/color), a dark and a light grey; neighbours in a
# stack differ in lightness, and every second part is hatched, so that print in grey tells them.
PART_LOOKS = {
    "parameters": ("#30363F", ""),
    "gradients": ("#56B4E9", "////"),
    "optimizer states": ("#0072B2", ""),
    "saved activations": ("#8FD3BC", "\\\\\\\\"),
    "norm samples": ("#332288", ""),
    "temporary matrices": ("#E69F00", "xxxx"),
    "logits and loss": ("#CC5F2E", ""),
    "other": ("#D9D9D9", "...."),
}
METHOD_LOOKS = {
    "vanilla": (INK, "*"),
    "opacus_hooks": ("#CC79A7", "s"),
    "opacus_ghost": ("#D55E00", "D"),
    "ghost": ("#E69F00", "^"),
    "flash": ("#56B4E9", "v"),
    "bk": ("#0072B2", "o"),
    "per_layer": ("#332288", "P"),
    "micro": ("#009E73", "X"),
}
OTHERS = ("#777777", "h")  # a method that is not known here
REASON = 150  # characters of a refusal's reason at most
NOTE_WIDTH = 118  # characters of a note that fit a figure of style.DOUBLE's width
PREDICTED: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.9, "linestyle": (0, (2.5, 1.5))}


def drawable(profiles: Iterable[Profile], workload: str) -> tuple[list[Profile], list[Profile]]:
    """The profiles that hold a measurement, in the order they are drawn, and those refused.

    Raises:
        ArtifactError: as `of_workload`, or all were refused.
    """
    found = of_workload(profiles, workload)
    shown = [profile for profile in found if not profile["refused"]]
    refused = [profile for profile in found if profile["refused"]]
    if not shown:
        raise ArtifactError(f"nothing to draw, all was refused: {'; '.join(refusals(refused))}")
    return shown, refused


def refusals(refused: Iterable[Profile]) -> list[str]:
    """`Opacus ghost refused: reason`, a line each, the reason shortened."""
    return [f"{variant_told(p['variant'])} refused: {shortened(p['refused'])}" for p in refused]


def shortened(text: str, most: int = REASON) -> str:
    """The first line of a text, cut between words and ended with … past `most` characters."""
    line = text.strip().partition("\n")[0]
    return textwrap.shorten(line, most, placeholder=" …") if len(line) > most else line


def wrapped(notes: Iterable[str]) -> str:
    """Notes, each on lines of its own of `NOTE_WIDTH` characters at most."""
    return "\n".join(line for text in notes for line in textwrap.wrap(text, NOTE_WIDTH))


def part_style(part: str) -> dict[str, Any]:
    """Keywords of an area or bar of one part of memory."""
    colour, hatch = PART_LOOKS[part]
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}


def part_handles(profiles: Iterable[Profile]) -> list[Patch]:
    """A legend's handles of the parts that any profile holds bytes of at its peak or before."""
    held = {
        part
        for profile in profiles
        for part, n_bytes in profile["breakdown"].items()
        if n_bytes or any(profile["timeline"]["by_part"].get(part, ()))
    }
    return [Patch(label=part, **part_style(part)) for part in DPSGD_PARTS if part in held]


def method_style(method: str, *, hollow: bool) -> dict[str, Any]:
    """Keywords of a method's marker, hollow for a method with options."""
    colour, marker = METHOD_LOOKS.get(method, OTHERS)
    return {
        "color": colour,
        "marker": marker,
        "markersize": 7.5 if marker == "*" else 5,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.0,
        "linestyle": "none",
    }
