"""What a model is worth, and what it gives away: perplexity, and the loss attack on its members."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.dpsgd.accounting import auc_bound, one_run_auc_bound
from paramscope.evaluation.membership import resample_counts
from paramscope.evaluation.perplexity import log_perplexity, resampled_log_perplexity
from paramscope.evaluation.roc import CONFIDENCE, Floats, Resamples, judge, resamples
from paramscope.memory import Microbatch
from paramscope.models.losses import document_losses, token_log_probabilities
from paramscope.models.sequences import Sequences


@dataclass(frozen=True)
class Budget:
    """What a model has spent, and the AUC that this rules out; all None where nothing bounds it.

    Attributes:
        epsilon: ε; 0 of a model that has not seen the members.
        noise_multiplier: σ of each step.
        steps: steps on the members.
        auc_bound: of one document's membership against the randomness of runs.
        auc_bound_one_run: of members against non-members in one run, on average.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    auc_bound: float | None = None
    auc_bound_one_run: float | None = None

    @classmethod
    def of(
        cls, epsilon: float, delta: float, noise_multiplier: float | None, steps: int
    ) -> "Budget":
        """The budget of (ε, δ).

        Raises:
            RequestError: ε below 0, or δ outside [0, 1].
        """
        bounds = auc_bound(epsilon, delta), one_run_auc_bound(epsilon, delta)
        return cls(epsilon, noise_multiplier, steps, *bounds)


@dataclass(frozen=True)
class Scores:
    """A model's perplexity and how well the loss attack tells its members, with 95% intervals.

    Attributes:
        perplexity: on the evaluation text; infinite where no float holds it.
        auc: how often a member's loss is below a non-member's.
        tpr_at_1: true positive rate at 1% false positives; None with too few non-members.
    """

    perplexity: float
    perplexity_low: float
    perplexity_high: float
    auc: float
    auc_low: float
    auc_high: float
    tpr_at_1: float | None


@dataclass(frozen=True)
class Yardstick:
    """What all models of a comparison are judged on: the same texts and the same resamples.

    Attributes:
        evaluation: windows of text that no model was trained on.
        members: documents that the models were finetuned on.
        nonmembers: documents like them that no model was trained on.
        windows: how often each window is drawn in each resample, [R, windows].
        documents: how often each member and non-member is.
        batch_size: sequences a forward.
    """

    evaluation: Sequences
    members: Sequences
    nonmembers: Sequences
    windows: Tensor
    documents: Resamples
    batch_size: int | Microbatch

    def scores(self, model: PreTrainedModel) -> Scores:
        """A model's scores; intervals are of a bootstrap over windows and over documents."""
        log_probs = token_log_probabilities(model, self.evaluation, self.batch_size).cpu()
        lengths = self.evaluation.lengths.cpu()
        resampled = resampled_log_perplexity(log_probs, lengths, self.windows)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled.numpy(), [tail, 1 - tail])
        members, nonmembers = (self._attack(model, d) for d in (self.members, self.nonmembers))
        attack = judge(members, nonmembers, self.documents)
        return Scores(
            perplexity=_exp(log_perplexity(log_probs, lengths)),
            perplexity_low=_exp(low),
            perplexity_high=_exp(high),
            auc=attack.auc.value,
            auc_low=attack.auc.low,
            auc_high=attack.auc.high,
            tpr_at_1=None if attack.tpr_1 is None else attack.tpr_1.value,
        )

    def _attack(self, model: PreTrainedModel, documents: Sequences) -> Floats:
        """The loss attack's score of each document, the higher the more like a member."""
        log_probs = token_log_probabilities(model, documents, self.batch_size)
        return np.asarray(-document_losses(log_probs, documents.lengths).cpu())


def yardstick(
    evaluation: Sequences,
    members: Sequences,
    nonmembers: Sequences,
    *,
    bootstrap: int,
    seed: int,
    batch_size: int | Microbatch,
) -> Yardstick:
    """The texts with `bootstrap` resamples of each.

    Raises:
        RequestError: too few resamples for an interval.
    """
    documents = resamples(len(members), len(nonmembers), bootstrap, seed)
    windows = resample_counts(len(evaluation), bootstrap, seed_of(seed, "bootstrap", "windows"))
    return Yardstick(evaluation, members, nonmembers, windows, documents, batch_size)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
