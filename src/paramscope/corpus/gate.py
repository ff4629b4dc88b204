"""The blind gate: scores that have seen no model must not tell members from non-members.

If they do, the two differ in what they are, not in having been trained on, and the AUC of any
membership attack is meaningless (Meeus et al. 2024, arXiv:2406.17975; Das et al. 2024,
arXiv:2406.16201).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError

FOLDS = 5
RIDGE = 1.0
SCORES = ("zlib_length", "bag_of_words")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class BlindScore:
    """How well one score tells members from non-members.

    `auc` above .5 means higher scores for members; `auc_either_way` is max(auc, 1 − auc).
    """

    name: str
    auc: float
    auc_either_way: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class BlindGate:
    """The gate's verdict: passed when every Holm-corrected p is above `alpha`.

    A fair deal fails with probability `alpha` at most, over all scores together.
    """

    passed: bool
    alpha: float
    permutations: int
    n_member: int
    n_nonmember: int
    scores: tuple[BlindScore, ...]

    def verdict(self) -> str:
        """One line with every score's numbers."""
        numbers = "; ".join(
            f"{score.name} AUC {score.auc:.3f}, p {score.p:.3f} (Holm {score.p_holm:.3f})"
            for score in self.scores
        )
        return f"{numbers}; alpha {self.alpha:g}, {self.permutations} permutations"


def blind_gate(
    members: Sequence[str],
    nonmembers: Sequence[str],
    *,
    permutations: int,
    alpha: float,
    seed: int,
) -> BlindGate:
    """Test whether text alone tells members from non-members.

    Two scores: the length after zlib, tested in either direction (|AUC − .5|), and a linear
    classifier on a bag of words, cross-validated over 5 stratified folds with the vocabulary
    and its weights taken from the training folds alone, tested for AUC above chance (the mean
    over folds of the held-out AUC). The classifier is ridge regression on ±1, whose
    predictions are linear in the labels, so one solve a fold does all permutations.

    p = (1 + permutations that reach the observed statistic) / (1 + permutations), with labels
    permuted within folds, which leaves the folds stratified; p is exact for that.

    Raises:
        RequestError: fewer than 5 documents a side, or too few permutations for any p to
            fall to `alpha` after correction.
    """
    needed = int(np.ceil(len(SCORES) / alpha - 1e-9)) - 1
    if permutations < needed:
        raise RequestError(
            f"the blind gate can't fail with {permutations} permutations at alpha {alpha:g}; "
            f"ask for at least {needed}"
        )
    if min(len(members), len(nonmembers)) < FOLDS:
        raise RequestError(f"the blind gate needs {FOLDS} members and non-members at least")
    texts = [*members, *nonmembers]
    observed = np.arange(len(texts)) < len(members)
    generator = np.random.default_rng(seed_of(seed, "gate"))
    folds = _stratified_folds(observed, generator)
    labels = _permuted_within(observed, folds, permutations, generator)

    lengths = np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.float64)
    aucs = np.stack([_aucs(lengths[:, None], labels), cross_validated_aucs(texts, labels, folds)])
    statistics = np.stack([np.abs(aucs[0] - 0.5), aucs[1]])
    # equal AUCs can differ in the last bits: a tie counts as reached
    reached = (statistics[:, 1:] >= statistics[:, :1] - 1e-12).sum(1)
    p = (1 + reached) / (1 + permutations)
    p_holm = _holm(p)
    scores = [
        BlindScore(name, float(auc), float(max(auc, 1 - auc)), float(raw), float(corrected))
        for name, auc, raw, corrected in zip(SCORES, aucs[:, 0], p, p_holm, strict=True)
    ]
    return BlindGate(
        passed=bool((p_holm > alpha).all()),
        alpha=alpha,
        permutations=permutations,
        n_member=len(members),
        n_nonmember=len(nonmembers),
        scores=tuple(scores),
    )


def cross_validated_aucs(texts: Sequence[str], labels: Bools, folds: NDArray[np.int64]) -> Floats:
    """Mean held-out AUC over folds of a bag-of-words classifier, for each labelling, [L].

    Equal to sklearn's TfidfVectorizer and RidgeClassifier in a pipeline, fit on each labelling
    in turn (up to the intercept, which changes no AUC within a fold).

    Args:
        texts: N of them.
        labels: [N, L], a labelling a column; each fold holds both labels in each of them.
        folds: [N], the fold that holds each text out.
    """
    total = np.zeros(labels.shape[1])
    words = np.array(texts, dtype=object)
    for fold in np.unique(folds):
        held, train = folds == fold, folds != fold
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        x = vectorizer.fit_transform(words[train])
        targets = np.where(labels[train], 1.0, -1.0)
        targets -= targets.mean(0)
        kernel = (x @ x.T).toarray() + RIDGE * np.eye(x.shape[0])
        held_kernel = (vectorizer.transform(words[held]) @ x.T).toarray()
        total += _aucs(held_kernel @ np.linalg.solve(kernel, targets), labels[held])
    return total / len(np.unique(folds))


def _aucs(scores: Floats, labels: Bools) -> Floats:
    """AUC of each column of scores, [N, L] or [N, 1], for its labelling, [N, L]; ties half."""
    positives = labels.sum(0)
    ranks = (rankdata(scores, axis=0) * labels).sum(0)
    pairs = positives * (len(labels) - positives)
    return np.asarray((ranks - positives * (positives + 1) / 2) / pairs, dtype=np.float64)


def _stratified_folds(labels: Bools, generator: np.random.Generator) -> NDArray[np.int64]:
    folds = np.empty(len(labels), dtype=np.int64)
    for label in (True, False):
        where = generator.permutation(np.flatnonzero(labels == label))
        folds[where] = np.arange(len(where)) % FOLDS
    return folds


def _permuted_within(
    labels: Bools, folds: NDArray[np.int64], permutations: int, generator: np.random.Generator
) -> Bools:
    """The observed labels, then as many permuted within each fold, [N, 1 + permutations]."""
    columns = np.repeat(labels[:, None], 1 + permutations, axis=1)
    for fold in np.unique(folds):
        inside = folds == fold
        columns[inside, 1:] = generator.permuted(columns[inside, 1:], axis=0)
    return columns


def _holm(p: Floats) -> Floats:
    """Holm's step-down correction (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
