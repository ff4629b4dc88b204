"""The file that a finetuning which was cut off goes on from, bit by bit."""

import hashlib
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
    digest = hashlib.sha256(json.dumps([asdict(schedule), seed], sort_keys=True).encode())
    parts = [[text.ids, text.lengths] for text in texts]
    parts += [[] if model is None else [*model.parameters()] for model in models]
    for tensors in parts:
        digest.update(f"{len(tensors)} tensors".encode())
        for tensor in tensors:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    tensors = {f"weights.{name}": value for name, value in kept_state(model, masks).items()}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    tensors |= {
        f"optimizer.{i}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    tensors |= {f"random.{name}": value for name, value in _random_state().items()}
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
    restore_kept(model, masks, _part(content, "weights"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in _part(content, "optimizer").items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = int(value) if key == "step" else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, value in _part(content, "random").items():
        _set_random_state(name, value)
    best = {name: value.clone() for name, value in _part(content, "best").items()}
    return Progress(best, **json.loads(content["progress"]))


def _part(content: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{part}."): value
        for name, value in content.items()
        if name.startswith(f"{part}.")
    }


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
