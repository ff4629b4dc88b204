"""Measures what the compression study promises, each part in processes of its own.

    python -m tests.benchmarks.compression OUTPUT.json --model FOLDER --calibration FILE

Whole flows of SparseGPT, ours and the published one, take turns, each in a new process, so
that the machine's other work falls on both alike. Such a process is this module with `--job`.
"""

import json
import os
import sys
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from typer import Argument, BadParameter, Option, run

from tests.benchmarks.compression_job import Job
from tests.benchmarks.jobs import commit, processor, run_job

CASES = ("accuracy", "steps", "checkpoint", "flow")
MODULES = ("compression.methods", "compression.masked_adamw", "compression.compact", "tracker")


def compression(
    output: Annotated[Path, Argument(help="JSON to write.")],
    model: Annotated[Path, Option(help="Model folder.")],
    calibration: Annotated[Path, Option(help="Documents to prune by.")],
    rounds: Annotated[int, Option(min=1, help="Turns of each flow; 8 optimizer steps a turn.")] = 3,
    density: Annotated[float, Option(help="Share of the weights that is kept.")] = 0.1,
    sequences: Annotated[int, Option(help="Calibration sequences at most.")] = 64,
    tokens: Annotated[int, Option(help="Tokens a sequence at most.")] = 256,
    batch: Annotated[int, Option(help="Sequences a forward in one more turn of our flow.")] = 16,
    hidden: Annotated[int, Option(help="Width of the random OPT that is pruned.")] = 512,
    step_hidden: Annotated[int, Option(help="Width of the random OPT that is stepped.")] = 768,
    layers: Annotated[int, Option(help="Layers of both.")] = 4,
    threads: Annotated[int, Option(min=1, help="CPU threads within operations.")] = 2,
    seed: Annotated[int, Option(help="Seed of random weights and tokens.")] = 0,
    case: Annotated[
        list[str] | None,
        Option(help="accuracy, steps, checkpoint or flow; repeat for more; all unless told."),
    ] = None,
) -> None:
    """Measure compression's accuracy, state, checkpoint, time and memory."""
    arguments = dict(locals())
    from paramscope.artifacts.digest import code_digest, file_digest
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from tests.benchmarks.compression_goals import flow_summary, goals

    cases = case or list(CASES)
    unknown = ", ".join(sorted(set(cases) - set(CASES)))
    if unknown:
        raise BadParameter(f"no case {unknown}; known are {', '.join(CASES)}")
    here = Path(__file__).parent
    scripts = [*sorted(here.glob("compress*")), here / "goals.py", here / "jobs.py"]
    notes = {script.name: file_digest(script)[:16] for script in scripts}
    device = f"cpu, {threads} thread(s); {processor()}"
    made_by = provenance(MODULES[0], arguments, device=device, notes=notes)
    made_by = replace(made_by, code=code_digest(*MODULES))
    job = Job(
        "", str(model), str(calibration), "", layers=layers, sequences=sequences, tokens=tokens,
        density=density, threads=threads, rounds=rounds, seed=seed,
    )  # fmt: skip
    jobs = [each for each in _jobs(job, batch, hidden, step_hidden) if each.case in cases]
    load = os.getloadavg()[0]
    found: dict[str, list[dict]] = defaultdict(list)
    for each in (bar := tqdm(jobs, "compression benchmark", unit="process")):
        name = f"{each.case} {each.subject} {each.contender}"
        bar.set_postfix_str(name)
        result = run_job("tests.benchmarks.compression", each, name)
        made_by = replace(made_by, versions=result.pop("versions"))
        found[each.case].append({"subject": each.subject} | result)
    if "flow" in found:
        subjects = dict.fromkeys(each["subject"] for each in found["flow"])
        runs = {s: [r for r in found["flow"] if r["subject"] == s] for s in subjects}
        found["flow"] = [
            {"subject": subject, "ratios": flow_summary(own), "runs": own}
            for subject, own in runs.items()
        ]
    about = {
        "what": "compression: accuracy, optimizer, checkpoint, time and memory beside references",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "device": device,
        "load_before": load,
        "density": density,
        "rounds": rounds,
    }
    reached = goals(found)
    write_record(output, about | {"goals": reached} | found, made_by)
    for goal in reached:
        mark = {True: "met", False: "MISSED", None: "?"}[goal["met"]]
        sign = "≥" if goal["at_least"] else "≤"
        what = f"{goal['what']} ({goal['subject']})"
        print(f"{mark:7}{goal['reached']:<12.6g}{sign} {goal['limit']:<8g}{what}")


def _jobs(job: Job, batch: int, hidden: int, step_hidden: int) -> list[Job]:
    """All processes in the order they run."""
    given = replace(job, case="accuracy", threads=1, batch=batch)  # untimed, and its tensors small
    listed = [given]
    listed += [replace(job, case="steps", hidden=width) for width in (0, step_hidden)]
    listed.append(replace(job, case="checkpoint"))
    for turn in range(job.rounds):
        for width in (0, hidden):
            flow = replace(job, case="flow", hidden=width, turn=turn)
            pair = [replace(flow, contender="published"), replace(flow, contender="paramscope")]
            listed += pair[::-1] if turn % 2 else pair
            if not turn and batch > 1:
                listed.append(replace(pair[1], batch=batch))
    return listed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        from tests.benchmarks.compression_cases import measure

        measure(Job(**json.loads(Path(sys.argv[2]).read_text())))
    else:
        run(compression)
