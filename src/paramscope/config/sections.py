"""The parts of a configuration: every key with its meaning, unit, source, bounds and default.

`config.yaml` and `workflow/schemas/config.schema.json` are generated from here: a section's
docstring and a field's description are what they show.
"""

from itertools import pairwise
from math import ceil
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paramscope.config.section import Section, inconsistent

BLIND_SCORES = 2  # that the gate tests: length after zlib, and a bag of words
Rule = Literal[
    "curvature",
    "origin",
    "origin_quantile",
    "contrast",
    "gate",
    "loss_gap",
    "random",
    "random_tensor",
]
PrmRule = Literal[Rule, "kfac"]


def _unique(rules: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(rules)) < len(rules):
        raise inconsistent("", rules, "and repeats itself", "name each rule once")
    return rules


def _increasing(scales: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(scales)):
        ordered = sorted(set(scales))
        raise inconsistent("", scales, "and does not increase", f"write {ordered}")
    return scales


PrmRules = Annotated[
    tuple[PrmRule, ...],
    Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_unique),
]
Rules = Annotated[
    tuple[Rule, ...],
    Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_unique),
]
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_increasing),
]


class Documents(Section):
    """Documents a split, dealt at random by seed once near-duplicates are gone."""

    public: int = Field(default=4000, ge=1, description="Train a scratch model and its tokenizer.")
    member: int = Field(default=300, ge=10, description="The target is finetuned on them.")
    nonmember: int = Field(default=300, ge=10, description="Like the members, never trained on.")
    calibration: int = Field(
        default=128, ge=1, description="For curvature and activation sparsity."
    )
    evaluation: int = Field(default=96, ge=1, description="For perplexity.")


class Gate(Section):
    """The blind gate: if text alone tells members from non-members, the run stops."""

    permutations: int = Field(default=200, ge=1, description="Shuffles of the permutation test.")
    alpha: float = Field(
        default=0.05, ge=0.001, le=0.5, description="It fires at a Holm-corrected p up to it."
    )
    deals: int = Field(
        default=3,
        ge=1,
        description="Deals tried until one passes: a fair one fails by chance at a rate of alpha. "
        "Failures are recorded.",
    )

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        # the least p of n shuffles is 1 / (n + 1), and Holm's correction multiplies it
        fewest = ceil(BLIND_SCORES / self.alpha - 1e-9) - 1
        if self.permutations < fewest:
            raise inconsistent(
                "permutations",
                self.permutations,
                f"and corrected p can't fall to alpha, {self.alpha}",
                f"give at least {fewest}",
            )
        return self


class Corpus(Section):
    """Where text comes from and how it is dealt out."""

    source: Literal["stdlib", "local", "hub"] = Field(
        default="stdlib",
        description="stdlib: Python's own topics and docstrings; local: the files in paths; hub: "
        "those of a dataset.",
    )
    dataset: str = Field(
        default="",
        examples=["Salesforce/wikitext"],
        description="Of source hub: a dataset on the Hugging Face hub, or a folder laid out so.",
    )
    paths: tuple[str, ...] = Field(
        default=(),
        strict=False,
        examples=[["text/part-1.txt"]],
        description="Files: from the working directory, or of source hub within the dataset.",
    )
    chunk_characters: int = Field(default=280, ge=20, description="Characters a document at most.")
    documents: Documents = Documents()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _files_are_the_sources(self) -> Self:
        if self.source != "stdlib" and not self.paths:
            raise inconsistent(
                "paths", self.paths, f"and source is {self.source}", "name at least one text file"
            )
        if (self.source == "hub") != bool(self.dataset):
            raise inconsistent(
                "dataset", self.dataset, f"and source is {self.source}", "source hub takes one"
            )
        if self.source == "stdlib" and self.paths:
            raise inconsistent(
                "paths",
                self.paths,
                f"and source is {self.source}, which reads no files",
                "set corpus.source to local, or paths to []",
            )
        return self


class Base(Section):
    """Training a scratch model's base on the public split; it never sees the members."""

    epochs: int = Field(default=3, ge=1, description="Passes over the public split.")
    batch: int = Field(default=16, ge=1, description="Documents a step.")
    learning_rate: float = Field(
        default=2e-3,
        gt=0,
        description="Peak, of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).",
    )


class Target(Section):
    """Finetuning the base on the members; the target is the model under study."""

    max_epochs: int = Field(default=8, ge=1, description="Passes over the members at most.")
    batch: int = Field(default=16, ge=1, description="Documents a step.")
    learning_rate: float = Field(default=1.0e-3, gt=0, description="Peak, of AdamW.")
    target_auc: float = Field(
        default=0.8,
        gt=0.5,
        lt=1,
        description="Finetuning stops once the loss attack's AUC gets here: near 1 it is "
        "saturated and hardly moves under noise.",
    )


class ActivationSparsity(Section):
    """The share of tokens of the calibration split that a unit is silent on."""

    threshold: float = Field(
        default=1.0e-5, ge=0, description="Silent is |a| <= threshold, by token."
    )
    batch: int = Field(default=32, ge=1, description="Sequences a forward: speed and memory alone.")


class Embedding(Section):
    """Units in the plane by UMAP (McInnes et al. 2018, arXiv:1802.03426), and their clusters."""

    n_neighbors: int = Field(default=15, ge=2, description="Neighbours that UMAP keeps together.")
    min_dist: float = Field(default=0.1, ge=0, le=1, description="Least distance in the plane.")
    clustering: Literal["dbscan", "hdbscan"] = Field(
        default="dbscan",
        description="dbscan (Ester et al. 1996) or hdbscan (Campello et al. 2013), which needs "
        "no eps.",
    )
    eps: float = Field(default=0.5, gt=0, description="DBSCAN's radius in the plane.")
    min_samples: int = Field(
        default=5, ge=2, description="Units within eps of a core unit; HDBSCAN's smallest cluster."
    )


class Partition(Section):
    """Rules that call each unit W_func, W_sens or W_both."""

    rules: Rules = Field(
        default=(
            *("contrast", "curvature", "origin", "origin_quantile", "gate", "loss_gap"),
            *("random", "random_tensor"),
        ),
        description="contrast: curvature on members against that on non-members, by tensor; "
        "curvature: quarters by curvature within a tensor; origin: thresholds on alignment and "
        "sparsity; origin_quantile: the same on percentiles; gate: signed gradient of the loss "
        "gap along the weights; loss_gap: that gradient's norm; random: the control; "
        "random_tensor: contrast's.",
    )
    granularity: Literal["row", "tensor", "neuron"] = Field(
        default="row",
        description="What a unit is. row: an output row with its bias; tensor: a weight with its "
        "bias; neuron: an MLP neuron, its row and bias in and its column out.",
    )
    default: Rule = Field(
        default="curvature",
        description="Whose classes the figures show, and whose sizes random copies.",
    )
    random_draws: int = Field(
        default=20,
        ge=5,
        le=2**15 - 1,
        description="Draws of a control, for the null band; it takes 20.",
    )


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
