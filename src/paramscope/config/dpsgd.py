"""The DP-SGD study's part of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paramscope.config.kinds import Name
from paramscope.config.section import Section, a_list, inconsistent, unique
from paramscope.names import DPSGD_METHODS, DPSGD_OPTIONS

Variant = Annotated[
    str, Field(pattern=rf"^({'|'.join(DPSGD_METHODS)})(\+({'|'.join(DPSGD_OPTIONS)}))*$")
]


class Workload(Section):
    """A model at random weights and a batch of random tokens."""

    family: Literal["llama", "opt", "gpt2"] = Field(description="transformers' architecture.")
    hidden: int = Field(ge=1, description="Width of the residual stream.")
    layers: int = Field(ge=1, description="Decoder layers.")
    heads: int = Field(ge=1, description="Attention heads; divides hidden.")
    ffn: int = Field(ge=1, description="Neurons of a layer's MLP.")
    vocabulary: int = Field(ge=2, description="Tokens of the vocabulary.")
    length: int = Field(ge=2, description="Tokens a sample.")
    batch: int = Field(ge=1, description="Samples a step.")
    tied: bool = Field(default=False, description="The head's weight is the embedding's.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise inconsistent(
                "heads", self.heads, f"and does not divide hidden, {self.hidden}", "give a divisor"
            )
        return self


class PrivateFinetuning(Section):
    """Finetuning of the base on the members at each epsilon, beside the target."""

    epsilons: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], a_list(), AfterValidator(unique)
    ] = Field(default=(1.0, 3.0, 8.0), description="Privacy budgets, a model each.")
    delta: float = Field(
        default=0.0, ge=0, lt=1, description="Of (epsilon, delta); 0: members^-1.1."
    )
    accountant: Literal["rdp", "prv"] = Field(
        default="rdp",
        description="rdp (Mironov 2017, arXiv:1702.07476), or prv (Gopi et al. 2021, "
        "arXiv:2106.02848), tighter and slower.",
    )
    epochs: int = Field(
        default=8, ge=1, description="Times that each member is expected to be drawn."
    )
    batch: int = Field(default=64, ge=1, description="Members a step is expected to have.")
    physical_batch: int = Field(
        default=8, ge=1, description="Members a forward at most: speed and memory alone."
    )
    max_norm: float = Field(
        default=1.0, gt=0, description="Norm that a member's gradient is clipped to."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak, of AdamW.")
    method: Literal["bk", "flash", "ghost", "per_layer", "micro"] = Field(
        default="bk", description="How gradients are clipped."
    )


class Dpsgd(Section):
    """What DP-SGD costs and buys; made by: snakemake dpsgd."""

    workload: Name = Field(
        default="decoder-small", description="What is profiled in this run, a name in known."
    )
    methods: Annotated[tuple[Variant, ...], a_list(), AfterValidator(unique)] = Field(
        default=(
            *DPSGD_METHODS,
            "bk+chunk",
            "vanilla+chunk+checkpoint",
            "bk+chunk+checkpoint",
            "micro+chunk+checkpoint",
        ),
        description="vanilla: plain training; opacus_hooks, opacus_ghost: Opacus' (Yousefpour et "
        "al. 2021, arXiv:2109.12298); ghost: Gram matrices and two backwards (Li et al. 2022, "
        "arXiv:2110.05679); flash: tiles or products instead; bk: one backward (Bu et al. 2023, "
        "arXiv:2210.00038); per_layer: layers clipped apart (He et al. 2023, arXiv:2212.01539); "
        "micro: a sample at a time. Options: +chunk, logits by chunks; +checkpoint, blocks run "
        "again in the backward; +bf16, weights in bfloat16.",
    )
    chunk_tokens: int = Field(default=128, ge=1, description="Tokens a chunk of +chunk.")
    trainable: str = Field(
        default="", description="Regular expression of trained parameters' names; empty: all."
    )
    max_norm: float = Field(
        default=1.0, gt=0, description="Norm that a sample's gradient is clipped to."
    )
    noise_multiplier: float = Field(
        default=1.0, ge=0, description="Noise's deviation over that norm."
    )
    warmup: int = Field(default=2, ge=1, description="Iterations before any that counts.")
    iterations: int = Field(default=10, ge=3, description="Iterations that are timed.")
    predicted: tuple[Name, ...] = Field(
        default=("reference",),
        strict=False,
        description="Workloads whose memory is computed on fake tensors where there is no GPU.",
    )
    wait: bool = Field(
        default=False, description="Wait for a GPU that holds another process's memory."
    )
    known: dict[Name, Workload] = Field(
        default={
            "decoder-small": Workload(
                family="llama", hidden=256, layers=4, heads=4, ffn=688, vocabulary=2000,
                length=512, batch=2,
            ),
            "decoder-long": Workload(
                family="llama", hidden=256, layers=4, heads=4, ffn=688, vocabulary=2000,
                length=2048, batch=1,
            ),
            "opt-125m": Workload(
                family="opt", hidden=768, layers=12, heads=12, ffn=3072, vocabulary=50272,
                length=512, batch=2, tied=True,
            ),
            "reference": Workload(
                family="llama", hidden=2048, layers=20, heads=16, ffn=5504, vocabulary=32000,
                length=16384, batch=1,
            ),
        },
        min_length=1,
        json_schema_extra={"additionalProperties": False},
        description="Workloads that a run can name. Outputs are in results/dpsgd/NAME.",
    )  # fmt: skip
    finetuning: PrivateFinetuning = PrivateFinetuning()

    @model_validator(mode="after")
    def _workloads_are_known(self) -> Self:
        for key, names in (("workload", (self.workload,)), ("predicted", self.predicted)):
            unknown = next((name for name in names if name not in self.known), None)
            if unknown is not None:
                raise inconsistent(
                    key,
                    getattr(self, key),
                    f"and known lacks {unknown}",
                    f"known are {', '.join(self.known)}",
                )
        for variant in self.methods:
            options = variant.split("+")[1:]
            if len(set(options)) < len(options):
                raise inconsistent(
                    "methods", variant, "and has an option twice", "give each option once"
                )
        return self
