"""What one process of the curvature benchmark does: time a contender, or find exact entries."""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from case import Case, gradient
from contenders import CONTENDERS, Contender
from job import Job
from tqdm import tqdm

from paramscope.artifacts.digest import file_digest, seed_of
from paramscope.cli.inputs import model_and_text
from paramscope.cli.options import Dtype
from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.products import ggn_entries, hessian_entries
from paramscope.curvature.spotcheck import stratified
from paramscope.tracker import MemoryTracker

SPARE = 0.7  # share of the free memory that a budget may be foreseen to take


def measure(job: Job) -> None:
    """What a process does: write the job's result."""
    if job.contender == "reference":
        found: dict = exact(job)
    elif job.contender == "gradient":
        case = _case(job, "float32")
        for _ in range(3):
            gradient(case)
        found = {"gradient_peak_rss_bytes": _peak_rss()}
        found["gradient_peak_tracked_bytes"] = _tracked(case, lambda: gradient(case))
    else:
        contender = CONTENDERS[job.contender]
        about = {"contender": job.contender, "of": contender.of, "unit": contender.unit}
        rows = [about | {"repeat": job.repeat} | row for row in _timed(job, contender)]
        found = {"rows": rows}
    Path(job.result).write_text(json.dumps(found))


def _timed(job: Job, contender: Contender) -> list[dict]:
    """Rows of one contender, budgets rising until the cap or the memory forbids the next."""
    unit = _case(job, "float32")
    case = unit if contender.dtype == "float32" else _case(job, contender.dtype)
    affordable = [b for b in contender.budgets if b <= job.largest_budget]
    budgets = job.budgets or affordable or contender.budgets[:1]
    estimate = contender.prepare(case)
    seed = seed_of(job.seed, "benchmark", job.contender, job.repeat) >> 31
    gradient(unit)
    before, held = time.process_time(), _peak_rss()
    estimate(budgets[0], seed)
    taken, grown, last = time.process_time() - before, _peak_rss() - held, budgets[0]
    rows: list[dict] = []
    gradients = []
    spent = 0.0
    for budget in budgets:
        too_long = spent + taken * budget / last > job.seconds_cap
        too_large = grown * budget / last > SPARE * psutil.virtual_memory().available
        if rows and job.budgets is None and (too_long or too_large):
            why = "time" if too_long else "memory"
            print(f"  {job.contender}: {budget} and more left out for {why}", file=sys.stderr)
            break
        gradients += [_cpu(lambda: gradient(unit)) for _ in range(2)]
        wall, cpu = time.perf_counter(), time.process_time()
        positions, values = estimate(budget, seed)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        taken, last, spent = cpu, budget, spent + cpu
        grown = max(_peak_rss() - held, 0)
        rows.append(
            {"budget": budget, "cpu_s": cpu, "wall_s": wall, "peak_rss_bytes": _peak_rss(),
             "positions": positions, "values": values}
        )  # fmt: skip
    gradients += [_cpu(lambda: gradient(unit)) for _ in range(2)]
    one = median(gradients)
    for row in rows:
        row |= {"gradient_cpu_s": one, "gradients": row["cpu_s"] / one}
        if not job.repeat:  # after all that is timed
            row["peak_tracked_bytes"] = _tracked(case, partial(estimate, row["budget"], seed))
    costs = ", ".join(f"{r['budget']}: {r['gradients']:.1f}" for r in rows)
    print(
        f"repeat {job.repeat} {job.contender}: gradients by budget ({contender.unit}) {costs}"
        f" (one is {one:.3f} s)",
        file=sys.stderr,
    )
    return rows


def exact(job: Job) -> dict:
    """Exact entries of both diagonals in a float64 model, stratified over its tensors."""
    path = Path(job.reference)
    weights = [file_digest(f) for f in sorted(Path(job.model).glob("*.safetensors"))]
    about = (weights, file_digest(Path(job.calibration)), job.sequences, job.length)
    identity = str(seed_of(*about, job.entries, job.seed))
    if not path.is_file():
        case = _case(job, "float64")
        sizes = {"seed": job.seed, "batch_size": job.batch}
        [some] = ggn_draws(case.model, case.sequences, range(1), **sizes)
        entries = stratified(some, job.entries, job.seed)
        total = {key: torch.zeros(len(entries)).double() for key in ("ggn", "hessian")}
        shown = {"disable": False, "mininterval": 10}
        for i, (part, share) in enumerate(case.shares()):
            for key, values in (("ggn", ggn_entries), ("hessian", hessian_entries)):
                name = f"exact {key}, microbatch {i}"
                found = tqdm(values(case.model, part, entries), name, len(entries), **shown)
                total[key] += share * torch.tensor(list(found)).double()
        size = case.model.num_parameters()
        index = torch.tensor([index for _, index in entries])
        content = {"identity": identity, "size": size, "index": index}
        torch.save(content | total | {"tensors": [name for name, _ in entries]}, path)
    content = torch.load(path, weights_only=True)
    if content["identity"] != identity:
        sys.exit(f"{path}: exact entries of another model, text, seed or count; remove it")
    return {key: content[key].tolist() for key in ("ggn", "hessian")} | {"size": content["size"]}


def _case(job: Job, dtype: str) -> Case:
    model, sequences, _ = model_and_text(
        Path(job.model),
        Path(job.calibration),
        length=job.length,
        device="cpu",
        dtype=Dtype(dtype),
        threads=job.threads,
        documents=job.sequences,
    )
    entries = []
    if Path(job.reference).is_file():
        content = torch.load(job.reference, weights_only=True)
        entries = list(zip(content["tensors"], content["index"].tolist(), strict=True))
    return Case(model, sequences, job.batch, entries)


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux tells KiB


def _tracked(case: Case, work: Callable[[], object]) -> int:
    """The most bytes of tensors, the model's weights included, that `work` held."""
    with MemoryTracker().register(case.model.parameters()) as tracker:
        work()
    return tracker.peak_bytes
