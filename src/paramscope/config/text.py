"""The configuration of text and of the models trained on it."""

from math import ceil
from typing import Literal, Self

from pydantic import Field, model_validator

from paramscope.config.section import Section, inconsistent

BLIND_SCORES = 2  # that the gate tests: length after zlib, and a bag of words


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
