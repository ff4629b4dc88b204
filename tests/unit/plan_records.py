"""Rows of plans in the shape of real ones, from a few rules, and whatever states they come to."""

from collections.abc import Mapping

from paramscope.artifacts.plans import PART_COLUMNS, TASKS, plan_rows
from paramscope.names import DPSGD_PARTS

MODELS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
}
DEVICES = {  # kind, memory, held, share that stays free
    "laptop-8gb": ("cpu", 8_000_000_000, 4_000_000_000, 0.1),
    "wsl-8gb": ("wsl", 4_156_836_000, 342_045_491, 0.25),
    "rtx-24gb": ("cuda", 25_254_407_700, 0, 0.05),
    "a800": ("cuda", 85_094_040_000, 0, 0.05),
    "h100-80gb": ("cuda", 84_943_716_000, 0, 0.05),
    "h200": ("cuda", 150_023_207_000, 0, 0.05),
}
# What the parts hold, in units of the parameters' bytes, in names.DPSGD_PARTS' order.
HELD = {
    "inference": (1, 0, 0, 0.05, 0, 0, 0.1, 0),
    "ggn": (1, 0.4, 0, 1.1, 0, 0, 0.1, 0),
    "hutchinson": (1, 1, 0, 1.4, 0, 0.3, 0.2, 1.5),
    "prune-sparsegpt": (1, 0, 0, 0.1, 0, 0.6, 0, 0.05),
    "prune-wanda": (1, 0, 0, 0.1, 0, 0.2, 0, 0.05),
    "prune-magnitude": (1, 0, 0, 0, 0, 0, 0, 0.12),
    "masked_finetune": (1, 1, 1.1, 0.2, 0, 0, 0.1, 0.2),
    "training": (1, 1, 2, 0.1, 0, 0, 0.02, 1),
    "dpsgd-bk": (1, 1, 2, 0.5, 0.001, 0.4, 0.1, 0.3),
    "dpsgd-flash": (1, 1, 2, 0.4, 0.001, 0.3, 0.1, 0.3),
    "dpsgd-ghost": (1, 1, 2, 0.4, 0.001, 0.6, 0.1, 0.3),
    "dpsgd-per_layer": (1, 1, 2, 0.2, 0.001, 0.1, 0.1, 0.2),
    "dpsgd-micro": (1, 1, 2, 0.2, 0.001, 0, 0.05, 0.1),
    "gradient": (1, 1, 0, 0.2, 0, 0, 0.1, 0),
}
CHANGES = {  # what each is thought to leave of all that is held
    "--optimizer plain": 0.85,
    "--chunk-tokens 512": 0.97,
    "--dtype bfloat16": 0.5,
    "--checkpointing": 0.92,
}
TRAINED = {strategy for name in ("training", "private training") for strategy in TASKS[name]}
EXTRA = {"cpu": 331_234_567, "wsl": 331_234_567, "cuda": 17_039_360}


def record(model, strategy, device, **changed):
    """One row, its state what its numbers make it."""
    kind, memory, held, margin = DEVICES[device]
    N = MODELS[model]
    room = memory - held
    usable = room - round(margin * room)
    if strategy == "full_hessian":
        parts = dict.fromkeys(DPSGD_PARTS, 0) | {"other": 4 * N**2}
    else:
        shares = dict(zip(DPSGD_PARTS, HELD[strategy], strict=True))
        if strategy in TRAINED and kind != "cuda":
            shares["other"] = 0.05
        parts = {part: round(4 * N * share) for part, share in shares.items()}
    peak = sum(parts.values())
    total = peak + EXTRA[kind]
    state, mend, mended = _state(strategy, kind, total, usable, room)
    row = {
        "model": model,
        "parameters": N,
        "strategy": strategy,
        "dtype": "float32",
        "batch": 1,
        "length": 512,
        "device": device,
        "device_kind": kind,
        "memory_bytes": memory,
        "held_bytes": held,
        "usable_bytes": usable,
        "peak_bytes": peak,
        "extra_bytes": EXTRA[kind],
        "total_bytes": total,
        **{PART_COLUMNS[part]: size for part, size in parts.items()},
        "operation": "" if strategy == "full_hessian" else "aten.add.Tensor",
        "phase": "" if strategy == "full_hessian" else "step",
        "how": "closed form" if strategy == "full_hessian" else "extrapolated",
        "state": state,
        "mend": mend,
        "mended_bytes": mended,
    }
    return row | changed


def plan(models=tuple(MODELS), strategies=(*HELD, "full_hessian"), devices=tuple(DEVICES)):
    """All of them, as a plan's rows."""
    return plan_rows(
        record(model, strategy, device)
        for model in models
        for strategy in strategies
        for device in devices
    )


def _state(strategy, kind, total, usable, room):
    """State, mend and what it takes: one change, the first that does, or one upon the other."""
    if total <= usable:
        return "fits", None, None
    changes: Mapping[str, float] = CHANGES if strategy in TRAINED else {
        "--dtype bfloat16": 0.5
    }  # fmt: skip
    changes = {c: by for c, by in changes.items() if kind == "cuda" or c != "--optimizer plain"}
    if strategy == "full_hessian":
        changes = {}
    tried = {"": total} | {change: round(total * by) for change, by in changes.items()}
    words, left = [], float(total)
    for change, by in changes.items():
        words.append(change)
        left *= by
        tried[" ".join(words)] = round(left)
    for limit, state in ((usable, "mended"), (room, "tight")):
        for mend, size in tried.items():
            if size <= limit:
                return state, mend, size
    return "no", None, None
