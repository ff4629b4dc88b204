"""Sets plans and the rule of `accelerate estimate-memory` beside real runs, and times estimates.

    python -m tests.benchmarks.planner OUTPUT.json --accuracy results/memory/accuracy.parquet

What real runs took is read: `paramscope plan-accuracy` measures it. An estimate is timed warm,
after one of the same strategy on a small model, and none comes from a cache.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from typer import Argument, Option, run

from tests.benchmarks.goals import Goal
from tests.benchmarks.jobs import commit, processor

MODELS = ("opt-125m", "opt-6.7b", "opt-30b")
MODULES = ("planner.accuracy", "planner.estimate")
CASES = 12  # that errors should be told of at least
SECONDS = 5.0
ADAM = ("training", "masked_finetune", "dpsgd-")  # how strategies begin that have its states


def planner(
    output: Annotated[Path, Argument(help="JSON to write.")],
    accuracy: Annotated[Path, Option(help="Table of predicted and measured peaks.")],
    model: Annotated[
        list[str] | None, Option(help="Preset to time; repeat for more; three unless told.")
    ] = None,
    strategy: Annotated[
        list[str] | None, Option(help="To time; repeat for more; all unless told.")
    ] = None,
    length: Annotated[int, Option(help="Tokens a sequence of timed estimates.")] = 2048,
    repeats: Annotated[int, Option(min=1, help="Estimates timed of each.")] = 3,
    threads: Annotated[int, Option(min=1, help="CPU threads within operations.")] = 1,
) -> None:
    """Set plans beside real runs and beside accelerate's rule, and time estimates."""
    arguments = dict(locals())
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    from paramscope.artifacts.digest import code_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import read_table
    from paramscope.devices import choose_device
    from paramscope.planner.accuracy import ACCURACY
    from paramscope.planner.strategies import STRATEGIES

    choose_device("cpu", threads)
    cases = [case_of(row) for row in read_table(accuracy, ACCURACY.names).to_dict("records")]
    for case in cases:
        other = case["accelerate_error"]
        beside = "no rule" if other is None else f"{other:+.1%}"
        print(
            f"{case['strategy']:16}{case['model']:16}{case['measured_bytes'] / 1e6:8.1f} MB"
            f"  plan {case['error']:+.3%}  accelerate {beside}"
        )
    load = os.getloadavg()[0]
    times = []
    for name in strategy or list(STRATEGIES):
        for preset in model or list(MODELS):
            seconds = timed(preset, name, length, repeats)
            times.append({"model": preset, "strategy": name, "seconds": seconds})
            print(f"{name:16}{preset:16}{median(seconds):8.2f} s an estimate", flush=True)
    reached = goals(cases, times, list(STRATEGIES))
    device = f"cpu, {threads} thread(s); {processor()}"
    made_by = provenance(MODULES[0], arguments, device=device)
    made_by = replace(made_by, code=code_digest(*MODULES))
    record = {
        "what": "peak memory by plan and by accelerate's rule beside real runs; time of estimates",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "device": device,
        "load_before": load,
        "length": length,
        "goals": [goal.record() for goal in reached],
        "accelerate": accelerate_summary(cases),
        "cases": cases,
        "times": times,
    }
    write_record(output, record, made_by)
    for told in record["goals"]:
        mark = {True: "met", False: "MISSED", None: "?"}[told["met"]]
        sign, value = ">=" if told["at_least"] else "<=", told["reached"]
        value = "unknown" if value is None else f"{value:.4g}"
        print(f"{mark:7}{value:<10}{sign} {told['limit']:<8g}{told['what']} ({told['subject']})")


def case_of(row: Mapping[str, Any]) -> dict:
    """A row of ACCURACY with what accelerate's rule says beside it."""
    from paramscope.dpsgd.workloads import Workload, architecture

    shape = ("family", "hidden", "layers", "heads", "ffn", "vocabulary", "length", "batch", "tied")
    config = architecture(Workload("", *(row[name] for name in shape)))
    rule = accelerate_bytes(config, row["strategy"], row["dtype"])
    kept = ("strategy", "dtype", "batch", "length", "options", "threads", "parameters", "how")
    sizes = ("predicted_bytes", "measured_bytes", "error", "total_bytes", "rss_bytes", "false_fit")
    return {
        "model": f"{row['family']} {row['layers']} x {row['hidden']}",
        **{name: row[name] for name in (*kept, *sizes)},
        "accelerate_bytes": rule,
        "accelerate_error": None if rule is None else rule / row["measured_bytes"] - 1,
    }


def accelerate_bytes(config, strategy: str, dtype: str) -> int | None:
    """What `accelerate estimate-memory` says of a model; None where it has no rule.

    It has "Total Size" of the model without its head (AutoModel), and "Training using Adam", the
    most of its rows: 4 times that in float32, twice the float32 size in float16 and bfloat16.
    Batch, length and what is between inputs and outputs are not in it. Of a gradient without an
    optimizer, and of curvature, it says nothing.

    Source: accelerate 1.15, commands/estimate.py (`estimate_training_usage`, `gather_data`) and
    utils/modeling.py (`calculate_maximum_sizes`); the tests have numbers that these gave.
    """
    import torch

    from paramscope.models.faking import faked
    from paramscope.planner.models import new_model
    from paramscope.planner.strategies import STRATEGIES

    with faked():
        model = new_model(config, torch.float32).base_model
    held = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    half = dtype in ("float16", "bfloat16")
    if strategy.startswith(ADAM):
        return size * (2 if half else 4)
    if not STRATEGIES[strategy].backward:
        return size // (2 if half else 1)
    return None


def accelerate_summary(cases: Sequence[Mapping[str, Any]]) -> dict:
    """How far the rule is from real runs: its errors' range and their median size."""
    errors = [c["accelerate_error"] for c in cases if c["accelerate_error"] is not None]
    return {
        "cases": len(errors),
        "low": min(errors, default=None),
        "high": max(errors, default=None),
        "median_size": median(map(abs, errors)) if errors else None,
    }


def timed(preset: str, strategy: str, length: int, repeats: int) -> list[float]:
    """Seconds of estimates, the first of the strategy not among them."""
    from paramscope.planner.estimate import estimate
    from paramscope.planner.models import configuration, with_layers
    from paramscope.planner.options import Options

    estimate(with_layers(configuration(MODELS[0]), 2), strategy, Options(length=16))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        estimate(preset, strategy, Options(length=length))
        seconds.append(time.perf_counter() - start)
    return seconds


def goals(
    cases: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]], known: Sequence[str]
) -> list[Goal]:
    """What was aimed at, beside what was measured.

    Args:
        cases: as `case_of` gives them.
        times: of each model and strategy, the seconds of its estimates.
        known: all strategies.
    """
    from paramscope.planner.accuracy import MEDIAN, WORST

    worst = max(cases, key=lambda case: abs(case["error"]), default=None)
    middle = median(abs(case["error"]) for case in cases) if cases else None
    told = {case["strategy"] for case in cases}
    false = sum(case["false_fit"] for case in cases) if cases else None
    subject = f"{worst['strategy']}, {worst['model']}" if worst else "all cases"
    most = abs(worst["error"]) if worst else None
    found = [
        Goal("|plan's peak / profiler's − 1|, worst", subject, WORST, most),
        Goal("|plan's peak / profiler's − 1|, median", "all cases", MEDIAN, middle),
        Goal("cases", "all", CASES, len(cases), at_least=True),
        Goal("strategies without a case", "all", 0, len(set(known) - told)),
        Goal("fits that are false", "all cases", 0, false),
    ]
    if times:
        longest = max(times, key=lambda row: median(row["seconds"]))
        subject = f"{longest['model']}, {longest['strategy']}"
        found.append(
            Goal("seconds of an estimate, longest", subject, SECONDS, median(longest["seconds"]))
        )
    return found


if __name__ == "__main__":
    run(planner)
