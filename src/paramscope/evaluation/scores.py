"""Membership scores of documents, the higher the more like a member, and how well they tell.

Sources: loss, Yeom et al. 2018 (arXiv:1709.01604); zlib, Carlini et al. 2021 (arXiv:2012.07805);
Min-K%, Shi et al. 2024 (arXiv:2310.16789); Min-K%++, Zhang et al. 2024 (arXiv:2404.02936);
calibrated, Watson et al. 2022 (arXiv:2111.08440); lira, Carlini et al. 2022 (arXiv:2112.03570).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from torch import Tensor

from paramscope.errors import RequestError
from paramscope.evaluation.membership import min_k
from paramscope.evaluation.roc import (
    LEAST_FALSE_POSITIVES,
    Judgement,
    false_positives,
    judge,
    loss_gap,
    resamples,
)
from paramscope.models.losses import TokenStatistics, document_losses

LIRA = "lira"  # the one score that takes models of its own
SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus", "calibrated", LIRA)
DOCUMENT_SCORES = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("member", pa.bool_(), nullable=False),
        pa.field("probe", pa.bool_(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=name == LIRA) for name in SCORES),
    ]
)
LEAST_DEVIATION = 1e-6  # of log p: where a softmax has rounded to certainty, σ would be 0


def document_scores(
    statistics: TokenStatistics,
    lengths: Tensor,
    *,
    base_losses: Tensor,
    zlib_bytes: Tensor,
    percent: float,
) -> dict[str, Tensor]:
    """All scores that need no shadow model, [S] each.

    `loss` is the mean loss a token, negated; `zlib` that over the bytes of the compressed text;
    `calibrated` the base's loss minus the target's.

    Args:
        statistics: of the target's tokens, with moments.
        lengths: tokens of each document, [S].
        base_losses: mean loss a token of the model before finetuning, [S].
        zlib_bytes: bytes of each text, compressed, [S].
        percent: of tokens that Min-K% and Min-K%++ average.
    """
    losses = document_losses(statistics.log_probs, lengths)
    return {
        "loss": -losses,
        "zlib": -losses / zlib_bytes,
        "min_k": min_k(statistics.log_probs, lengths, percent),
        "min_k_plus_plus": min_k(standardised(statistics), lengths, percent),
        "calibrated": base_losses - losses,
    }


def standardised(statistics: TokenStatistics) -> Tensor:
    """(log p − μ) / σ of each token, [S, T−1], over the vocabulary under p: Min-K%++'s term.

    Raises:
        RequestError: the statistics were taken without moments.
    """
    if statistics.mean is None or statistics.deviation is None:
        raise RequestError("Min-K%++ needs the moments of log p; take the statistics with them")
    deviation = statistics.deviation.clamp(min=LEAST_DEVIATION)
    return (statistics.log_probs - statistics.mean) / deviation


def zlib_bytes(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Bytes of each text after zlib, [S], of its first `length` tokens alone.

    What a model does not read must not weigh on its score.
    """
    read = [
        text[: max((end for _, end in encoding.offsets[:length]), default=0)]
        for text, encoding in zip(texts, tokenizer.encode_batch(list(texts)), strict=True)
    ]
    sizes = [len(zlib.compress(text.encode())) for text in read]
    return torch.tensor(sizes, dtype=torch.float64)


def membership_summary(scores: pd.DataFrame, bootstrap: int, seed: int) -> dict[str, Any]:
    """The record of how well each score tells members, by the documents that are no probes.

    A score that is null throughout is left out. All share one bootstrap over documents.

    Args:
        scores: the columns of DOCUMENT_SCORES.
        bootstrap: resamples.
        seed: of the run.

    Raises:
        RequestError: too few resamples for an interval.
    """
    judging = scores[~scores["probe"]]
    members, nonmembers = judging[judging["member"]], judging[~judging["member"]]
    drawn = resamples(len(members), len(nonmembers), bootstrap, seed)
    judgements = {
        name: judge(members[name].to_numpy(), nonmembers[name].to_numpy(), drawn)
        for name in SCORES
        if judging[name].notna().all()
    }
    gap = loss_gap(-members["loss"].to_numpy(), -nonmembers["loss"].to_numpy(), drawn)
    return {
        "n_members": len(members),
        "n_nonmembers": len(nonmembers),
        "n_probes": int(scores["probe"].sum()),
        "bootstrap": bootstrap,
        "scores": {name: _numbers(judgement) for name, judgement in judgements.items()},
        "loss_gap": asdict(gap),
        "curves": {name: _curve(judgement) for name, judgement in judgements.items()},
        "notes": _notes(judgements, len(members), len(nonmembers)),
    }


def _numbers(judgement: Judgement) -> dict[str, float | None]:
    """auc, tpr_5 and tpr_1, each with _se, _low and _high; null where there is none."""
    numbers: dict[str, float | None] = {}
    for name in ("auc", "tpr_5", "tpr_1"):
        estimate = getattr(judgement, name)
        numbers[name] = estimate and estimate.value
        for part in ("se", "low", "high"):
            numbers[f"{name}_{part}"] = estimate and getattr(estimate, part)
    return numbers


def _curve(judgement: Judgement) -> dict[str, list[float]]:
    return {name: np.asarray(v).tolist() for name, v in vars(judgement.curve).items()}


def _notes(judgements: Mapping[str, Judgement], members: int, nonmembers: int) -> list[str]:
    """What a reader of the numbers must know, a sentence each."""
    at_1, at_5 = (false_positives(nonmembers, level) for level in (0.01, 0.05))
    said = []
    if at_1 < LEAST_FALSE_POSITIVES:
        said.append(
            f"tpr_1 is null: at a false positive rate of 1%, {nonmembers} non-members leave "
            f"{at_1} above the threshold, fewer than {LEAST_FALSE_POSITIVES}"
        )
    if at_5 < LEAST_FALSE_POSITIVES:
        said.append(
            f"tpr_5 is coarse: it rests on {at_5} of {nonmembers} non-members above the threshold"
        )
    said += [
        f"{name} parts all {members} members from all {nonmembers} non-members, which no resample "
        "can change: its interval of no width is no certainty"
        for name, judgement in judgements.items()
        if judgement.auc.value in (0.0, 1.0)
    ]
    return said
