"""LiRA: is a document's confidence what models trained on it have, or what others have?

Shadow models are the base finetuned as the target was, each on a random half of members and
non-members together. A document's confidence under models of either kind is taken as Gaussian.
Source: Carlini et al. 2022 (arXiv:2112.03570), the online and the offline attack, with p of a
document the geometric mean of its tokens' probabilities.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from paramscope.artifacts.digest import seed_of
from paramscope.errors import ArtifactError, RequestError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHADOW = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("trained_on", pa.bool_(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
    ]
)
OWN_VARIANCE = 32  # models of a kind (64 in all) from which a document's own variance is better
LEAST_LOSS = 1e-12  # nats: a loss that rounds to 0 would be an infinite confidence


class Variant(StrEnum):
    """Which shadow models a document is judged by."""

    online = "online"  # those trained on it and those not
    offline = "offline"  # only those not trained on it


def trained_half(doc_ids: Sequence[str], number: int, seed: int) -> Bools:
    """Which documents shadow model `number` is trained on, [S]: half of them.

    Models 2j and 2j + 1 have complementary halves, so that of an even number of models each
    document is in half. A document's half hangs on the seed, j and the ids alone.
    """
    places = [seed_of(seed, "shadow", number // 2, doc_id) for doc_id in doc_ids]
    order = np.argsort(places)
    first = np.zeros(len(doc_ids), dtype=np.bool_)
    first[order[: len(doc_ids) // 2]] = True
    return first if number % 2 == 0 else ~first


def confidence(losses: Floats) -> Floats:
    """Logit of p = exp(−loss), without loss of digits where p nears 1."""
    losses = np.maximum(losses, LEAST_LOSS)
    return np.asarray(-losses - np.log(-np.expm1(-losses)))


def stack(shadows: Sequence[pd.DataFrame], doc_ids: Sequence[str]) -> tuple[Floats, Bools]:
    """Confidence and `trained_on` of N shadow tables, [N, S] each, in the order of `doc_ids`.

    Raises:
        ArtifactError: a table that lacks a document, or has one twice.
    """
    confidences, trained_on = [], []
    for number, table in enumerate(shadows):
        missing = len(set(doc_ids) - set(table["doc_id"]))
        if missing or table["doc_id"].duplicated().any():
            fault = f"lacks {missing} of the documents" if missing else "has a document twice"
            raise ArtifactError(
                f"shadow table {number} {fault}; rerun its rule on these members and non-members"
            )
        rows = table.set_index("doc_id").loc[list(doc_ids)]
        confidences.append(rows["confidence"].to_numpy(np.float64))
        trained_on.append(rows["trained_on"].to_numpy(np.bool_))
    return np.stack(confidences), np.stack(trained_on)


def lira(target: Floats, shadows: Floats, trained_on: Bools, variant: Variant) -> Floats:
    """Score of each document, [S]: the higher, the more like a member.

    Online: log of the ratio of the two Gaussian densities. Offline: standard deviations above
    the mean of the models not trained on it, which orders documents as the published
    1 − P(Z > confidence) does, without its ties near 1.

    A variance is pooled over documents below `OWN_VARIANCE` models of a kind, and a document's
    own from there on.

    Args:
        target: confidence of the model under attack, [S].
        shadows: confidence of N shadow models, [N, S].
        trained_on: which of them saw which document, [N, S].
        variant: by both kinds of models, or by those not trained on a document.

    Raises:
        RequestError: too few shadow models for a mean and a variance.
    """
    mean_out, deviation_out = _gaussian(shadows, ~trained_on, "not trained on it")
    standard_out = (target - mean_out) / deviation_out
    if variant is Variant.offline:
        return standard_out
    mean_in, deviation_in = _gaussian(shadows, trained_on, "trained on it")
    standard_in = (target - mean_in) / deviation_in
    ratio = (standard_out**2 - standard_in**2) / 2 + np.log(deviation_out / deviation_in)
    return np.asarray(ratio)


def _gaussian(shadows: Floats, chosen: Bools, kind: str) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each document's confidence over the chosen models, [S]."""
    n = chosen.sum(0)
    if not n.all() or (n == 1).all():
        raise RequestError(
            f"{len(shadows)} shadow models leave a document with {n.min()} {kind}, "
            f"too few for a mean and a variance; LiRA takes 4 or more"
        )
    mean = np.where(chosen, shadows, 0).sum(0) / n
    squares = np.where(chosen, (shadows - mean) ** 2, 0).sum(0)
    pooled = squares.sum() / (n - 1).sum()
    own = squares / np.maximum(n - 1, 1)
    variance = np.where(n >= OWN_VARIANCE, own, pooled)
    if not (variance > 0).all():
        raise RequestError(f"the shadow models {kind} agree to the last bit: are they the same?")
    return mean, np.sqrt(variance)
