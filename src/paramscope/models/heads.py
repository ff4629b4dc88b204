"""A language model's head, and the model without it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import UnsupportedModelError
from paramscope.models.load import logits


def linear_head(model: PreTrainedModel) -> nn.Linear:
    """The head: a linear layer on the last hidden state, with a bias or without.

    Raises:
        UnsupportedModelError: the head is of another kind.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"the head is {type(head).__name__}, but a linear one is needed here"
        )
    return head


@contextmanager
def without_head(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model has no head, and `last_hidden` says what that would get."""
    head = linear_head(model)
    path = next(name for name, module in model.named_modules() if module is head)
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, name, nn.Identity())
    try:
        yield
    finally:
        setattr(owner, name, head)


def last_hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The head's input, [B, T, d], for right-padded ids [B, T], in a block of `without_head`.

    Raises:
        UnsupportedModelError: the model does something to its logits after the head.
    """
    seen: list[Tensor] = []
    place = model.get_output_embeddings()
    handle = place.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        hidden = logits(model, ids)
    finally:
        handle.remove()
    if len(seen) != 1 or not _same(seen[0], hidden):
        raise UnsupportedModelError(
            f"{type(model).__name__}'s logits are not its head's own output"
        )
    return hidden


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory; asked of fake ones, too, which have no address."""
    storage = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return storage and a.storage_offset() == b.storage_offset() and a.shape == b.shape
