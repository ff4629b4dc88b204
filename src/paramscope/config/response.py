"""The configuration of noise and of membership inference."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paramscope.config.geometry import Rule
from paramscope.config.section import Section, a_list, inconsistent, unique

PrmRule = Literal[Rule, "kfac"]


def _increasing(scales: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(scales)):
        ordered = sorted(set(scales))
        raise inconsistent("", scales, "and does not increase", f"write {ordered}")
    return scales


PrmRules = Annotated[tuple[PrmRule, ...], a_list(), AfterValidator(unique)]
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    a_list(),
    AfterValidator(_increasing),
]


class Membership(Section):
    """Membership inference on the target: attacks' scores, and the probes that shape partitions."""

    probe: int = Field(
        default=60,
        ge=2,
        description="Of the members and of the non-members each, the first so many shape the "
        "rules contrast, gate and loss_gap; the others judge.",
    )
    contrast_draws: int = Field(
        default=4, ge=2, description="Hutchinson draws of the curvature that contrast compares."
    )
    bootstrap: int = Field(
        default=1000, ge=40, description="Document resamples behind an interval of the scores."
    )
    shadows: int = Field(
        default=0,
        ge=0,
        description="Shadow models of LiRA (Carlini et al. 2022, arXiv:2112.03570), each a "
        "finetuning of the base: 0 for none, or an even number from 4 on.",
    )
    lira_variant: Literal["online", "offline"] = Field(
        default="online",
        description="online: shadow models trained on a document and others; offline: others.",
    )

    @model_validator(mode="after")
    def _shadows_come_in_pairs(self) -> Self:
        if self.shadows % 2 or self.shadows == 2:
            raise inconsistent(
                "shadows", self.shadows, "", "give 0, or an even number of at least 4"
            )
        return self


class Prm(Section):
    """Perturbation response mapping: noise in one class, then perplexity and membership attacks."""

    rules: PrmRules = Field(
        default=("contrast", "curvature", "origin", "random", "random_tensor"),
        description="Among partition.rules; or kfac, eigen-directions of Kronecker-factored "
        "curvature (Merullo et al. 2025, arXiv:2510.24256).",
    )
    noise: Literal["relative", "absolute", "equal_energy"] = Field(
        default="relative",
        description="What sigma is in units of. relative: a tensor's RMS; absolute: 1; "
        "equal_energy: relative, with the same total in every class.",
    )
    scales: Literal["auto", "fixed"] = Field(
        default="auto",
        description="auto: each class gets its own sigmas, over which log perplexity rises by "
        ".01 to .3; fixed: those below, the same for all classes.",
    )
    sigmas: Scales = Field(
        default=(0.5, 1.0, 2.0, 4.0),
        description="Noise scales where they are fixed, strictly increasing.",
    )
    points: int = Field(default=4, ge=2, description="Sigmas a class, where scales are auto.")
    seeds: int = Field(
        default=10,
        ge=2,
        description="Noise seeds, the replicates; each is used as +z and -z. Under 10, no "
        "comparison can pass Holm's correction.",
    )
    null_seeds: int = Field(
        default=2,
        ge=1,
        description="Noise seeds a random partition, at the scale of +5% perplexity; where "
        "scales are auto.",
    )
    seeds_per_shard: int = Field(
        default=5, ge=1, description="Seeds a job; rounding apart, of no effect."
    )
    tensor_seeds: int = Field(
        default=4, ge=2, description="Noise seeds where noise is in one weight at a time."
    )
    min_k: int = Field(
        default=20,
        ge=1,
        le=100,
        description="Percent of tokens in the Min-K% attack (Shi et al. 2023, arXiv:2310.16789).",
    )
    bootstrap: int = Field(default=200, ge=2, description="Document resamples a standard error.")
    batch: int = Field(default=16, ge=1, description="Sequences a forward: speed and memory alone.")
