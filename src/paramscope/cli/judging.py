"""What the stages that disturb a model judge it by."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from paramscope.memory import Microbatch
    from paramscope.response.sweep import Judge


def judge_of(
    folder: Path,
    splits: tuple[Path, Path, Path],
    *,
    probe: int,
    length: int,
    batch: "int | Microbatch",
    bootstrap: int,
    seed: int,
    device: "torch.device",
    min_k: float = 20,
) -> "Judge":
    """What scores a folder's model: on members, non-members and evaluation text, in that order.

    The first `probe` documents of members and non-members each are left out.

    Raises:
        RequestError: fewer than ten documents are left.
    """
    from paramscope.artifacts.tables import read_table
    from paramscope.cli.inputs import windows_for
    from paramscope.corpus.splits import judges
    from paramscope.models.folders import sequences_of
    from paramscope.models.sequences import load_tokenizer
    from paramscope.response.sweep import Judge

    encode = load_tokenizer(folder)
    *documents, evaluation = splits
    members, nonmembers = (
        sequences_of(encode, judges(read_table(path, ["doc_id", "text"]), probe), length)
        for path in documents
    )
    return Judge(
        windows_for(folder, evaluation, length, device),
        members,
        nonmembers,
        min_k_percent=min_k,
        bootstrap=bootstrap,
        batch_size=batch,
        seed=seed,
        device=device,
    )
