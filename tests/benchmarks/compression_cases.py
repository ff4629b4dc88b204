"""What one process of the compression benchmark does."""

import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import PreTrainedModel

from paramscope.artifacts.provenance import versions
from paramscope.artifacts.tables import read_table
from paramscope.compression.compact import FILE, load_compact, save_compact
from paramscope.compression.layers import density_of, prunable
from paramscope.compression.methods import prune
from paramscope.devices import choose_device
from paramscope.models.folders import sequences_of
from paramscope.models.load import Architecture, load_model, logits, new_opt
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences, load_tokenizer, windows
from paramscope.tracker import MemoryTracker
from tests.benchmarks import compression_oracle, compression_steps
from tests.benchmarks.compression_job import Job
from tests.benchmarks.compression_published import published

CPU = torch.device("cpu")
VOCABULARY = 2048  # of a model at random weights
HEAD = 64  # width of such a model's attention head
DENSITIES = (0.5, 0.1)  # that layers are compared at


def measure(job: Job) -> None:
    """What a process does: write the job's result."""
    choose_device("cpu", job.threads)
    found = CASES[job.case](job) | {"versions": versions()}
    Path(job.result).write_text(json.dumps(found))


def accuracy(job: Job) -> dict:
    """Each layer's loss beside the float64 solution's, and how far the masks agree."""
    model = _model(job)
    text = read_table(Path(job.calibration), ["doc_id", "text"])[: job.sequences]
    sequences = sequences_of(load_tokenizer(Path(job.model)), text, _length(job, model))
    rows = [
        row
        for density in DENSITIES
        for row in compression_oracle.compare(model, sequences, density, job.batch)
    ]
    apart = [abs(row["deviation"]) for row in rows]
    agreement = [row["agreement"] for row in rows]
    return {
        "tokens": int(sequences.lengths.sum()),
        "worst_deviation": max(apart),
        "median_deviation": median(apart),
        "worst_agreement": min(agreement),
        "median_agreement": median(agreement),
        "layers": rows,
    }


def steps(job: Job) -> dict:
    """Optimizer state and the time of a step."""
    scopes = ("pruned",) if job.hidden else ("pruned", "all")
    threads = sorted({1, job.threads})
    repeats = 8 * job.rounds
    return {"rows": compression_steps.compare(_model(job), job.density, scopes, threads, repeats)}


def checkpoint(job: Job) -> dict:
    """Bytes of the pruned weights in a compact file and in transformers' own, in bfloat16."""
    model = _model(job).to(torch.bfloat16)
    masks = prune(model, None, method="magnitude", density=job.density).masks
    with tempfile.TemporaryDirectory() as folder:
        compact, dense = Path(folder) / "compact", Path(folder) / "dense"
        compact.mkdir()
        save_compact(model, masks, compact)
        model.save_pretrained(dense)
        small, whole = _bytes(compact / FILE), _bytes(dense / "model.safetensors")
        again, _ = load_compact(compact, CPU)
        state = again.state_dict()
        exact = all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        files = [(compact / FILE).stat().st_size, (dense / "model.safetensors").stat().st_size]
    kept = sum(small[f"{name}.{part}"] for name in masks for part in ("mask", "values"))
    dense_bytes = sum(whole[name] for name in masks)
    return {
        "density": density_of(masks),
        "compact_bytes": kept,
        "dense_bytes": dense_bytes,
        "ratio": kept / dense_bytes,
        "file_bytes": files[0],
        "dense_file_bytes": files[1],
        "loads_exactly": exact,
    }


def flow(job: Job) -> dict:
    """Time and memory of pruning a whole model by SparseGPT, and the loss it ends with."""
    prune_by = FLOWS[job.contender]
    model, text = _model_and_windows(job)
    with torch.no_grad():  # what libraries load at their first call is neither's own
        logits(model, text.ids[:1])
    torch.linalg.cholesky(torch.eye(8))
    held = _restart_peak_rss()
    wall, cpu = time.perf_counter(), time.process_time()
    prune_by(job, model, text)
    found = {
        "contender": job.contender,
        "batch": 1 if job.contender == "published" else job.batch,
        "turn": job.turn,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "rss_growth_bytes": _peak_rss() - held,
        "density": _density(model),
        "loss_after": _loss(model, text, job.batch),
        "tokens": int(text.lengths.sum()),
    }
    if not job.turn:  # the tensors are the same in each
        torch.set_num_threads(1)  # nothing is timed here
        model, text = _model_and_windows(job)
        with MemoryTracker().register([*model.parameters(), text.ids]) as tracker:
            before = tracker.live_bytes
            prune_by(job, model, text)
        found |= {"tracked_peak_bytes": tracker.peak_bytes - before, "weights_bytes": before}
        found["peak_operation"] = tracker.peak_operation
    return found


def _ours(job: Job, model: PreTrainedModel, text: Sequences) -> None:
    prune(model, text, method="sparsegpt", density=job.density, batch_size=job.batch)


FLOWS: Mapping[str, Callable[[Job, PreTrainedModel, Sequences], object]] = {
    "published": lambda job, model, text: published(model, text, job.density),
    "paramscope": _ours,
}
CASES: Mapping[str, Callable[[Job], dict]] = {
    "accuracy": accuracy,
    "steps": steps,
    "checkpoint": checkpoint,
    "flow": flow,
}


def _model(job: Job) -> PreTrainedModel:
    if not job.hidden:
        return load_model(Path(job.model), CPU)
    heads = max(1, job.hidden // HEAD)
    shape = Architecture(job.hidden, job.layers, heads, 4 * job.hidden, job.tokens)
    return new_opt(shape, VOCABULARY, job.seed).eval()


def _length(job: Job, model: PreTrainedModel) -> int:
    return min(job.tokens, model.config.max_position_embeddings)


def _model_and_windows(job: Job) -> tuple[PreTrainedModel, Sequences]:
    """The model, and full windows of the text; random tokens for a random model."""
    model = _model(job)
    length = _length(job, model)
    if job.hidden:
        generator = torch.Generator().manual_seed(job.seed)
        ids = torch.randint(VOCABULARY, (job.sequences, length), generator=generator)
    else:
        texts = read_table(Path(job.calibration), ["text"])["text"].tolist()
        cut = windows(load_tokenizer(Path(job.model)), texts, length, stride=length)
        ids = cut.ids[cut.lengths == length][: job.sequences]
    names = tuple(f"window-{i}" for i in range(len(ids)))
    return model, Sequences(ids, torch.full((len(ids),), length), names)


def _density(model: PreTrainedModel) -> float:
    """The share of weights in the blocks' linear layers that is not 0."""
    weights = [layer.weight for layer in prunable(model).values()]
    return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@torch.no_grad()
def _loss(model: PreTrainedModel, text: Sequences, batch: int) -> float:
    """Mean loss in nats a token."""
    parts = text.batches(batch)
    return sum(float(mean_loss(model, p)) * p.n_predicted / text.n_predicted for p in parts)


def _bytes(file: Path) -> dict[str, int]:
    """What each tensor of a safetensors file takes, as its own header says."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {
        name: about["data_offsets"][1] - about["data_offsets"][0] for name, about in header.items()
    }


def _restart_peak_rss() -> int:
    """Hand freed memory back, make Linux forget the peak; tell the bytes that are resident."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024
