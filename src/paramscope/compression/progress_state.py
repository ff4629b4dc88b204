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
from paramscope.models.saved_state import named, optimizer_state, part_of, restore_optimizer
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
    """

    best: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    epoch_loss: float = 0.0
    epoch_wall_s: float = 0.0
    total_peak_bytes: int = 0


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
    tensors |= named("random", _random_state())
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
    for name, value in part_of(content, "random").items():
        _set_random_state(name, value)
    best = {name: value.clone() for name, value in part_of(content, "best").items()}
    return Progress(best, **json.loads(content["progress"]))


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_random_state(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state.clone())
    elif torch.cuda.is_available():
        torch.cuda.set_rng_state(state.clone(), device)
