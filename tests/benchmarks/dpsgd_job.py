"""One process of the DP-SGD benchmark: a method and plain training in turns, and the oracle."""

import json
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        method: variant, as in the configuration's dpsgd.methods.
        tokens: T, tokens a sample.
        samples: B, samples a step.
        hidden: width of the Llama at random weights.
        layers: its layers.
        steps: timed steps, of the method and of plain training each.
        threads: CPU threads within operations.
        seed: of weights, tokens and noise.
        exact: compare the clipped sum with a loop over samples in float64; not where layers are
            clipped apart, which is another sum.
        result: JSON file for what was measured.
    """

    method: str
    tokens: int
    samples: int
    hidden: int = 256
    layers: int = 4
    steps: int = 12
    threads: int = 2
    seed: int = 0
    exact: bool = True
    result: str = ""


def measure(job: Job) -> None:
    """What a process does: write the job's result."""
    import torch

    from paramscope.devices import choose_device

    place = choose_device("cpu", job.threads)
    found = _timed(job, place)
    found["peak_bytes"] = _peak(job, job.method)
    found["plain_peak_bytes"] = _peak(job, "vanilla")
    found["gradient_error"] = (
        gradient_error(job) if job.exact and job.method != "per_layer" else None
    )
    found["versions"] = {"torch": torch.__version__}
    Path(job.result).write_text(json.dumps(found))


def case_of(job: Job, method: str, noise_multiplier: float = 1.0, max_norm: float = 1.0):
    """The benchmark's case of a method."""
    import torch

    from paramscope.dpsgd.cases import Case
    from paramscope.dpsgd.privacy import Privacy
    from paramscope.dpsgd.variants import variant_of
    from paramscope.dpsgd.workloads import Workload

    ffn = 16 * round(8 / 3 * job.hidden / 16)  # Llama's own share
    sizes = (job.hidden, job.layers, 4, ffn, 2000, job.tokens, job.samples)
    variant = variant_of(method, 128)
    return Case(
        Workload("benchmark", "llama", *sizes),
        variant.method,
        variant.options,
        Privacy(max_norm, noise_multiplier, job.samples),
        torch.float32,
        "",
        job.seed,
    )


def _timed(job: Job, place) -> dict:
    """Seconds of steps, the method's and plain training's in turns, after two of each."""
    from paramscope.dpsgd.cases import build, iterate

    trainings = {name: build(case_of(job, name), place) for name in ("vanilla", job.method)}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for step in range(job.steps + 2):
        names = list(trainings)
        for name in names[::-1] if step % 2 else names:
            start = time.perf_counter()
            iterate(trainings[name])
            if step >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {"own_s": seconds[job.method], "plain_s": seconds["vanilla"]}


def _peak(job: Job, method: str) -> int:
    """Peak live bytes of a warmed-up step."""
    import torch

    from paramscope.dpsgd.profile import count

    return count(case_of(job, method), torch.device("cpu"), warmup=1)["peak"]["bytes"]


def gradient_error(job: Job) -> float:
    """‖g − g*‖ / ‖g*‖ of the clipped sum g, with g* by a loop over samples in float64.

    C is the median of the norms, so that some samples are clipped.
    """
    import torch

    from paramscope.dpsgd.methods import make_method, make_step
    from paramscope.dpsgd.workloads import new_batch, new_model

    place = torch.device("cpu")
    case = case_of(job, job.method)
    exact = new_model(case.workload, torch.float32, place, job.seed).double()
    for module in exact.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # transformers' works in float32 inside
            module.forward = _rms_norm.__get__(module)
    batch = new_batch(case.workload, place, job.seed)
    gradients, norms = [], []
    for ids in batch.ids:
        scores = exact(input_ids=ids[None], use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(scores, ids[1:])
        own = torch.autograd.grad(loss, list(exact.parameters()))
        gradients.append(torch.cat([g.flatten() for g in own]))
        norms.append(float(gradients[-1].norm()))
    C = sorted(norms)[len(norms) // 2] * (1.0 if len(norms) > 1 else 0.5)
    right = sum(min(1.0, C / n) * g for g, n in zip(gradients, norms, strict=True))
    model = new_model(case.workload, torch.float32, place, job.seed)
    case = case_of(job, job.method, noise_multiplier=0.0, max_norm=C)
    method = make_method(case.method, model, case.privacy, case.options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = make_step(method, model, optimizer, case.privacy, job.seed)
    method.forward(batch)
    method.backward()
    step.step()  # divides by B, and Opacus' hooks clip in it
    found = torch.cat([p.grad.flatten() for p in model.parameters()]).double() * job.samples
    return float((found - right).norm() / right.norm())


def _rms_norm(self, x):
    """LlamaRMSNorm in the input's own format."""
    import torch

    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
