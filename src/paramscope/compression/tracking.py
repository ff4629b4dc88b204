"""Following a finetuning in TensorBoard or Weights & Biases, where asked to."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from paramscope.compression.finetune import Step
from paramscope.errors import RequestError

SHOWN = ("loss", "gradient_norm", "learning_rate", "perplexity")


def tracker(tensorboard: Path | None, wandb: str | None) -> Callable[[Step], None] | None:
    """What to tell every step to: a folder for TensorBoard, a project of W&B, both, or None.

    Raises:
        RequestError: the package for it is not installed.
    """
    tellers: list[Callable[[Step], None]] = []
    if tensorboard is not None:
        tellers.append(_tensorboard(tensorboard))
    if wandb is not None:
        tellers.append(_wandb(wandb))
    if not tellers:
        return None

    def tell(step: Step) -> None:
        for teller in tellers:
            teller(step)

    return tell


def _tensorboard(folder: Path) -> Callable[[Step], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("TensorBoard") from error
    writer: Any = None

    def tell(step: Step) -> None:
        nonlocal writer
        if writer is None:  # from here on it hides what an earlier run of this name has told
            writer = SummaryWriter(str(folder), purge_step=step.step)
        for name in SHOWN:
            writer.add_scalar(name, getattr(step, name), step.step)
        writer.flush()

    return tell


def _wandb(project: str) -> Callable[[Step], None]:
    try:
        init = import_module("wandb").init
    except (ImportError, AttributeError) as error:  # its folder of runs can pass for a package
        raise _missing("Weights & Biases") from error
    run: Any = init(project=project)

    def tell(step: Step) -> None:
        run.log({name: getattr(step, name) for name in SHOWN}, step=step.step)

    return tell


def _missing(name: str) -> RequestError:
    return RequestError(
        f"{name} is not installed; pip install 'paramscope[tracking]', or leave its option out"
    )
