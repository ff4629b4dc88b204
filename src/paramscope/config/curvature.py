"""The parts of a configuration that say how curvature is taken."""

from typing import Literal

from pydantic import Field

from paramscope.config.section import Section


class Curvature(Section):
    """Diagonal of the curvature of the loss over the calibration split."""

    method: Literal["ggn", "hutchinson", "xdiag", "exact", "finite_difference"] = Field(
        default="ggn",
        description="ggn: the generalised Gauss-Newton matrix (Schraudolph 2002; Martens 2020, "
        "arXiv:1412.1193) by random draws, squared by sequence. Of the true Hessian: hutchinson "
        "(1990) and xdiag (Epperly et al. 2024, arXiv:2301.07825), far noisier; exact and "
        "finite_difference, for models of up to 200,000 parameters.",
    )
    draws: int = Field(
        default=16, ge=1, description="Draws a sequence at most; standard errors take two."
    )
    draws_per_shard: int = Field(
        default=4,
        ge=1,
        description="Draws a job; rounding apart, of no effect. Raise draws by multiples of it, "
        "and the draws that exist are kept.",
    )
    tolerance: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Stop drawing once every tensor's standard error is this share of its mean; "
        "0: make all draws, all shards at once.",
    )
    probes: int = Field(default=16, ge=2, description="Products with the Hessian a draw of xdiag.")
    batch: int = Field(
        default=16,
        ge=1,
        description="Sequences a forward: speed and memory alone. Halved where memory runs out.",
    )
    graph: Literal["whole", "checkpointed", "layerwise"] = Field(
        default="whole",
        description="What of ggn's graph is in memory: whole; checkpointed, each block's input "
        "(Chen et al. 2016, arXiv:1604.06174); layerwise, one block at a time. Of no effect on "
        "the numbers.",
    )
    memory_gb: float = Field(
        default=0.0, ge=0, description="Memory a job keeps to, in 10^9 bytes; 0: no limit."
    )


class Kfac(Section):
    """Kronecker factors of the curvature, whose directions the rule kfac of prm.rules classes."""

    draws: int = Field(default=4, ge=1, description="Draws of the outputs' factors.")
    by: Literal["count", "mass"] = Field(
        default="count",
        description="count: a share of each weight's directions at either end; mass: those of "
        "highest curvature that hold a share of it, and the rest (Merullo et al. 2025, "
        "arXiv:2510.24256).",
    )
    share: float = Field(default=0.25, gt=0, lt=1, description="That share.")
    removal_draws: int = Field(
        default=5, ge=1, description="Random choices of directions taken out, as a control."
    )
    removal_seeds: int = Field(
        default=5,
        ge=2,
        description="Noise seeds, in all directions, that taking directions out is set against.",
    )


class CurvatureBlocks(Section):
    """Diagonal blocks of the Gauss-Newton matrix; made by: snakemake curvature_blocks."""

    units: tuple[str, ...] = Field(
        default=(),
        strict=False,
        examples=[["model.decoder.layers.0.fc1.weight:7"]],
        description="Rows of linear layers, LAYER.weight:ROW, each with its bias.",
    )


class Spotcheck(Section):
    """Exact Hessian and Gauss-Newton entries beside the estimate."""

    parameters: int = Field(default=300, ge=2, description="Entries, stratified over the tensors.")
    sequences: int = Field(
        default=16, ge=1, description="Of the calibration split; an entry costs a Hessian product."
    )


class Eigenspace(Section):
    """The top eigenvectors of the Hessian, which the feature `alignment` is measured against."""

    k: int = Field(default=10, ge=1, description="Eigenvectors, of largest |eigenvalue|.")
    sequences: int = Field(default=32, ge=1, description="Of the calibration split.")
    basis: Literal["device", "cpu"] = Field(
        default="device",
        description="Where Lanczos' basis is, 2k + 10 vectors of the model's size: beside the "
        "model, or in main memory.",
    )
