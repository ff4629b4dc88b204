"""Measures what clipping costs over plain training, our methods beside Opacus'.

    python -m tests.benchmarks.dpsgd OUTPUT.json

Each method is timed in processes of its own, in which it and plain training take turns step by
step, so that the machine's other work falls on both alike; the processes of a shape's methods take
turns, too. Gradients are held to a loop over samples in float64. Such a process is this module
with `--job`.
"""

import json
import os
import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from typer import Argument, Option, run

from tests.benchmarks.dpsgd_job import Job
from tests.benchmarks.goals import Goal, quartiles
from tests.benchmarks.jobs import commit, processor, run_job

SHAPES = ((256, 4), (1024, 2), (2048, 1), (2048, 2))  # tokens, samples
METHODS = ("bk", "bk+chunk", "per_layer", "flash", "ghost", "micro", "opacus_hooks", "opacus_ghost")
LEAN = "micro+chunk+checkpoint"
TIME_GOALS = {(256, 4): 1.25, (1024, 2): 1.10, (2048, 1): 1.05}
MODULES = ("dpsgd.methods", "dpsgd.profile")


def dpsgd(
    output: Annotated[Path, Argument(help="JSON to write.")],
    rounds: Annotated[int, Option(min=1, help="Processes of each method and shape.")] = 1,
    steps: Annotated[int, Option(min=3, help="Timed steps a process, of both.")] = 16,
    hidden: Annotated[int, Option(help="Width of the Llama at random weights.")] = 256,
    layers: Annotated[int, Option(help="Its layers.")] = 4,
    threads: Annotated[int, Option(min=1, help="CPU threads within operations.")] = 2,
    seed: Annotated[int, Option(help="Seed of weights, tokens and noise.")] = 0,
    shape: Annotated[
        list[str] | None, Option(help="TOKENSxSAMPLES; repeat for more; all unless told.")
    ] = None,
    method: Annotated[
        list[str] | None, Option(help="A method; repeat for more; all unless told.")
    ] = None,
) -> None:
    """Measure the time, peak memory and gradient error of clipping methods."""
    arguments = dict(locals())
    from paramscope.artifacts.digest import code_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record

    shapes = [tuple(map(int, s.split("x"))) for s in shape] if shape else list(SHAPES)
    methods = method or [*METHODS, LEAN]
    jobs = [
        Job(name, tokens, samples, hidden, layers, steps, threads, seed, exact=not turn)
        for tokens, samples in shapes
        for turn in range(rounds)
        for name in (methods[::-1] if turn % 2 else methods)
    ]
    device = f"cpu, {threads} thread(s); {processor()}"
    made_by = replace(provenance(MODULES[0], arguments, device=device), code=code_digest(*MODULES))
    load = os.getloadavg()[0]
    found: dict[tuple[int, int], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for job in (bar := tqdm(jobs, "DP-SGD benchmark", unit="process")):
        name = f"{job.method} T {job.tokens} B {job.samples}"
        bar.set_postfix_str(name)
        result = run_job("tests.benchmarks.dpsgd", job, name)
        found[job.tokens, job.samples][job.method].append(result)
    cases = [
        {"tokens": tokens, "samples": samples, "method": name} | summary(runs)
        for (tokens, samples), by_method in found.items()
        for name, runs in by_method.items()
    ]
    reached = goals(cases)
    about = {
        "what": "DP-SGD by method: time and peak memory over plain training, gradient error",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "device": device,
        "load_before": load,
        "model": f"Llama {hidden} x {layers}, vocabulary 2,000, untied, float32, AdamW",
        "rounds": rounds,
        "steps": steps,
    }
    record = about | {"goals": [goal.record() for goal in reached], "cases": cases}
    write_record(output, record, made_by)
    for case in cases:
        error = case["gradient_error"]
        print(
            f"T {case['tokens']:<5} B {case['samples']}  {case['method']:24}"
            f"time {case['time']['median']:.2f} [{case['time']['low']:.2f}, "
            f"{case['time']['high']:.2f}]  peak {case['memory']:.3f}"
            + ("" if error is None else f"  gradient error {error:.1e}")
        )
    for goal in (goal.record() for goal in reached):
        mark = {True: "met", False: "MISSED", None: "?"}[goal["met"]]
        print(f"{mark:7}{goal['reached']:<12.4g}<= {goal['limit']:<8g}{goal['what']}")


def summary(runs: list[dict]) -> dict:
    """One method at one shape: ratios to plain training over all its processes' steps."""
    ratios = [
        own / plain for run in runs for own, plain in zip(run["own_s"], run["plain_s"], strict=True)
    ]
    errors = [run["gradient_error"] for run in runs if run["gradient_error"] is not None]
    return {
        "time": quartiles(ratios),
        "own_s": statistics.median(s for run in runs for s in run["own_s"]),
        "plain_s": statistics.median(s for run in runs for s in run["plain_s"]),
        "memory": runs[0]["peak_bytes"] / runs[0]["plain_peak_bytes"],
        "peak_bytes": runs[0]["peak_bytes"],
        "gradient_error": max(errors, default=None),
    }


def goals(cases: list[dict]) -> list[Goal]:
    """What was aimed at, beside what was measured."""
    by_key = {(c["tokens"], c["samples"], c["method"]): c for c in cases}
    found = []
    for (tokens, samples), limit in TIME_GOALS.items():
        case = by_key.get((tokens, samples, "bk"))
        if case is not None:
            what = f"time of bk over plain training, T {tokens}, B {samples}"
            found.append(Goal(what, "", limit, case["time"]["median"]))
    own = [c for c in cases if c["method"] == "bk"]
    if own:
        found.append(Goal("peak of bk over plain", "", 1.02, max(c["memory"] for c in own)))
        worst = max(c["gradient_error"] for c in own)
        found.append(Goal("gradient error of bk against float64", "", 2e-6, worst))
    for case in (c for c in cases if c["method"] == LEAN):
        place = f"T {case['tokens']}, B {case['samples']}"
        found.append(Goal(f"peak of {LEAN} over plain, {place}", "", 0.46, case["memory"]))
        found.append(Goal(f"time of {LEAN}, {place}", "", 1.35, case["time"]["median"]))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        from tests.benchmarks.dpsgd_job import measure

        measure(Job(**json.loads(Path(sys.argv[2]).read_text())))
    else:
        run(dpsgd)
