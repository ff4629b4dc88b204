"""Checkpoints of pruned models as bit masks and kept values.

A masked weight W of n values is stored as `W.mask`, n bits in order of the flattened weight,
the first in the lowest bit of the first byte, and `W.values`, its kept values in that order
and in the weight's own format. At density .1 in 16 bit that is .1625 of the dense weight. The
mask is the mask itself: a kept value may be 0. All else is stored as it is, tied tensors once.

The file has a name of its own, since transformers would fill the weights that it misses in a
`model.safetensors` with random ones.
"""

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from paramscope.compression.bits import pack, unpack
from paramscope.errors import ArtifactError, RequestError
from paramscope.models.folders import copy_tokenizer

FILE = "compact.safetensors"
FORMAT = "paramscope compact 1"  # the one key of the metadata: two would be in any order
GENERATION = "generation_config.json"


class Sizes(TypedDict):
    """Bytes of a model's tensors, compact and dense: of all, and of the masked weights alone."""

    compact_bytes: int
    dense_bytes: int
    masked_compact_bytes: int
    masked_dense_bytes: int


def save_compact(model: PreTrainedModel, masks: Mapping[str, Tensor], folder: Path) -> None:
    """Write the config and the compact tensors into `folder`, which is there.

    Raises:
        RequestError: a mask of no parameter or of another shape, or a pruned value that is
            not 0, and so would be lost.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in _tensors(model).items():
        tensor = tensor.detach().cpu()
        if name not in masks:
            stored[name] = tensor.contiguous()
            continue
        mask = masks[name].cpu()
        fits = mask.shape == tensor.shape and mask.dtype == torch.bool
        if not fits or tensor[~mask].any():
            raise RequestError(f"mask {name}: not this weight's; give the masks it was pruned by")
        stored[f"{name}.mask"] = pack(mask)
        stored[f"{name}.values"] = tensor[mask]
        shapes[name] = list(tensor.shape)
    if len(shapes) < len(masks):
        raise RequestError(f"mask {min(set(masks) - set(shapes))}: the model has no such parameter")
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    save_file(stored, folder / FILE, {FORMAT: json.dumps(shapes)})


def load_compact(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The model as it was saved, bit by bit, in eval mode, and its masks; both on `device`.

    `dtype` is its format, where that is not to be the stored one.

    Raises:
        ArtifactError: not a compact folder, or one whose tensors don't fit together.
    """
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    with _opened(folder) as (file, shapes):
        for name, shape in shapes.items():
            masks[name], weight = _dense(folder, name, shape, file)
            tensors[name] = weight
        inside = {f"{name}.{part}" for name in shapes for part in ("mask", "values")}
        tensors |= {name: file.get_tensor(name) for name in set(file.keys()) - inside}
    model = _empty_model(folder)
    _fill(model, tensors, folder)
    if dtype is not None:
        model = model.to(dtype)
    return model.eval().to(device), {name: mask.to(device) for name, mask in masks.items()}


def expand(folder: Path, output: Path) -> None:
    """Write a compact folder's model to `output` as transformers does, its tokenizer along.

    Raises:
        ArtifactError: as `load_compact`.
    """
    model, _ = load_compact(folder, torch.device("cpu"))
    model.save_pretrained(output)
    copy_tokenizer(folder, output)
    if (folder / GENERATION).is_file():
        shutil.copyfile(folder / GENERATION, output / GENERATION)


def is_compact(folder: Path) -> bool:
    """Whether a folder holds a compact checkpoint."""
    return (folder / FILE).is_file()


def compact_sizes(model: nn.Module, masks: Mapping[str, Tensor]) -> Sizes:
    """What a model takes in a compact checkpoint and in a dense one, without their headers."""
    sizes = Sizes(compact_bytes=0, dense_bytes=0, masked_compact_bytes=0, masked_dense_bytes=0)
    for name, tensor in _tensors(model).items():
        compact = tensor.nbytes
        if name in masks:
            bits, kept = masks[name].numel(), int(masks[name].sum())
            compact = (bits + 7) // 8 + kept * tensor.element_size()
            sizes["masked_compact_bytes"] += compact
            sizes["masked_dense_bytes"] += tensor.nbytes
        sizes["compact_bytes"] += compact
        sizes["dense_bytes"] += tensor.nbytes
    return sizes


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, tied tensors under their first name alone."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
    return {name: state[name] for name in first.values()}


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Any, dict[str, list[int]]]]:
    """The open file of a compact folder, and the shapes of its masked weights."""
    path = folder / FILE
    if not path.is_file():
        raise ArtifactError(f"{folder}: no compact checkpoint; it has no {FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if FORMAT not in about:
                raise ArtifactError(f"{path}: is not of the format '{FORMAT}'; make it anew")
            yield file, json.loads(about[FORMAT])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable compact checkpoint: {error}") from error


def _dense(folder: Path, name: str, shape: list[int], file: Any) -> tuple[Tensor, Tensor]:
    """A masked weight's mask and the weight itself, both of `shape`."""
    bits, values = file.get_tensor(f"{name}.mask"), file.get_tensor(f"{name}.values")
    n = math.prod(shape)
    if len(bits) != (n + 7) // 8:
        raise ArtifactError(
            f"{folder / FILE}: {name} has {len(values)} values, but a mask of {len(bits)} bytes "
            f"for {n} weights; make it anew"
        )
    mask = unpack(bits, shape)
    if int(mask.sum()) != len(values):
        raise ArtifactError(
            f"{folder / FILE}: {name} has {len(values)} values, but a mask of {int(mask.sum())}; "
            "make it anew"
        )
    weight = values.new_zeros(shape)
    weight[mask] = values
    return mask, weight


def _empty_model(folder: Path) -> PreTrainedModel:
    """A model of the folder's config whose weights are yet to be filled in."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: its config gives no model: {error}") from error
    model.tie_weights()
    return model


def _fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Make `tensors` the model's own, each in its own format; what is tied stays so.

    Raises:
        ArtifactError: a tensor is missing, left over, or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted | given):
        if wanted.get(name) != given.get(name):
            raise ArtifactError(
                f"{folder / FILE}: {name} is {given.get(name)}, but the config's model has "
                f"{wanted.get(name)}; make it anew"
            )
    model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie_weights()
