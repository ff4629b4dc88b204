"""Live tensor bytes: how much memory the tensors of a program hold, and at most held.

Counts storages, which tensors share, below autograd: what the forward keeps for the backward
and what the backward itself makes is seen like anything else. What a kernel allocates and
frees within one operation is not. Works for any device and for fake tensors alike.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramscope.errors import RequestError

FRESH = (torch.ops.aten.lift_fresh.default,)  # how the new tensor of `torch.tensor` comes along


@dataclass
class _Storage:
    """A storage that is counted: its bytes, and a reference that tells when it is gone."""

    bytes: int
    gone: "weakref.ref[UntypedStorage]"


class MemoryTracker(TorchDispatchMode):
    """A context in which every storage that an operation makes or resizes is counted.

    A storage counts from the operation that makes it until it is freed, also where that comes
    after the context's end; tensors made outside count once they are given to `register`, or
    from their first resize inside. A storage resized past all operations
    (`storage.resize_`) is noticed at the next operation on it.

    Attributes:
        live_bytes: bytes of the storages that are alive.
        peak_bytes: the most that `live_bytes` has been since the start or `reset_peak`.
        peak_operation: the operation that made the peak ("aten.mm.default"), "register"
            where registered tensors alone did, "" where nothing was counted.
    """

    def __init__(self) -> None:
        # torch declares no types for its mode's constructor
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_operation = ""
        self._storages: dict[int, _Storage] = {}

    def register(self, tensors: Iterable[Tensor]) -> Self:
        """Count tensors that exist already, such as a model's parameters; returns itself."""
        for storage in _storages(tensors):
            self._count(storage)
        self._changed("register")
        return self

    def reset_peak(self) -> None:
        """Start a new peak from what is alive now."""
        self.peak_bytes, self.peak_operation = 0, ""
        self._changed("reset")

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, then count what it made or resized."""
        kwargs = kwargs or {}
        before = {s._cdata: s.nbytes() for s in _storages(tree_leaves((args, kwargs)))}
        result = func(*args, **kwargs)
        if func in FRESH:
            before = {}
        for storage in _storages(tree_leaves((args, kwargs, result))):
            key, size = storage._cdata, storage.nbytes()
            if key in self._storages or before.get(key) != size:
                self._count(storage)
        self._changed(str(func))
        return result

    def _count(self, storage: UntypedStorage) -> None:
        """Bring a storage's count up to its size, from 0 where it is new."""
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is None:
            tracker = weakref.ref(self)

            def free(gone: object) -> None:
                owner = tracker()
                if owner is not None:
                    owner.live_bytes -= owner._storages.pop(key).bytes

            known = self._storages[key] = _Storage(0, weakref.ref(storage, free))
        self.live_bytes += size - known.bytes
        known.bytes = size

    def _changed(self, operation: str) -> None:
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_operation = self.live_bytes, operation


def _storages(leaves: Iterable[object]) -> list[UntypedStorage]:
    """The storages of the tensors among `leaves`, a sparse tensor's parts included."""
    found = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            continue
        if leaf.layout is torch.strided:
            found.append(leaf.untyped_storage())
        elif leaf.layout is torch.sparse_coo:
            found += _storages((leaf._indices(), leaf._values()))
        else:
            raise RequestError(f"tensors of layout {leaf.layout} can't be counted; make them dense")
    return found
