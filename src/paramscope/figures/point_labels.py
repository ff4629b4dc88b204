"""Labels beside points that overlap neither each other nor what is drawn."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from paramscope.figures.style import GREY, SMALL

AWAY = (5.0, 9.0, 14.0, 20.0, 27.0, 35.0, 45.0, 57.0, 72.0, 90.0)  # pt, from point to label
ANGLES = np.deg2rad(np.arange(0, 360, 15))
NEAR = 7.0  # pt: a label nearer than this needs no line to its point
MARK = 4.0  # pt: half of what a point takes up
APART = 1.5  # pt between two labels
ROUNDS = 4  # in which each label is placed anew among the others
THIN = np.array([-1.0, -1.0, 1.0, 1.0])  # pt added around what is drawn, such as a line
CLASH = 1e3  # what an overlap costs in pt of distance
CROSSED = 60.0  # what a line through a label or point costs

Pairs = NDArray[np.float64]  # [n, 2]: x and y, or width and height
Boxes = NDArray[np.float64]  # [n, 4]: left, bottom, right, top


def label_points(
    figure: Figure,
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    *,
    taken: Sequence[tuple[float, float, float, float]] = (),
) -> None:
    """Write each name near its point (x, y), with a line to it where it stands further off.

    Lays the figure out, so call it last. Labels keep within the axes, off the points, off
    `taken` and apart from each other where there is room for that. Annotations have the gid
    `label NAME`.

    Args:
        taken: lines or boxes to keep clear of: left, bottom, right, top in data coordinates.
    """
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    texts = [
        axes.annotate(name, (px, py), (0, 0), textcoords="offset points", ha="center",
                      va="center", fontsize=SMALL, gid=f"label {name}", zorder=6)
        for px, py, name in zip(x, y, names, strict=True)
    ]  # fmt: skip
    extents = [text.get_window_extent() for text in texts]
    sizes = np.array([[box.width, box.height] for box in extents]).reshape(-1, 2) * scale
    points = axes.transData.transform(np.column_stack([x, y])) * scale
    corners = np.array(taken, dtype=float).reshape(-1, 4)
    others = np.hstack(
        [axes.transData.transform(corners[:, :2]), axes.transData.transform(corners[:, 2:])]
    )
    around = axes.get_window_extent()
    frame = np.array([around.x0, around.y0, around.x1, around.y1]) * scale
    offsets = place(points, sizes, frame, others * scale)
    for text, offset, size, point in zip(texts, offsets, sizes, points, strict=True):
        text.set_position(tuple(offset))
        end = np.clip(0.0, offset - size / 2, offset + size / 2)
        if np.hypot(*end) > NEAR:
            line: dict[str, Any] = {"color": GREY, "linewidth": 0.5, "zorder": 2.5}
            start, stop = axes.transData.inverted().transform(
                [point / scale, (point + end) / scale]
            )
            axes.plot([start[0], stop[0]], [start[1], stop[1]], gid="leader", **line)


def place(points: Pairs, sizes: Pairs, frame: NDArray[np.float64], taken: Boxes) -> Pairs:
    """Offsets [n, 2] of labels' centres from their points, all in one unit.

    Each label in turn takes the place that costs least among the others', for a few rounds:
    cost is the distance, and far more for what it would lie on or its line would cross.

    Args:
        points: [n, 2].
        sizes: [n, 2], width and height of each label.
        frame: left, bottom, right, top of where labels may stand.
        taken: boxes [m, 4] to keep clear of, besides the points.
    """
    marks = np.hstack([points - MARK, points + MARK])
    obstacles = np.vstack([marks, taken + THIN])
    candidates = [_candidates(size) for size in sizes]
    offsets = np.array([ways[0] for ways in candidates]).reshape(-1, 2)
    crowd = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)).sum(axis=1)
    placed = np.zeros(len(points), dtype=bool)
    for _, index in product(range(ROUNDS), np.argsort(crowd, kind="stable")):
        rest = placed & (np.arange(len(points)) != index)
        labels = _boxes(points[rest] + offsets[rest], sizes[rest] + APART)
        centres = points[index] + candidates[index]
        boxes = _boxes(centres, sizes[index])
        ends = np.clip(points[index], boxes[:, :2], boxes[:, 2:])
        length = np.hypot(*(ends - points[index]).T)
        outside = (boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1)
        cost = length + 2 * CLASH * outside + CLASH * _overlaps(boxes, labels)
        cost += CLASH * _overlaps(boxes, obstacles)
        crossable = np.vstack([labels, np.delete(marks, index, axis=0)])
        cost += CROSSED * _crossings(points[index], ends, crossable)
        offsets[index] = candidates[index][int(np.argmin(cost))]
        placed[index] = True
    return offsets


def _candidates(size: NDArray[np.float64]) -> Pairs:
    """Offsets of a label's centre: its edge at each distance, in each direction, right first."""
    ways = []
    for away, angle in product(AWAY, ANGLES):
        direction = np.array([np.cos(angle), np.sin(angle)])
        ways.append(direction * (away + size / 2))
    return np.array(ways)


def _boxes(centres: Pairs, sizes: Pairs) -> Boxes:
    return np.hstack([centres - sizes / 2, centres + sizes / 2])


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.int64]:
    """How many of `others` each box overlaps."""
    a, b = boxes[:, None], others[None]
    apart = (a[..., :2] >= b[..., 2:]).any(axis=-1) | (a[..., 2:] <= b[..., :2]).any(axis=-1)
    number: NDArray[np.int64] = np.sum(~apart, axis=1)
    return number


def _crossings(start: NDArray[np.float64], ends: Pairs, boxes: Boxes) -> NDArray[np.int64]:
    """How many of `boxes` the straight line from `start` to each end goes through."""
    along = np.linspace(0.1, 1.0, 24)[:, None, None]
    path = start + along * (ends - start)[None]  # [24, n, 2]
    inside = (path[:, :, None] > boxes[None, None, :, :2]) & (
        path[:, :, None] < boxes[None, None, :, 2:]
    )
    number: NDArray[np.int64] = np.sum(inside.all(axis=-1).any(axis=0), axis=1)
    return number
