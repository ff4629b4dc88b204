"""The families that a language model's tensors fall into, and how figures tell them apart."""

from collections.abc import Sequence

from matplotlib.lines import Line2D

from paramscope.names import OUTSIDE, block_number, within_block

EMBEDDING, ATTENTION, MLP, NORM, HEAD, OTHER = FAMILIES = (
    "embedding",
    "attention",
    "mlp",
    "norm",
    "head",
    "other",
)
# Okabe and Ito's palette (jfly.uni-koeln.de/color): told apart with any colour vision, and by
# marker without colour.
COLOURS = {
    EMBEDDING: "#CC79A7",
    ATTENTION: "#0072B2",
    MLP: "#D55E00",
    NORM: "#009E73",
    HEAD: "#222222",
    OTHER: "#8a8a8a",
}
MARKERS = {EMBEDDING: "D", ATTENTION: "o", MLP: "^", NORM: "s", HEAD: "P", OTHER: "X"}
ROUNDING = 1e-9  # of the median curvature: float32's rounding, squared, with room for sums
_MLP = ("fc1", "fc2", "c_fc", "gate_proj", "up_proj", "down_proj", "wi", "wo")


def module(tensor: str) -> str:
    """The module that owns a tensor, named within its block: `attn.c_proj`, `embed_tokens`.

    Outside the blocks it is the module's own name, its path left out.
    """
    path = within_block(tensor).rpartition(".")[0]
    return path.rpartition(".")[2] if block_number(tensor) == OUTSIDE else path


def family(tensor: str) -> str:
    """The family of a tensor, by the names that OPT, GPT-2, Llama and their kin give."""
    *path, own = tensor.rpartition(".")[0].split(".")
    if "norm" in own or own.startswith("ln_"):
        return NORM
    if own in ("lm_head", "embed_out", "output"):
        return HEAD
    if "embed" in own or own in ("wte", "wpe"):
        return EMBEDDING
    if any("attn" in part or "attention" in part for part in (*path, own)):
        return ATTENTION
    if "mlp" in path or own in _MLP:
        return MLP
    return OTHER


def short_names(modules: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the modules' paths that tell them apart: `q_proj`, `mlp.c_proj`."""
    distinct = list(dict.fromkeys(modules))
    names = {}
    for path in distinct:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names[path] = next(
            end
            for end in ends
            if end == path or sum(f".{other}".endswith(f".{end}") for other in distinct) == 1
        )
    return names


def key(name: str, text: str) -> Line2D:
    """A legend's handle for a family."""
    return Line2D(
        [], [], color=COLOURS[name], marker=MARKERS[name], markersize=4, linestyle="", label=text
    )
