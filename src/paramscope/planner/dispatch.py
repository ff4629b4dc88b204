"""A dispatch mode as plans take them."""

from torch.utils._python_dispatch import TorchDispatchMode


class Uncompiled(TorchDispatchMode):
    """A mode that nothing is compiled under: without torch's guard for it at every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch declares no types for it

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
