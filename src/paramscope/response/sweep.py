"""Perturbation response mapping: perplexity and membership inference under noise, by class."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.evaluation.membership import (
    auc,
    min_k,
    resample_counts,
    resampled_auc,
    resampled_mean,
    wins,
)
from paramscope.evaluation.perplexity import log_perplexity, resampled_log_perplexity
from paramscope.memory import Microbatch
from paramscope.models.losses import document_losses, token_log_probabilities
from paramscope.models.sequences import Sequences, concatenate
from paramscope.response.classes import Classes, ClassSet
from paramscope.response.noise import Kind, NoiseSource, factors
from paramscope.response.responses import SIGNS


@dataclass(frozen=True)
class Outcome:
    """What a model, perturbed or not, scores on the three texts, with its bootstrap resamples.

    Attributes:
        log_ppl: mean negative log-likelihood a token of the evaluation windows, nats.
        auc: of the loss attack.
        auc_min_k: of Min-K%.
        loss_gap: mean non-member − mean member loss, nats a token.
        log_ppl_resampled: `log_ppl` on each resample of windows, [R].
        auc_resampled: `auc` on each resample of documents, [R].
        loss_gap_resampled: `loss_gap`, likewise.
    """

    log_ppl: float
    auc: float
    auc_min_k: float
    loss_gap: float
    log_ppl_resampled: Tensor
    auc_resampled: Tensor
    loss_gap_resampled: Tensor


class Judge:
    """Scores a model on evaluation windows, members and non-members in one pass.

    The resamples of windows and documents are drawn once, so the standard error of a change is
    that of the paired difference.
    """

    def __init__(
        self,
        windows: Sequences,
        members: Sequences,
        nonmembers: Sequences,
        *,
        min_k_percent: float,
        bootstrap: int,
        batch_size: int | Microbatch,
        seed: int,
        device: torch.device,
    ) -> None:
        self.sizes = [len(windows), len(members), len(nonmembers)]
        everything = concatenate(windows, members, nonmembers)
        order = everything.lengths.argsort(stable=True)  # like lengths together: fewer pads
        self.place = order.argsort()
        names = tuple(everything.names[i] for i in order.tolist())
        self.sorted = Sequences(everything.ids[order], everything.lengths[order], names).to(device)
        self.lengths = everything.lengths.split(self.sizes)
        self.min_k_percent, self.batch_size = min_k_percent, batch_size
        self.counts = [
            resample_counts(n, bootstrap, seed_of(seed, "bootstrap", part))
            for n, part in zip(self.sizes, ("windows", "members", "nonmembers"), strict=True)
        ]

    def __call__(self, model: PreTrainedModel) -> Outcome:
        """Score the model as it is now."""
        log_probs = token_log_probabilities(model, self.sorted, self.batch_size).cpu()
        texts = log_probs[self.place].split(self.sizes)
        windows, members, nonmembers = zip(texts, self.lengths, strict=True)
        member_loss, nonmember_loss = document_losses(*members), document_losses(*nonmembers)
        table = wins(-member_loss, -nonmember_loss)
        return Outcome(
            log_ppl=log_perplexity(*windows),
            auc=float(table.mean()),
            auc_min_k=auc(
                min_k(*members, self.min_k_percent), min_k(*nonmembers, self.min_k_percent)
            ),
            loss_gap=float(nonmember_loss.mean() - member_loss.mean()),
            log_ppl_resampled=resampled_log_perplexity(*windows, self.counts[0]),
            auc_resampled=resampled_auc(table, self.counts[1], self.counts[2]),
            loss_gap_resampled=resampled_mean(nonmember_loss, self.counts[2])
            - resampled_mean(member_loss, self.counts[1]),
        )


@dataclass(frozen=True)
class Curvature:
    """Diagonal of the curvature and its standard error, by parameter name."""

    diagonal: Mapping[str, Tensor]
    standard_error: Mapping[str, Tensor]


def curvature_of(content: Mapping[str, Tensor]) -> Curvature:
    """From the content of diagonal.pt: values by name, and theirs under standard_error/."""
    prefix = "standard_error/"
    return Curvature(
        {name: value for name, value in content.items() if not name.startswith(prefix)},
        {n.removeprefix(prefix): v for n, v in content.items() if n.startswith(prefix)},
    )


def sweep(
    model: PreTrainedModel,
    judge: Judge,
    classes: Classes,
    *,
    sigmas: Mapping[str, Sequence[float]],
    seeds: range,
    seed: int,
    kind: Kind = "relative",
    curvature: Curvature | None = None,
    level: bool = False,
) -> pd.DataFrame:
    """Responses to noise in each class, one row a class, σ, noise seed and sign.

    Args:
        model: the model under study; left as it was, to the last bit.
        judge: scores it.
        classes: of that model; noise seed i takes draw i modulo the number of draws.
        sigmas: noise scales by class, in units of `kind`; a class that is not named is left out.
        seeds: numbers of the noise seeds.
        seed: the run's seed.
        kind: of noise.
        curvature: what the change of loss is foretold from.
        level: in each draw after the first, scale a class's noise so that the change foretold
            of it is the first draw's, whose σ it is given; σ stays what it is called by.

    Raises:
        RequestError: draws to level, and no curvature to do it by, or one that foretells a
            change that is not above 0.
    """
    if level and classes.draws > 1 and curvature is None:
        raise RequestError("draws are levelled by what curvature foretells; give the diagonal")
    baseline = judge(model)
    rows = []
    labels = [label for label in classes.labels if label in sigmas]
    total = 2 * len(seeds) * sum(len(sigmas[label]) for label in labels)
    with tqdm(total=total, desc="sweep", unit="eval") as bar:
        for number in seeds:
            source = NoiseSource(model, seed, number, kind)
            sets = classes.of(number % classes.draws)
            scales = factors(sets, source)
            if level and classes.draws > 1:
                scales |= _levelled(sets, classes.of(0), scales, source, curvature)
            for label in (label for label in labels if label in sets):
                units, factor = sets[label], scales[label]
                shared = {
                    "class": label,
                    "seed": number,
                    "draw": number % classes.draws,
                    "n_units": units.n_units,
                    "n_parameters": units.n_parameters,
                    "noise": kind,
                }
                energy = factor**2 * units.energy(source)
                foretold = _foretold(units, source, factor, curvature)
                for sigma, sign in _grid(sigmas[label]):
                    with units.perturbed(source, sign * sigma * factor):
                        outcome = judge(model)
                    place = {"sigma": sigma, "sign": sign, "noise_energy": sigma**2 * energy}
                    predicted = {name: sigma**2 * value for name, value in foretold.items()}
                    rows.append(shared | place | predicted | changes(baseline, outcome))
                    bar.update()
    return pd.DataFrame(rows)


def _levelled(
    sets: Mapping[str, ClassSet],
    first: Mapping[str, ClassSet],
    scales: Mapping[str, float],
    source: NoiseSource,
    curvature: Curvature | None,
) -> dict[str, float]:
    """Each class's factor at which it is foretold the change that the first draw's is.

    Raises:
        RequestError: either change is not finite or not above 0, so no factor makes them equal.
    """
    own_scales = factors(first, source)
    levelled = {}
    for label in [label for label in sets if label in first]:
        aim, now = (
            _foretold(units, source, scale, curvature)["predicted_delta_log_ppl"]
            for units, scale in (
                (first[label], own_scales[label]),
                (sets[label], scales[label]),
            )
        )
        if not (0 < aim < math.inf and 0 < now < math.inf):
            raise RequestError(
                f"draws of {label} can't be levelled: curvature foretells a change of {aim:.3g} in "
                f"the first and {now:.3g} in another; give a diagonal of method ggn, or of more "
                "draws"
            )
        levelled[label] = scales[label] * math.sqrt(aim / now)
    return levelled


def _foretold(
    units: ClassSet, source: NoiseSource, factor: float, curvature: Curvature | None
) -> dict[str, float]:
    if curvature is None:
        return {"predicted_delta_log_ppl": math.nan, "predicted_delta_log_ppl_se": math.nan}
    change, error = units.predicted(source, curvature.diagonal, curvature.standard_error)
    return {
        "predicted_delta_log_ppl": factor**2 * change,
        "predicted_delta_log_ppl_se": factor**2 * error,
    }


def changes(baseline: Outcome, outcome: Outcome) -> dict[str, float]:
    """The measured columns of a response: values, changes, and the changes' standard errors."""
    log_ppl = outcome.log_ppl_resampled - baseline.log_ppl_resampled
    auc_change = outcome.auc_resampled - baseline.auc_resampled
    return {
        "ppl": math.exp(outcome.log_ppl) if outcome.log_ppl < 700 else math.inf,
        "delta_log_ppl": outcome.log_ppl - baseline.log_ppl,
        "delta_log_ppl_se": float(log_ppl.std()),
        "auc": outcome.auc,
        "delta_auc": outcome.auc - baseline.auc,
        "delta_auc_se": float(auc_change.std()),
        "auc_min_k": outcome.auc_min_k,
        "delta_auc_min_k": outcome.auc_min_k - baseline.auc_min_k,
        "loss_gap": outcome.loss_gap,
        "delta_loss_gap": outcome.loss_gap - baseline.loss_gap,
    }


def _grid(sigmas: Sequence[float]) -> Iterator[tuple[float, int]]:
    return ((sigma, sign) for sigma in sigmas for sign in SIGNS)
