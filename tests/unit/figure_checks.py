"""What every figure is checked for, and how its artists and its command's files are had."""

import os
import subprocess
import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from paramscope.artifacts.digest import imported_modules
from paramscope.figures.saving import watermark
from paramscope.figures.style import SMALL, in_style

DRAW = """
import sys
from importlib import import_module
import typer
for name, line in {lines!r}.items():
    app = typer.Typer()
    app.command()(getattr(import_module(f"paramscope.cli.{{name}}"), name))
    sys.argv = ["paramscope", name, *line]
    app(line, standalone_mode=False)
    if name in {peaks!r} and sys.platform == "linux":
        peak_kb = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
        assert peak_kb <= {peaks!r}[name], peak_kb
assert not {{"torch", "umap", "sklearn", "matplotlib.pyplot"}} & set(sys.modules)
"""


def draw_by_commands(folder, lines, *, hash_seed="0", peaks=None):
    """Draw figures by their commands, of `lines` by name, in one process of its own.

    Any laptop draws them: no torch, umap or scikit-learn is loaded, and after a figure that
    `peaks` names the process has held no more than so many KiB.
    """
    command = [sys.executable, "-c", DRAW.format(lines=lines, peaks=peaks or {})]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run(command, check=True, cwd=folder, env=environment)


def laid_out(figures):
    """The figures with the watermark of synthetic data, and all texts at their places."""
    with in_style():
        for figure in figures.values():
            watermark(figure)
            figure.draw_without_rendering()
    return figures


def check_imports(name, figures, packages):
    """Figure `name` hangs on no other of `figures`, and on no package beside `packages`."""
    modules = imported_modules(f"figures.{name}")
    assert {module.split(".")[1] for module in modules if "." in module} <= packages
    drawn = {f"paramscope.figures.{figure}" for figure in figures} & modules
    assert drawn == {f"paramscope.figures.{name}"}


def with_gid(axes, gid):
    """All artists of an axes that have one name."""
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def texts(figure):
    """All that a figure says, text by text."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def said(figure):
    """All that a figure says, as one text."""
    return "\n".join(texts(figure))


def visible_texts(figure):
    """All texts that are drawn; of tick labels those within their axis' view."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = set(axis._update_ticks()) if axes.axison else set()
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if tick not in shown:
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in dict.fromkeys(figure.findobj(Text))
        if text not in hidden
        and text.get_text().strip()
        and text.get_visible()
        and text.get_in_layout()
    ]


def check_type(figure, least=1):
    """Of a laid out figure: `least` texts or more, none small, none cut, no two over each other."""
    canvas = FigureCanvasAgg(figure)
    width, height = canvas.get_width_height()
    boxes = []
    for text in visible_texts(figure):
        assert text.get_fontsize() >= SMALL, text
        box = text.get_window_extent(canvas.get_renderer())
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
        inner = box.padded(-1)  # a pixel of descent is no overlap
        for other, beside in boxes:
            assert not inner.overlaps(other), (text, beside)
        boxes.append((inner, text))
    assert len(boxes) >= least, len(boxes)
