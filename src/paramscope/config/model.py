"""The configuration of a run: its sections, and what must hold between them."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from paramscope.config.compression import Compression
from paramscope.config.curvature import (
    Curvature,
    CurvatureBlocks,
    Eigenspace,
    Kfac,
    Spotcheck,
)
from paramscope.config.dpsgd import Dpsgd
from paramscope.config.geometry import ActivationSparsity, Embedding, Partition
from paramscope.config.kinds import Model, Name, Planted, Scratch
from paramscope.config.memory import Memory
from paramscope.config.response import Membership, Prm
from paramscope.config.section import Section, inconsistent
from paramscope.config.text import Base, Corpus, Target
from paramscope.names import CONTROLS, GpuDevice, MemoryDevice

STUDY_FOLDERS = ("dpsgd", "memory", "benchmarks")  # under results/, beside the models'
JUDGES = 10  # members, and non-members, that attacks are judged on at the least


class Config(Section):
    """The configuration of a run of paramscope."""

    model: str = Field(default="tiny-opt", description="The model under study, a name in models.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="All other seeds derive from it.")
    replicates: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        default=(),
        strict=False,
        examples=[[1, 2, 3, 4]],
        description="More training seeds: each a whole study of its own, deal, base and target "
        "included, in results/NAME@SEED; the scores are set side by side.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        examples=["auto", "cpu", "cuda", "cuda:1"],
        description="auto (CUDA where there is one, else CPU), cpu, cuda, or cuda:N.",
    )
    dtype: Literal["float64", "float32", "bfloat16"] = Field(
        default="float32", description="Number format of weights: float64, float32 or bfloat16."
    )
    threads: int = Field(
        default=2,
        ge=1,
        description="CPU threads of a stage that runs alone (a shard takes 1); not taken from "
        "--cores, so results don't depend on that.",
    )
    length: int = Field(default=64, ge=2, description="Tokens a sequence; longer text is cut.")
    force: bool = Field(
        default=False, description="Begin a run that by its plan does not fit memory.device."
    )
    models: dict[Name, Model] = Field(
        default={
            "tiny-opt": Scratch(
                kind="scratch", hidden=128, layers=4, heads=4, ffn=512, vocab=2048, positions=128
            ),
            "planted": Planted(kind="planted", units=900),
        },
        min_length=1,
        json_schema_extra={"additionalProperties": False},
        description="Models that a run can name. Outputs are in results/NAME.",
    )
    corpus: Corpus = Corpus()
    base: Base = Base()
    target: Target = Target()
    curvature: Curvature = Curvature()
    curvature_blocks: CurvatureBlocks = CurvatureBlocks()
    kfac: Kfac = Kfac()
    spotcheck: Spotcheck = Spotcheck()
    eigenspace: Eigenspace = Eigenspace()
    activation_sparsity: ActivationSparsity = ActivationSparsity()
    embedding: Embedding = Embedding()
    partition: Partition = Partition()
    membership: Membership = Membership()
    prm: Prm = Prm()
    compression: Compression = Compression()
    dpsgd: Dpsgd = Dpsgd()
    memory: Memory = Memory()

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for check in CHECKS:
            check(self)
        return self


def _model_is_known(config: Config) -> None:
    if config.model not in config.models:
        names = sorted(config.models)
        close = get_close_matches(config.model, names, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise inconsistent("model", config.model, "", f"known models: {', '.join(names)}{meant}")


def _replicates_are_other_seeds(config: Config) -> None:
    seeds = [config.seed, *config.replicates]
    if len(set(seeds)) < len(seeds):
        others = sorted(set(config.replicates) - {config.seed})
        raise inconsistent(
            "replicates",
            list(config.replicates),
            f"and names a seed twice, or the run's own, {config.seed}",
            f"write {others}",
        )
    if config.replicates and isinstance(config.models[config.model], Planted):
        raise inconsistent(
            "replicates",
            list(config.replicates),
            f"and model {config.model} is planted, and not trained",
            "write []",
        )


def _sequences_fit_the_model(config: Config) -> None:
    model = config.models[config.model]
    if isinstance(model, Scratch) and config.length > model.positions:
        raise inconsistent(
            "length",
            config.length,
            f"and model {config.model} has {model.positions} positions",
            f"give at most {model.positions}",
        )


def _calibration_has_the_sequences(config: Config) -> None:
    held = config.corpus.documents.calibration
    for name, section in (("spotcheck", config.spotcheck), ("eigenspace", config.eigenspace)):
        if section.sequences > held:
            raise inconsistent(
                f"{name}.sequences",
                section.sequences,
                f"and corpus.documents.calibration is {held}",
                f"give at most {held}",
            )


def _judges_are_left(config: Config) -> None:
    fewest = min(config.corpus.documents.member, config.corpus.documents.nonmember)
    if config.membership.probe > fewest - JUDGES:
        raise inconsistent(
            "membership.probe",
            config.membership.probe,
            f"and of {fewest} members or non-members {JUDGES} must be left to judge",
            f"give at most {max(fewest - JUDGES, 2)}",
        )


def _curvature_can_be_taken(config: Config) -> None:
    method, section = config.curvature.method, config.curvature
    if method == "finite_difference" and config.dtype != "float64":
        raise inconsistent(
            "dtype", config.dtype, f"and curvature.method is {method}", "give float64"
        )
    if method != "ggn" and section.graph != "whole":
        raise inconsistent(
            "curvature.graph", section.graph, f"and curvature.method is {method}", "give whole"
        )
    if method == "xdiag" and section.probes % 2:
        raise inconsistent(
            "curvature.probes", section.probes, "and xdiag takes pairs", "give an even number"
        )


def _units_have_neighbors(config: Config) -> None:
    model = config.models[config.model]
    if isinstance(model, Planted) and 2 * config.embedding.n_neighbors >= model.units:
        raise inconsistent(
            "embedding.n_neighbors",
            config.embedding.n_neighbors,
            f"and model {config.model} has {model.units} units",
            f"give at most {(model.units - 1) // 2}, less than half",
        )


def _default_rule_is_made(config: Config) -> None:
    default, rules = config.partition.default, config.partition.rules
    if default in CONTROLS:
        raise inconsistent(
            "partition.default", default, "and that is a control", "name another rule"
        )
    if "random_tensor" in rules and "contrast" not in rules:
        raise inconsistent(
            "partition.rules",
            rules,
            "and random_tensor is drawn like contrast",
            "add contrast, or take random_tensor out",
        )
    if default not in rules:
        raise inconsistent(
            "partition.default",
            default,
            "and not in partition.rules",
            f"name one of {', '.join(rules)}, or add it there",
        )


def _responses_have_partitions(config: Config) -> None:
    units = [rule for rule in config.prm.rules if rule != "kfac"]
    missing = [rule for rule in units if rule not in config.partition.rules]
    if missing:
        raise inconsistent(
            "prm.rules",
            config.prm.rules,
            f"and partition.rules lacks {', '.join(missing)}",
            "add to partition.rules, or take out here",
        )


def _planned_device_computes(config: Config) -> None:
    planned, device = config.memory.device, config.device
    if planned in get_args(GpuDevice) and device == "cpu":
        raise inconsistent(
            "memory.device", planned, f"and device is {device}", "plan for local, or a laptop"
        )
    if planned in get_args(MemoryDevice) and device.startswith("cuda"):
        raise inconsistent(
            "memory.device", planned, f"and device is {device}", "plan for local, or a GPU"
        )


def _models_leave_folders_alone(config: Config) -> None:
    taken = next((name for name in STUDY_FOLDERS if name in config.models), None)
    if taken is not None:
        raise inconsistent(
            "models", taken, "and results/ has a folder of that name", "call the model otherwise"
        )


CHECKS: tuple[Callable[[Config], None], ...] = (
    _model_is_known,
    _replicates_are_other_seeds,
    _sequences_fit_the_model,
    _calibration_has_the_sequences,
    _judges_are_left,
    _curvature_can_be_taken,
    _units_have_neighbors,
    _default_rule_is_made,
    _responses_have_partitions,
    _planned_device_computes,
    _models_leave_folders_alone,
)
