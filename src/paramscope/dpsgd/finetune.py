"""Private finetuning: noisy means of clipped gradients over batches that chance makes up.

What is for release is the model, and what follows from the plan alone. What was seen of the
samples on the way (`Unreleased`) is private, as is the file that a run goes on from.

Source: Abadi et al. 2016 (arXiv:1607.00133).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tensors import read_tensors, write_tensors
from paramscope.dpsgd.methods import NoisyStep, make_method
from paramscope.dpsgd.noise import Noise
from paramscope.dpsgd.plan import Plan
from paramscope.dpsgd.privacy import Clipped, Privacy
from paramscope.dpsgd.trained import check_private
from paramscope.errors import ArtifactError, RequestError
from paramscope.memory import Microbatch, fitting
from paramscope.models.saved_state import (
    fingerprint,
    named,
    optimizer_state,
    part_of,
    restore_optimizer,
)
from paramscope.models.sequences import Sequences


@dataclass
class Unreleased:
    """What was seen of the samples, a number a step: private, not for release.

    Attributes:
        batch: samples that chance put into the step.
        clipped: of them, those whose gradient was scaled down; None where layers are clipped
            apart.
        dropped: of them, those that were left out since their gradient was not finite.
    """

    batch: list[int] = field(default_factory=list)
    clipped: list[int | None] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


def poisson_batches(
    samples: int, sample_rate: float, steps: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """The places of each step's samples, each in it with probability `sample_rate`; some empty.

    Drawn as they are asked for, so the generator stands behind the last batch.
    """
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    yield from UniformWithReplacementSampler(
        num_samples=samples, sample_rate=sample_rate, generator=generator, steps=steps
    )


def finetune(
    model: PreTrainedModel,
    text: Sequences,
    plan: Plan,
    *,
    seed: int,
    state: Path | None = None,
    save_every: int = 50,
    on_step: Callable[[int], None] | None = None,
    microbatch: Microbatch | None = None,
) -> Unreleased:
    """Finetune `model` in place on `text`, a sample a sequence; it is left in eval mode.

    Dropout is off. A batch goes through the model in parts of samples of like length, whose
    clipped sums add up; noise is added once a step, and the sum divided by the expected batch,
    whatever the step's own is: also where it is empty.

    Batches and noise follow from `seed` together with the model, the text and all of the plan
    that changes a step: two runs share no noise, or setting them against each other would take
    it out.

    Args:
        model: has not seen the text; its trained parameters require a gradient.
        text: the samples.
        plan: how.
        seed: of the run; who knows it knows the noise.
        state: a file to go on from if it is there, to the same bits, which is written every
            `save_every` steps and at the end. Private. Left where it is.
        save_every: steps.
        on_step: is told of each step's number.
        microbatch: the physical batch, halved where memory runs out; else that ends it. What it
            came down to is private: it hangs on which samples chance drew.

    Raises:
        DeviceError: memory runs out with one sample a forward.
        RequestError: a model that the method can't do, a sample's gradient that is not finite
            where the method can't drop it, or weights that are no longer finite.
        ArtifactError: `state` is of another finetuning, or damaged.
    """
    run = _Run(model.eval(), text.to(model.device), plan, seed, state, save_every, microbatch)
    run.finish(on_step)
    return run.seen


@dataclass
class _Run:
    """One finetuning: what stays the same over it, and how far it is."""

    model: PreTrainedModel
    text: Sequences
    plan: Plan
    seed: int
    state: Path | None
    save_every: int
    microbatch: Microbatch | None = None
    steps: int = 0
    seen: Unreleased = field(default_factory=Unreleased)

    def __post_init__(self) -> None:
        plan = self.plan
        expected = plan.sample_rate * len(self.text)
        privacy = Privacy(plan.max_norm, plan.noise_multiplier, expected)
        self.method = make_method(plan.method, self.model, privacy, plan.options)
        self.optimizer = torch.optim.AdamW(
            check_private(self.model), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        tensors = [[self.text.ids, self.text.lengths], [*self.model.parameters()]]
        own = fingerprint([plan.mechanism(), self.seed], tensors)
        self.identity = fingerprint([asdict(plan), own], [])
        self.noise = Noise(seed_of(own), self.model.device)
        self.end = NoisyStep(self.optimizer, self.model, privacy, self.noise)
        self.sampling = torch.Generator().manual_seed(seed_of(own, "sampling"))

    def finish(self, on_step: Callable[[int], None] | None) -> None:
        """Take up the run where it stands, and bring it to its end."""
        if self.state is not None and self.state.exists():
            self._load(self.state)
        left = self.plan.steps - self.steps
        batches = poisson_batches(len(self.text), self.plan.sample_rate, left, self.sampling)
        self.model.zero_grad(set_to_none=True)
        with tqdm(
            total=self.plan.steps, initial=self.steps, desc="private finetuning", unit="step"
        ) as bar:
            for places in batches:
                self._step(places)
                bar.update()
                if self.steps % self.save_every == 0 or self.steps == self.plan.steps:
                    self._save()
                if on_step is not None:
                    on_step(self.steps)

    def _step(self, places: list[int]) -> None:
        """One logical step on the samples at `places`."""
        rate = self.plan.rate(self.steps + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        told = fitting(
            self.microbatch or self.plan.physical_batch,
            lambda size: self._clipped(places, size),
            max(1, len(places)),
        )
        self.end.step()
        self.end.zero_grad()
        self.steps += 1
        whole = all(one.factors is not None for one in told)
        scaled = [(f < 1) & (f > 0) for one in told if (f := one.factors) is not None]
        self.seen.batch.append(len(places))
        self.seen.clipped.append(sum(int(s.sum()) for s in scaled) if whole else None)
        self.seen.dropped.append(sum(int(one.dropped.sum()) for one in told))

    def _clipped(self, places: list[int], size: int) -> list[Clipped]:
        """The clipped sum over the samples at `places`, `size` a forward, in `.grad`."""
        self.model.zero_grad(set_to_none=True)  # of an attempt that ran out of memory
        all_told = []
        for part in self._parts(places, size):
            self.method.forward(part)
            told = self.method.backward()
            assert told is not None  # all of PRIVATE_METHODS tell
            all_told.append(told)
        return all_told

    def _parts(self, places: list[int], size: int) -> Iterator[Sequences]:
        """The samples at `places`, the longest first, `size` at a time."""
        if places:
            index = torch.tensor(places, device=self.text.ids.device)
            names = tuple(self.text.names[place] for place in places)
            batch = Sequences(self.text.ids[index], self.text.lengths[index], names)
            yield from batch.by_length().batches(size)

    def _save(self) -> None:
        """Store the progress, of weights that are finite."""
        weights = dict(self.model.named_parameters())
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise RequestError(
                f"the weights are no longer finite after step {self.steps}; give a lower "
                "learning rate or less noise"
            )
        if self.state is None:
            return
        noise = {str(lane): value for lane, value in enumerate(self.noise.state())}
        taken = None if self.microbatch is None else self.microbatch.taken
        content: dict[str, Tensor | str] = {
            "identity": self.identity,
            "progress": json.dumps(
                {"steps": self.steps, "seen": asdict(self.seen), "taken": taken}
            ),
            **named("weights", weights),
            **named("optimizer", optimizer_state(self.optimizer)),
            **named("noise", noise),
            **named("sampling", {"state": self.sampling.get_state()}),
        }
        made_by = provenance("dpsgd.finetune", {"identity": self.identity})
        write_tensors(self.state, content, made_by)

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        content = read_tensors(path)
        if content.get("identity") != self.identity:
            raise ArtifactError(
                f"{path}: is of a finetuning with another plan, seed, model or text; delete it "
                "to begin anew"
            )
        weights = dict(self.model.named_parameters())
        for name, value in part_of(content, "weights").items():
            weights[name].copy_(value)
        restore_optimizer(self.optimizer, part_of(content, "optimizer"))
        lanes = part_of(content, "noise")
        self.noise.restore([lanes[str(lane)].clone() for lane in range(len(lanes))])
        self.sampling.set_state(part_of(content, "sampling")["state"].clone())
        progress = json.loads(content["progress"])
        self.steps, self.seen = progress["steps"], Unreleased(**progress["seen"])
        if self.microbatch is not None:
            self.microbatch.lower(progress["taken"])
