"""Sets curvature estimators side by side: their cost in gradients, memory and accuracy.

    python tests/benchmarks/curvature.py MODEL_FOLDER CALIBRATION.parquet OUTPUT.parquet \
        --output-summary SUMMARY.parquet --output-table TABLE.md

Each contender runs in a process of its own, all of them once before any runs again, so that
the machine's other work falls on all alike. Such a process is this script with `--job`. What
"a gradient" costs is timed in the same process, before and after every budget.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from job import Job
from typer import Argument, BadParameter, Option, run

NAMES = (
    "ggn", "sampled_ggn", "curvlinops_ggn_hutchinson", "hutchinson", "curvlinops_hutchinson",
    "curvlinops_xdiag", "double_backward", "jvp_grad", "finite_difference",
)  # fmt: skip
# glibc hands freed memory back or keeps it by what a process freed before, and fetching it again
# costs: without this a gradient took 10% longer beside `ggn` than beside the others.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
SCRIPTS = ("curvature", "job", "process", "case", "contenders", "peers", "by_entry", "accuracy")


def curvature(
    model: Annotated[Path, Argument(help="Model folder.")],
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Annotated[Path, Argument(help="Table to write: a row a contender, budget, repeat.")],
    output_summary: Annotated[Path, Option(help="Table to write: a row a contender.")],
    output_table: Annotated[Path | None, Option(help="Markdown to write.")] = None,
    sequences: Annotated[int, Option(help="Documents, the first of the split.")] = 32,
    length: Annotated[int, Option(help="Tokens a document at most.")] = 64,
    batch: Annotated[int, Option(help="Documents a microbatch.")] = 16,
    entries: Annotated[int, Option(help="Exact entries of G and H to compare with.")] = 600,
    repeats: Annotated[int, Option(help="Processes a contender.")] = 3,
    seed: Annotated[int, Option(help="Seed of everything drawn.")] = 0,
    threads: Annotated[int, Option(help="CPU threads within operations.")] = 1,
    contender: Annotated[list[str] | None, Option(help="One to measure; all unless told.")] = None,
    largest_budget: Annotated[int, Option(help="No budget above it is measured.")] = 10**9,
    seconds_cap: Annotated[float, Option(help="Timed CPU s a contender and repeat.")] = 90,
    reference: Annotated[
        Path | None, Option(help="File of the exact entries: made where absent, else reused.")
    ] = None,
) -> None:
    """Measure curvature estimators on one model and text, each in a process of its own."""
    arguments = dict(locals())
    del arguments["reference"]  # its content follows from the rest
    import accuracy
    import numpy as np
    import pandas as pd

    from paramscope.artifacts.digest import code_digest, file_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table

    names = contender or list(NAMES)
    unknown = set(names) - set(NAMES)
    if unknown:
        unknown_names = ", ".join(sorted(unknown))
        raise BadParameter(f"no contender {unknown_names}; known are {', '.join(NAMES)}")
    scripts = [Path(__file__).with_name(f"{n}.py") for n in SCRIPTS]
    notes = {script.name: file_digest(script)[:16] for script in scripts}
    made_by = provenance("curvature.ggn", arguments, device=f"cpu, {threads} threads", notes=notes)
    made_by = replace(made_by, code=code_digest("curvature.methods", "tracker"))
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            str(model), str(calibration), sequences, length, batch, entries, seed, threads,
            seconds_cap, str(reference or Path(folder) / "reference.pt"),
            str(Path(folder) / "result.json"), largest_budget=largest_budget,
        )  # fmt: skip
        known = _run(replace(job, contender="reference"))
        unit = _run(replace(job, contender="gradient"))
        runs = []
        first: dict[tuple[str, int], int] = {}  # tracked peaks: the same in every repeat
        for repeat in range(repeats):
            for name in names:
                budgets = tuple(b for n, b in first if n == name) if repeat else None
                found = _run(replace(job, contender=name, repeat=repeat, budgets=budgets))
                for row in found["rows"]:
                    key = (name, row["budget"])
                    first.setdefault(key, row.get("peak_tracked_bytes"))
                    runs.append(row | {"peak_tracked_bytes": first[key]})
    frame = pd.DataFrame(runs).assign(**unit)
    truth = accuracy.Reference(np.array(known["ggn"]), np.array(known["hessian"]))
    scored = accuracy.scored(frame, truth)
    summary = accuracy.summarize(scored, truth, known["size"])
    write_table(output, scored, accuracy.TABLE, made_by)
    write_table(output_summary, summary, accuracy.SUMMARY, made_by)
    table = accuracy.markdown(summary)
    if output_table:
        output_table.write_text(table, encoding="utf-8")
    print(table, end="")


def _run(job: Job) -> dict:
    """Run one process to its end and read what it measured."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(job), file)
        file.flush()
        threads = str(job.threads)
        alike = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TQDM_DISABLE": "1"} | KEPT
        command = [sys.executable, __file__, "--job", file.name]
        done = subprocess.run(command, env=os.environ | alike, check=False)
    if done.returncode:
        sys.exit(f"{job.contender}, repeat {job.repeat}, ended with {done.returncode}; see above")
    return json.loads(Path(job.result).read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        from process import measure

        written = json.loads(Path(sys.argv[2]).read_text())
        measure(Job(**written | {"budgets": written["budgets"] and tuple(written["budgets"])}))
    else:
        run(curvature)
