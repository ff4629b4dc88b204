"""A plan as a document: what was asked, what each strategy takes, and what to take on a device."""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from paramscope.artifacts.plans import (
    CHANGED,
    CLOSED_FORM,
    TASKS,
    checked,
    recommended,
    taken_bytes,
)
from paramscope.planner.known_devices import MARGINS
from paramscope.planner.models import parameters
from paramscope.units import LARGER, UNITS, amount

NONE = "–"
# What older documents of this project tell (METHODS, section 8); the right figures are computed.
OLDER_HESSIANS = {
    "opt-125m": "62 TB",
    "opt-350m": "490 TB",
    "opt-1.3b": "6.8 PB",
    "opt-2.7b": "29 PB",
}
OLDER_COUNT = ("opt-350m", 350_000_000)
OLDER_FP16 = ("opt-6.7b", "26.8 GB")
COPIES = 4  # of the weights, by the older rule for training: weights, gradients, two moments


def document(rows: pd.DataFrame) -> str:
    """The plan in Markdown.

    Args:
        rows: as `artifacts.plans` has them.

    Raises:
        ArtifactError: rows that are no plan.
    """
    checked(rows)
    parts = [_asked(rows), _devices(rows), _totals(rows), *_by_device(rows), _older(rows)]
    return "\n\n".join(parts) + "\n"


def _asked(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    models = rows.drop_duplicates("model")
    counted = [
        [row["model"], f"{row['parameters']:,}", amount(row["parameters"] * _itemsize(rows))]
        for _, row in models.iterrows()
    ]
    return (
        f"# Memory plan\n\n"
        f"What each strategy takes at its peak, and what to take on each device: "
        f"{first['dtype']}, batches of {first['batch']} × {first['length']:,} tokens. Each "
        f"stage's own code ran on tensors without values, so nothing here was measured; a full "
        f"Hessian and its blocks are formulas. 1 GB is 10⁹ bytes. "
        f"`paramscope plan MODEL --device DEVICE --strategy STRATEGY` tells one of these with "
        f"its parts.\n\n" + table(["model", "parameters", f"weights in {first['dtype']}"], counted)
    )


def _devices(rows: pd.DataFrame) -> str:
    devices = rows.drop_duplicates("device")
    told = []
    for _, row in devices.iterrows():
        sizes = [row["memory_bytes"], row["held_bytes"]]
        margin = row["memory_bytes"] - row["held_bytes"] - row["usable_bytes"]
        told.append(
            [row["device"], row["device_kind"], *map(_size, (*sizes, margin, row["usable_bytes"]))]
        )
    reasons = [
        f"- `{kind}`: {margin.fraction:.0%} of what is free; {margin.reason}."
        for kind, margin in MARGINS.items()
        if kind in set(devices["device_kind"])
    ]
    heads = ["device", "kind", "memory", "held by the system", "margin", "usable"]
    return (
        "## Devices\n\n"
        + table(heads, told, words=2)
        + "\n\nThe margin, which a plan leaves free:\n\n"
        + "\n".join(reasons)
    )


def _totals(rows: pd.DataFrame) -> str:
    """What strategies take, a table a kind of device, since CUDA's AdamW and blocks differ."""
    formula, cuda = rows["how"] == CLOSED_FORM, rows["device_kind"] == "cuda"
    told = [
        "## What each strategy takes\n\n"
        "Live tensors at the peak, and what is known to come beside them; where devices of a kind "
        "differ, the most."
    ]
    for name, shown in (
        ("On a GPU", rows[cuda & ~formula]),
        ("On a CPU", rows[~cuda & ~formula]),
        ("Matrices that nothing holds, 4 bytes an entry", rows[formula]),
    ):
        if shown.empty:
            continue
        models = list(dict.fromkeys(rows["model"]))
        size = "peak_bytes" if shown["how"].iloc[0] == CLOSED_FORM else "total_bytes"
        most = shown.groupby(["strategy", "model"])[size].max()
        lines = [
            [strategy, *(_size(most.get((strategy, model))) for model in models)]
            for strategy in dict.fromkeys(shown["strategy"])
        ]
        told.append(f"{name}:\n\n" + table(["strategy", *models], lines))
    return "\n\n".join(told)


def _by_device(rows: pd.DataFrame) -> list[str]:
    """What to take for each task, a table a device."""
    tasks = [task for task, of in TASKS.items() if rows["strategy"].isin(of).any()]
    told = [
        "## What to take\n\n"
        "For each task the fastest strategy that fits (of pruning the one that keeps most), with "
        "the change that makes it fit where it needs one, and what it takes of what the device "
        "can be planned with. Above 100% it fits within the margin alone."
    ]
    for device, of_device in rows.groupby("device", sort=False):
        lines = [
            [str(model), *(_take(own, task) for task in tasks)]
            for model, own in of_device.groupby("model", sort=False)
        ]
        usable = amount(of_device["usable_bytes"].iloc[0])
        heads = ["model", *tasks]
        told.append(f"### {device}: {usable}\n\n" + table(heads, lines, words=len(heads)))
    return told if tasks else []


def _take(own: pd.DataFrame, task: str) -> str:
    if not own["strategy"].isin(TASKS[task]).any():
        return NONE
    row = recommended(own, task)
    if row is None:
        return "no"
    change = f" with `{row['mend']}`" if row["state"] in CHANGED and row["mend"] else ""
    return f"{row['strategy']}{change} ({taken_bytes(row) / row['usable_bytes']:.0%})"


def _older(rows: pd.DataFrame) -> str:
    """Figures that older documents tell, and what they should have been."""
    lines = []
    for model, older in OLDER_HESSIANS.items():
        N = parameters(model)
        right = 4 * N**2
        lines.append(
            [
                f"full Hessian of {model}",
                older,
                amount(right),
                f"{right / _bytes(older):,.0f} times as much: N² × 4 bytes, N = {N:,}",
            ]
        )
    model, older_N = OLDER_COUNT
    N = parameters(model)
    lines.append(
        [
            f"parameters of {model}",
            f"{older_N:,}",
            f"{N:,}",
            f"{1 - N / older_N:.1%} fewer: count the architecture's, a name is rounded",
        ]
    )
    model, older = OLDER_FP16
    right = parameters(model) * torch.float16.itemsize
    lines.append(
        [
            f"weights of {model} in FP16",
            older,
            amount(right),
            f"{right / _bytes(older):.2f} of it: FP16 has {torch.float16.itemsize} bytes a "
            "parameter",
        ]
    )
    return (
        "## Figures of older documents beside the right ones\n\n"
        + table(["what", "older", "right", "the right one is"], lines, words=4)
        + _rule_of_copies(rows)
    )


def _rule_of_copies(rows: pd.DataFrame) -> str:
    """The rule that training takes the weights four times, beside what the plan has."""
    training = rows[rows["strategy"] == "training"]
    if training.empty:
        return ""
    lines = []
    for model, own in training.groupby("model", sort=False):
        rule = COPIES * own["parameters"].iloc[0] * _itemsize(rows)
        cuda = own["device_kind"] == "cuda"
        told = [
            f"{amount(total)} ({total / rule:.2f}×)" if pd.notna(total) else NONE
            for total in (own[kind]["peak_bytes"].max() for kind in (cuda, ~cuda))
        ]
        lines.append([str(model), amount(rule), *told])
    heads = ["model", f"parameters × {COPIES}", "training on a GPU", "on a CPU"]
    return (
        f'\n\nThe rule "parameters × {COPIES}" for the memory of training counts weights, their '
        "gradients and AdamW's two moments. It leaves out what the backward needs, the logits, and "
        "what the optimizer's step makes. Live tensors at the peak, beside it:\n\n"
        + table(heads, lines)
    )


def table(heads: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; the first `words` columns are set left, those of numbers right."""
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def _size(n_bytes: float | None) -> str:
    """As `amount`; plain 0, and a dash for what is not in the plan."""
    if n_bytes is None:
        return NONE
    return amount(n_bytes) if n_bytes else "0"


def _itemsize(rows: pd.DataFrame) -> int:
    return int(getattr(torch, rows["dtype"].iloc[0]).itemsize)


def _bytes(told: str) -> float:
    """`62 TB` as bytes."""
    number, unit = told.split()
    return float(number) * next(size for size, name in (*LARGER, *UNITS) if name == unit)
