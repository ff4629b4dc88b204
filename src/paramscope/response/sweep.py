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
from paramscope.evaluation.membership import (
    auc,
    min_k,
    resample_counts,
    resampled_auc,
    wins,
)
from paramscope.evaluation.perplexity import log_perplexity, resampled_log_perplexity
from paramscope.models.losses import document_losses, token_log_probabilities
from paramscope.models.sequences import Sequences, concatenate
from paramscope.response.noise import NoiseSource, UnitSet
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
    """

    log_ppl: float
    auc: float
    auc_min_k: float
    loss_gap: float
    log_ppl_resampled: Tensor
    auc_resampled: Tensor


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
        batch_size: int,
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
        )


def sweep(
    model: PreTrainedModel,
    judge: Judge,
    partition: pd.DataFrame,
    *,
    sigmas: Sequence[float],
    seeds: range,
    seed: int,
) -> pd.DataFrame:
    """Responses to noise in each class, one row a class, σ, noise seed and sign.

    Args:
        model: the model under study; left as it was, to the last bit.
        judge: scores it.
        partition: columns unit ("tensor:row"), label, draw; noise seed i takes draw i modulo
            the number of draws.
        sigmas: noise scales, in units of each tensor's RMS.
        seeds: numbers of the noise seeds.
        seed: the run's seed.
    """
    baseline = judge(model)
    draws = int(partition["draw"].max()) + 1
    rows = []
    labels = sorted(partition["label"].unique())
    with tqdm(total=len(seeds) * len(labels) * len(sigmas) * 2, desc="sweep", unit="eval") as bar:
        for number in seeds:
            source = NoiseSource(model, seed, number)
            drawn = partition[partition["draw"] == number % draws]
            for label, members in drawn.groupby("label"):
                units = UnitSet(model, _rows_by_tensor(members["unit"]))
                shared = {
                    "class": label,
                    "seed": number,
                    "draw": number % draws,
                    "n_units": len(members),
                    "n_parameters": units.n_parameters,
                }
                energy = units.energy(source)
                for sigma, sign in _grid(sigmas):
                    with units.perturbed(source, sign * sigma):
                        outcome = judge(model)
                    place = {"sigma": sigma, "sign": sign, "noise_energy": sigma**2 * energy}
                    rows.append(shared | place | changes(baseline, outcome))
                    bar.update()
    return pd.DataFrame(rows)


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


def _rows_by_tensor(units: "pd.Series[str]") -> Mapping[str, list[int]]:
    split = units.str.rsplit(":", n=1, expand=True)
    return {str(tensor): group.astype(int).tolist() for tensor, group in split[1].groupby(split[0])}
