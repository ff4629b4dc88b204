"""Training the base from scratch, and finetuning it on the members."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.memory import Microbatch, fitting
from paramscope.models.losses import document_losses, mean_loss, token_log_probabilities
from paramscope.models.saved_state import random_state, restore_random_state
from paramscope.models.sequences import Sequences

TRAINING = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("epoch", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("training_loss", pa.float64()),
        pa.field("member_loss", pa.float64(), nullable=False),
        pa.field("nonmember_loss", pa.float64(), nullable=False),
        pa.field("auc", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: AdamW, linear warm-up, cosine to a tenth of the rate.

    Attributes:
        epochs: passes over the text, at most where `target_auc` is given.
        batch: documents a step.
        learning_rate: its peak.
        evaluate_every: steps between two evaluations.
        target_auc: stop when the loss attack's AUC on the target's members reaches this.
    """

    epochs: int
    batch: int
    learning_rate: float
    evaluate_every: int
    target_auc: float | None = None
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Progress:
    """A row of training.parquet: losses in nats a token, AUC of the loss attack."""

    step: int
    epoch: float
    learning_rate: float
    training_loss: float | None
    member_loss: float
    nonmember_loss: float
    auc: float


Judge = Callable[[PreTrainedModel], tuple[float, float, float]]


def membership_judge(
    members: Sequences, nonmembers: Sequences, batch_size: int | Microbatch
) -> Judge:
    """A function that gives a model's member loss, non-member loss and loss-attack AUC."""
    from sklearn.metrics import roc_auc_score

    def losses(model: PreTrainedModel, sequences: Sequences) -> Tensor:
        log_probs = token_log_probabilities(model, sequences, batch_size)
        return document_losses(log_probs, sequences.lengths).cpu()

    def judge(model: PreTrainedModel) -> tuple[float, float, float]:
        member, nonmember = losses(model, members), losses(model, nonmembers)
        labels = [1] * len(member) + [0] * len(nonmember)
        auc = roc_auc_score(labels, -torch.cat([member, nonmember]).numpy())
        return float(member.mean()), float(nonmember.mean()), float(auc)

    return judge


def train(
    model: PreTrainedModel,
    text: Sequences,
    schedule: Schedule,
    judge: Judge,
    seed: int,
    microbatch: Microbatch | None = None,
) -> pd.DataFrame:
    """Train `model` in place on `text`; return the rows of training.parquet.

    Documents are shuffled anew each epoch by `seed`, which dropout hangs on, too. The model is
    left in eval mode, at the first evaluation that reached `target_auc`, or at the end.

    A step's documents go through the model at once; where memory runs out, given a `microbatch`,
    the step is begun anew in several forwards, whose gradients weigh by their tokens.

    Raises:
        DeviceError: memory runs out with one document a forward.
    """
    torch.manual_seed(seed)
    steps_an_epoch = math.ceil(len(text) / schedule.batch)
    total = steps_an_epoch * schedule.epochs
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        betas=(0.9, 0.95),
    )
    rows = [Progress(0, 0.0, 0.0, None, *judge(model))]
    running: list[Tensor] = []
    with tqdm(total=total, desc="training", unit="step") as bar:
        for step, batch in enumerate(_shuffled(text, schedule, seed), start=1):
            rate = schedule.learning_rate * rate_at(step, total, schedule.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            running.append(_step(model, batch, optimizer, schedule.clip, microbatch))
            bar.update()
            if step % schedule.evaluate_every and step != total:
                continue
            loss = float(torch.stack(running).mean())
            running.clear()
            rows.append(Progress(step, step / steps_an_epoch, rate, loss, *judge(model)))
            bar.set_postfix(
                loss=f"{loss:.3f}",
                member=f"{rows[-1].member_loss:.3f}",
                nonmember=f"{rows[-1].nonmember_loss:.3f}",
                auc=f"{rows[-1].auc:.3f}",
            )
            if schedule.target_auc is not None and rows[-1].auc >= schedule.target_auc:
                break
    model.eval()
    return pd.DataFrame([asdict(row) for row in rows])


def _step(
    model: PreTrainedModel,
    batch: Sequences,
    optimizer: torch.optim.Optimizer,
    clip: float,
    microbatch: Microbatch | None,
) -> Tensor:
    model.train()
    before = random_state(model.device)

    def gradients(size: int) -> Tensor:
        optimizer.zero_grad()  # this and dropout's state: of an attempt that ran out of memory
        restore_random_state(before)
        losses = []
        for part in batch.batches(size):
            loss = mean_loss(model, part) * (part.n_predicted / batch.n_predicted)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    loss = fitting(microbatch or len(batch), gradients, len(batch))
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return loss


def _shuffled(text: Sequences, schedule: Schedule, seed: int) -> Iterator[Sequences]:
    for epoch in range(schedule.epochs):
        generator = torch.Generator().manual_seed(seed_of(seed, "shuffle", epoch))
        order = torch.randperm(len(text), generator=generator)
        for index in order.split(schedule.batch):
            lengths = text.lengths[index]
            ids = text.ids[index, : int(lengths.max())]
            yield Sequences(ids, lengths, tuple(text.names[i] for i in index.tolist()))


def rate_at(step: int, total: int, warmup_share: float) -> float:
    """Share of its peak that the rate has at a step, from 1 on, of `total`."""
    warmup = max(1, round(total * warmup_share))
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.55 + 0.45 * math.cos(math.pi * done)
