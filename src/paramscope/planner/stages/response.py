"""The stages of rules/response.smk that take a model."""

from paramscope.config.model import Config
from paramscope.planner.stages.phases import Held, Stage, loading, most, run, texts

AT_WORK = Held("noise, and the weights as they were", "weights", 2)
DIAGONAL = Held("the curvature and its error, mapped", "vectors", 2, "file")


def membership(config: Config) -> Stage:
    """Statistics of each token under the target, then under the base."""
    batch = min(config.prm.batch, most(config, "member", "nonmember"))
    other = Held("the reference model, which is read while the target is let go", "weights")
    return Stage(
        (loading(config), run("inference", config, batch, other)),
        ("prm.batch", "dtype"),
        documents=texts(config, "member", "nonmember"),
    )


def noise_range(config: Config) -> Stage:
    """The sweep that seeks the scales, over two noise seeds."""
    return _judged_under_noise(config, 2)


def prm(config: Config) -> Stage:
    """A shard of the sweep."""
    return _judged_under_noise(config, 1, DIAGONAL)


def tensor_responses(config: Config) -> Stage:
    """The sweep over single weights."""
    return _judged_under_noise(config, 1, DIAGONAL)


def removal(config: Config) -> Stage:
    """Directions taken out, and noise in all of them."""
    order = Held("a weight's curvature, its order and their permutation", "entries", 48, "memory")
    labels = Held("labels of the directions, of all and of a level", "inside", 3)
    return _judged_under_noise(config, 1, labels, order)


def _judged_under_noise(config: Config, seeds: int, *held: Held) -> Stage:
    """A model judged under noise; of more seeds than one, each keeps its own."""
    batch = min(config.prm.batch, most(config, "member", "nonmember", "evaluation"))
    more = (Held("noise of further seeds", "weights", seeds - 1), *held)
    if "kfac" in config.prm.rules:
        more += (
            Held("noise in the weights' own basis, of each class", "vectors", 3),
            Held("which directions are of each class", "inside", 3),
            Held("directions, their curvature and labels, mapped", "inside", 5, "file"),
            Held("their eigenvectors, mapped", "factors", 0.5, "file"),
        )
    return Stage(
        (loading(config), run("inference", config, batch, AT_WORK, *more)),
        ("prm.batch", "dtype"),
        documents=texts(config, "member", "nonmember"),
        windows=texts(config, "evaluation"),
    )
