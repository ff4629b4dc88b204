"""The file that a finetuning which was cut off goes on from, bit by bit."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tensors import read_tensors, write_tensors
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.schedule import Schedule
from paramscope.compression.signed_zeros import kept_state, restore_kept
from paramscope.errors import ArtifactError
from paramscope.models import saved_state
from paramscope.models.saved_state import (
    named,
    optimizer_state,
    part_of,
    random_state,
    restore_optimizer,
    restore_random_state,
)
from paramscope.models.sequences import Sequences


@dataclass
class Progress:
    """How far a finetuning is.

    Attributes:
        best: the parameters of the best epoch so far (`signed_zeros.kept_state`).
        rows: the finished epochs' rows of epochs.parquet.
        step: steps taken in all.
        epoch_loss: the sum of the running epoch's training losses.
        epoch_wall_s: what earlier processes took over the running epoch.
        total_peak_bytes: the most memory that any process held so far.
        taken: sequences a forward that earlier processes came down to; None where none can.
    """

    best: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    epoch_loss: float = 0.0
    epoch_wall_s: float = 0.0
    total_peak_bytes: int = 0
    taken: int | None = None


def fingerprint(
    schedule: Schedule,
    seed: int,
    texts: Iterable[Sequences],
    models: Iterable[PreTrainedModel | None],
) -> str:
    """SHA-256 of all that decides a finetuning: the masks are in the marked model's bits."""
    parts = [[text.ids, text.lengths] for text in texts]
    parts += [[] if model is None else [*model.parameters()] for model in models]
    return saved_state.fingerprint([asdict(schedule), seed], parts)


def save_progress(
    path: Path,
    identity: str,
    progress: Progress,
    model: PreTrainedModel,
    masks: Mapping[str, Tensor],
    optimizer: MaskedAdamW,
) -> None:
    """Write all that `load_progress` needs, whole or not at all."""
    plain = {name: value for name, value in vars(progress).items() if name != "best"}
    tensors = named("weights", kept_state(model, masks)) | named("best", progress.best)
    tensors |= named("optimizer", optimizer_state(optimizer))
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    tensors |= named("random", random_state(*devices))
    made_by = provenance("compression.finetune", {"identity": identity})
    write_tensors(path, {"identity": identity, "progress": json.dumps(plain), **tensors}, made_by)


def load_progress(
    path: Path,
    identity: str,
    model: PreTrainedModel,
    masks: Mapping[str, Tensor],
    optimizer: MaskedAdamW,
) -> Progress:
    """Put model, optimizer and random generators where they stood; return the progress.

    Raises:
        ArtifactError: the file is damaged, or of a finetuning other than `identity`.
    """
    content = read_tensors(path)
    if content.get("identity") != identity:
        raise ArtifactError(
            f"{path}: is of a finetuning with another schedule, seed, mask, model or text (to "
            "train on, or to judge by); delete it to begin anew"
        )
    restore_kept(model, masks, part_of(content, "weights"))
    restore_optimizer(optimizer, part_of(content, "optimizer"))
    restore_random_state(part_of(content, "random"))
    best = {name: value.clone() for name, value in part_of(content, "best").items()}
    return Progress(best, **json.loads(content["progress"]))
