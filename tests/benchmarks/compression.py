"""Measures what the compression study promises, each part in processes of its own.

    python -m tests.benchmarks.compression OUTPUT.json --model FOLDER --calibration FILE

Whole flows of SparseGPT, ours and the published one, take turns, each in a new process, so
that the machine's other work falls on both alike. Such a process is this module with `--job`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from typer import Argument, BadParameter, Option, run

from tests.benchmarks.compression_job import Job

ROOT = Path(__file__).parents[2]
CASES = ("accuracy", "steps", "checkpoint", "flow")
# Threads that wait in a loop took four times as long where other work shared the cores.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
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
    notes = {s.name: file_digest(s)[:16] for s in sorted(Path(__file__).parent.glob("compress*"))}
    device = f"cpu, {threads} thread(s); {_processor()}"
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
        bar.set_postfix_str(f"{each.case} {each.subject} {each.contender}")
        result = _run(each)
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
        "commit": _commit(),
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


def _run(job: Job) -> dict:
    """Run one process to its end and read what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "job.json"
        job = replace(job, result=str(Path(folder) / "result.json"))
        told.write_text(json.dumps(asdict(job)))
        threads = str(job.threads)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        alike = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TQDM_DISABLE": "1",
        } | SLEEPING
        command = [sys.executable, "-m", "tests.benchmarks.compression", "--job", str(told)]
        environment = os.environ | alike | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{job.case} {job.subject} {job.contender} ended with {done.returncode}")
        return json.loads(Path(job.result).read_text())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else f"{os.cpu_count()} processors"


def _commit() -> str | None:
    """The commit that was measured, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        from tests.benchmarks.compression_cases import measure

        measure(Job(**json.loads(Path(sys.argv[2]).read_text())))
    else:
        run(compression)
