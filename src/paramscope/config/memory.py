"""The part of a configuration that says what memory is planned for."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paramscope.config.section import Section, a_list, inconsistent, unique
from paramscope.names import GpuDevice, MemoryDevice, Strategy

Device = Literal[MemoryDevice, GpuDevice]
Models = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], a_list(), AfterValidator(unique)
]


class Memory(Section):
    """What fits which device; made by: snakemake memory_plan. And what this run has to fit."""

    models: Models = Field(
        default=(
            *("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b"),
            *("opt-6.7b", "opt-13b", "opt-30b"),
        ),
        description="Names of sizes of OPT, folders with config.json, or ids on the Hugging Face "
        "hub; weights are not loaded.",
    )
    strategies: Annotated[tuple[Strategy, ...], a_list(), AfterValidator(unique)] = Field(
        default=(
            *("inference", "gradient", "training", "masked_finetune"),
            *("ggn", "hutchinson"),
            *("prune-magnitude", "prune-wanda", "prune-sparsegpt"),
            *("dpsgd-vanilla", "dpsgd-bk", "dpsgd-flash", "dpsgd-micro"),
            *("block_hessian", "full_hessian"),
        ),
        description="What is planned: as the stages do it, and two matrices that none holds.",
    )
    devices: Annotated[tuple[Device, ...], a_list(), AfterValidator(unique)] = Field(
        default=("laptop-8gb", "wsl-8gb", "rtx-24gb", "a800", "h100-80gb", "h200"),
        description="Devices that it is planned for; `paramscope device` tells what they have.",
    )
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the planned models' weights."
    )
    batch: int = Field(default=1, ge=1, description="Sequences a forward.")
    length: int = Field(default=512, ge=2, description="Tokens a sequence.")
    shown: Models = Field(
        default=("opt-125m", "opt-1.3b", "opt-6.7b"), description="Models in the figure."
    )
    device: Literal["local", Device] = Field(
        default="local",
        description="What this run's own stages have to fit before any of them starts; local: "
        "this machine, as much as is free.",
    )

    @model_validator(mode="after")
    def _shown_is_planned(self) -> Self:
        missing = [model for model in self.shown if model not in self.models]
        if missing:
            raise inconsistent(
                "shown",
                self.shown,
                f"and models lacks {', '.join(missing)}",
                "add to models, or take out here",
            )
        return self
