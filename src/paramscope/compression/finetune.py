"""Finetuning what a pruned model kept."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.compression.epoch_memory import EpochMemory
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.masked_step import take_step
from paramscope.compression.progress_state import (
    Progress,
    fingerprint,
    load_progress,
    save_progress,
)
from paramscope.compression.schedule import Schedule
from paramscope.compression.schemas import EPOCHS
from paramscope.compression.signed_zeros import apply_masks, kept_state, masks_of, restore_kept
from paramscope.errors import RequestError
from paramscope.memory import Microbatch
from paramscope.models.sequences import Sequences


@dataclass(frozen=True)
class Judged:
    """A model's perplexity as it is told, and on other text, by which the best epoch is chosen."""

    told: float
    validation: float


Evaluate = Callable[[PreTrainedModel], Judged]


@dataclass(frozen=True)
class Step:
    """What a step showed: loss in nats a token, and the masked gradient's norm before clipping."""

    step: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rate: float
    perplexity: float


@dataclass(frozen=True)
class Finetuned:
    """The rows of epochs.parquet, and the epoch whose weights the model was left with."""

    epochs: pd.DataFrame
    best_epoch: int


def finetune(
    model: PreTrainedModel,
    masks: Mapping[str, Tensor],
    text: Sequences,
    evaluate: Evaluate,
    schedule: Schedule,
    *,
    seed: int,
    teacher: PreTrainedModel | None = None,
    judged_by: Iterable[Sequences] = (),
    state: Path | None = None,
    save_every: int = 50,
    on_step: Callable[[Step], None] | None = None,
    microbatch: Microbatch | None = None,
) -> Finetuned:
    """Finetune `model` in place; what `masks` prunes stays 0, and the best epoch is kept.

    Dropout is off: a block that checkpointing runs again must be the block that ran. The
    text is shuffled anew each epoch by `seed`, and no result hangs on anything else.

    Args:
        model: in any format; 16-bit weights are trained by float32 master copies.
        masks: True where a weight was kept, by parameter name, on any device.
        text: sequences to train on; pads count in nothing.
        evaluate: gives the perplexities of an epoch; called before the first step and after
            each epoch.
        schedule: how to train.
        seed: of the shuffling.
        teacher: the dense model, where the schedule distils.
        judged_by: the texts that `evaluate` measures on, by which `state` knows its own run.
        state: a file to go on from if it is there, which is written at each epoch's end and
            every `save_every` steps. Left where it is at the end.
        save_every: steps.
        on_step: is told of every step.
        microbatch: sequences a forward, halved where memory runs out; else that ends it.

    Raises:
        DeviceError: memory runs out with one sequence a forward.
        RequestError: masks of another model, distillation without a teacher, or a loss,
            gradient or perplexity that is not finite.
        ArtifactError: `state` is of another finetuning, or damaged.
    """
    if schedule.distillation and teacher is None:
        raise RequestError("distillation needs the dense model as its teacher; give it, or 0")
    teacher = teacher if schedule.distillation else None
    on_device = text.to(model.device)
    return _Run(
        model,
        masks,
        on_device,
        evaluate,
        tuple(judged_by),
        schedule,
        seed,
        teacher,
        state,
        save_every,
        on_step,
        microbatch,
    ).finish()


@dataclass
class _Run:
    """One finetuning: what stays the same over it, and its progress."""

    model: PreTrainedModel
    masks: Mapping[str, Tensor]
    text: Sequences
    evaluate: Evaluate
    judged_by: tuple[Sequences, ...]
    schedule: Schedule
    seed: int
    teacher: PreTrainedModel | None
    state: Path | None
    save_every: int
    on_step: Callable[[Step], None] | None
    microbatch: Microbatch | None

    def __post_init__(self) -> None:
        apply_masks(self.model.eval(), self.masks)
        self.optimizer = MaskedAdamW(
            self.model.named_parameters(),
            self.masks,
            lr=self.schedule.peak_rate,
            weight_decay=self.schedule.weight_decay,
        )
        self.memory = EpochMemory(self.model.device)
        self.total = self.schedule.total_steps(len(self.text))
        self.identity = ""
        if self.state is not None:
            texts, models = (self.text, *self.judged_by), (self.model, self.teacher)
            self.identity = fingerprint(self.schedule, self.seed, texts, models)
        self.progress = Progress()

    def finish(self) -> Finetuned:
        """Take up the run where it stands, and bring it to its end."""
        if self.state is not None and self.state.exists():
            self.progress = load_progress(
                self.state, self.identity, self.model, self.masks, self.optimizer
            )
            self.memory.total_peak = self.progress.total_peak_bytes
            if self.microbatch is not None:
                self.microbatch.lower(self.progress.taken)
        else:
            self._begin_epoch()
            self._end_epoch(0.0)
        with tqdm(
            total=self.total, initial=self.progress.step, desc="finetuning", unit="step"
        ) as bar:
            while self.progress.step < self.total and not self._stale():
                self._epoch(bar)
        restore_kept(self.model, self.masks, self.progress.best)
        best = _best(self.progress.rows)
        rows = [row | {"best": i == best} for i, row in enumerate(self.progress.rows)]
        return Finetuned(pd.DataFrame(rows, columns=EPOCHS.names), best)

    def _epoch(self, bar: "tqdm[Any]") -> None:
        progress, rate = self.progress, 0.0
        epoch = len(progress.rows)
        self._begin_epoch()
        for batch in self._batches(epoch):
            rate = self.schedule.rate(progress.step + 1, self.total)
            loss, norm = take_step(
                self.model,
                self.optimizer,
                batch,
                rate,
                self.schedule,
                self.teacher,
                self.microbatch,
            )
            progress.step += 1
            progress.epoch_loss += loss
            self.memory.sample()
            perplexity = progress.rows[-1]["perplexity"]
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", perplexity=f"{perplexity:.2f}")
            if progress.step % self.save_every == 0:
                self._save(time.perf_counter() - self.began)
            if self.on_step is not None:
                self.on_step(Step(progress.step, epoch, loss, norm, rate, perplexity))
        self._end_epoch(rate)

    def _batches(self, epoch: int) -> Iterator[Sequences]:
        """The epoch's batches that are still to come, each cut to its longest sequence."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "shuffle", epoch))
        order = torch.randperm(len(self.text), generator=generator)
        before = (epoch - 1) * self.schedule.steps_an_epoch(len(self.text))
        batches = order.split(self.schedule.batch)
        for index in batches[self.progress.step - before : self.total - before]:
            on_device = index.to(self.text.ids.device)
            names = tuple(self.text.names[i] for i in index.tolist())
            batch = Sequences(self.text.ids[on_device], self.text.lengths[on_device], names)
            yield from batch.batches(len(batch))

    def _begin_epoch(self) -> None:
        self.began = time.perf_counter()
        self.memory.start()

    def _end_epoch(self, rate: float) -> None:
        """Judge the model as it is, add the epoch's row, and store the progress."""
        progress = self.progress
        assert all(
            torch.equal(mask, self.masks[name].to(mask.device))
            for name, mask in masks_of(self.model, self.masks).items()
        )
        judged = self.evaluate(self.model)
        perplexity = judged.told
        if math.isnan(judged.told) or math.isnan(judged.validation):
            raise RequestError(
                f"the perplexity after epoch {len(progress.rows)} is NaN; check the evaluation "
                "text, or give a lower learning rate"
            )
        rows = progress.rows
        change = 100 * (perplexity / rows[-1]["perplexity"] - 1) if rows else None
        steps = progress.step - (rows[-1]["step"] if rows else 0)
        row = {
            "epoch": len(rows),
            "step": progress.step,
            "perplexity": perplexity,
            "change_percent": change,
            "validation_perplexity": judged.validation,
            "training_loss": progress.epoch_loss / steps if steps else None,
            "learning_rate": rate,
            "wall_s": progress.epoch_wall_s + time.perf_counter() - self.began,
        }
        rows.append(row | self.memory.columns())
        if _best(rows) == len(rows) - 1:
            progress.best = kept_state(self.model, self.masks)
        progress.epoch_loss = progress.epoch_wall_s = 0.0
        self._save(0.0)

    def _save(self, wall_s: float) -> None:
        """Store the progress, `wall_s` into the running epoch."""
        if self.state is None:
            return
        progress = self.progress
        earlier = progress.epoch_wall_s
        progress.epoch_wall_s += wall_s
        progress.total_peak_bytes = self.memory.total_peak
        progress.taken = None if self.microbatch is None else self.microbatch.taken
        save_progress(self.state, self.identity, progress, self.model, self.masks, self.optimizer)
        progress.epoch_wall_s = earlier

    def _stale(self) -> bool:
        """Whether so many epochs as the schedule has patience for were no better."""
        rows, patience = self.progress.rows, self.schedule.patience
        return bool(patience) and len(rows) - 1 - _best(rows) >= patience


def _best(rows: list[dict[str, Any]]) -> int:
    """The epoch of the lowest perplexity on the validation text, the first of equals."""
    return min(range(len(rows)), key=lambda i: float(rows[i]["validation_perplexity"]))
