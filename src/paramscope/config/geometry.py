"""The configuration of units: their features, layout and classes."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from paramscope.config.section import Section, a_list, unique

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
Rules = Annotated[tuple[Rule, ...], a_list(), AfterValidator(unique)]


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
