"""Values of small integer tensors among fake ones, and answers for what has none.

A fake tensor has a shape and no values, but a stage reads some: how long its sequences are,
which tokens are predicted, whether a loss is finite. Lengths and masks are small and hang on no
weight, so they are computed beside the fake run. What hangs on weights is answered as a sound run
would: what is asked of it is true, a number is 1, and of a mask a given share is set.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from paramscope.planner.dispatch import Uncompiled

LIMIT = 2**20  # elements of a tensor whose values are kept

SCALAR = torch.ops.aten._local_scalar_dense.default
NONZERO = torch.ops.aten.nonzero.default
EQUAL = torch.ops.aten.equal.default
INDEX = torch.ops.aten.index.Tensor
SUM = torch.ops.aten.sum.default
QUESTION = torch.ops.prim.device.default


class KnownValues(Uncompiled):
    """A context, inside a FakeTensorMode, in which small integer and bool tensors have values.

    Args:
        share: of a larger mask, or of one that hangs on weights, so much is set: the nearest
            whole number of its elements.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self._share = share
        self._values = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and beside it the same on the values where all are known."""
        if func is QUESTION:
            return args[0].device  # asked at almost every operation: answered without a round
        named = dict(kwargs or {})
        given = [x for x in tree_leaves((args, named)) if isinstance(x, Tensor)]
        known = all(self._value(x) is not None for x in given)
        if func is SCALAR:
            return self._scalar(args[0])
        if func is EQUAL:
            if not known:
                return True
            with _disable_current_modes():
                return func(*self._real(args))
        if func is NONZERO and not known:
            shape = self._count(args[0]), args[0].dim()
            return torch.empty(shape, dtype=torch.int64, device=args[0].device)
        if func is INDEX and not known and _by_mask(*args):
            x, (mask,) = args
            return x.new_empty(self._chosen(mask), *x.shape[mask.dim() :])
        try:
            result = func(*args, **named)
        except DynamicOutputShapeException:
            if not known:
                raise
            return self._shaped(func, args, named)
        if func is SUM and not known and args[0].dtype == torch.bool:
            with _disable_current_modes():
                self._values[result] = torch.tensor(self._count(args[0]))
        elif known:
            self._follow(func, args, named, result)
        else:
            self._forget(_written(func, args, named))
        return result

    def _value(self, x: Tensor) -> Tensor | None:
        """The values of a tensor; a real one is its own."""
        if not isinstance(x, FakeTensor):
            return x
        found: Tensor | None = self._values.get(x)
        return found

    def _follow(self, func: Any, args: Any, named: Any, result: Any) -> None:
        """Give `result` its values, if it is of integers and small."""
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not made or not all(_kept(x) for x in made):
            return
        with _disable_current_modes():
            real = func(*self._real(args), **self._real(named))
            for x, value in zip(made, tree_leaves(real), strict=True):
                if x not in self._values:
                    self._values[x] = value

    def _forget(self, written: Iterable[object]) -> None:
        """Let go what is known of tensors that were written to, and of their views."""
        known = [x for x in written if isinstance(x, Tensor) and x in self._values]
        gone = {self._values[x].untyped_storage().data_ptr() for x in known}
        if gone:
            for x, value in list(self._values.items()):
                if value.untyped_storage().data_ptr() in gone:
                    del self._values[x]

    def _scalar(self, x: Tensor) -> Any:
        value = self._value(x)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        try:
            return SCALAR(x)  # such as an optimizer's step, which torch itself follows
        except DataDependentOutputException:
            if x.dtype == torch.bool:
                return True
            return 1.0 if x.dtype.is_floating_point else 0

    def _shaped(self, func: Any, args: Any, named: Any) -> Any:
        """The result of an operation whose shape hangs on values, all of which are known."""
        with _disable_current_modes():
            real = func(*self._real(args), **self._real(named))

        def fake(value: Tensor) -> Tensor:
            result = torch.empty(value.shape, dtype=value.dtype)
            self._values[result] = value
            return result

        return tree_map_only(Tensor, fake, real)

    def _chosen(self, mask: Tensor) -> int:
        """How many a mask chooses; all, where its values are not known."""
        value = self._value(mask)
        if value is None:
            return mask.numel()
        with _disable_current_modes():
            return int(value.sum())

    def _real(self, given: Any) -> Any:
        return tree_map_only(Tensor, self._value, given)

    def _count(self, x: Tensor) -> int:
        return round(self._share * x.numel())


def _by_mask(x: Tensor, index: Sequence[Tensor | None]) -> bool:
    """Whether `x` is chosen from by one mask of its first sizes."""
    mask = index[0]
    if len(index) > 1 or mask is None or mask.dtype != torch.bool:
        return False
    return mask.shape == x.shape[: mask.dim()]


def _written(func: Any, args: Any, named: Mapping[str, Any]) -> list[object]:
    """Those of an operation's arguments that it writes to."""
    if not func._schema.is_mutable:
        return []
    by_place = zip(func._schema.arguments, args, strict=False)
    found = [value for argument, value in by_place if argument.is_write]
    by_name = (a for a in func._schema.arguments if a.is_write and a.name in named)
    return tree_leaves([*found, *(named[argument.name] for argument in by_name)])


def _kept(x: Tensor) -> bool:
    plain = not (x.dtype.is_floating_point or x.dtype.is_complex)
    return plain and isinstance(x, FakeTensor) and x.numel() <= LIMIT
