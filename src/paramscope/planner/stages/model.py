"""The stages of rules/model.smk that take a model, and shadow models, which are trained alike."""

from paramscope.config.kinds import Checkpoint
from paramscope.config.model import Config
from paramscope.planner.stages.phases import SAVED, Held, Phase, Stage, loading, most, run, texts


def base(config: Config) -> Stage:
    """Training from scratch; or a checkpoint, which is read and judged."""
    batch, judged = config.base.batch, 2 * config.base.batch
    made: tuple[Phase, ...]
    judging = run("inference", config, min(judged, most(config, "member", "nonmember")))
    if _is_checkpoint(config):  # as it is: read, whatever its format, and judged
        whole = Held("the published file, read into memory", "weights", 1, "memory")
        made = (Phase(held=(whole,)), loading(config))
    else:
        trained = min(batch, config.corpus.documents.public)
        made = (run("training", config, trained, SAVED),)
    documents = texts(config, "public", "member", "nonmember")
    return Stage((*made, judging), ("base.batch", "dtype"), documents=documents)


def target(config: Config) -> Stage:
    """Training on the members, judged between its steps."""
    batch = min(config.target.batch, config.corpus.documents.member)
    judged = min(2 * config.target.batch, most(config, "member", "nonmember"))
    return Stage(
        (
            loading(config),
            run("training", config, batch, SAVED, *_dropped(config, batch)),
            run("inference", config, judged),
        ),
        ("target.batch", "dtype"),
        documents=texts(config, "member", "nonmember"),
    )


def shadow(config: Config) -> Stage:
    """As the target's; its halves are encoded once to train on, and all once more to be scored."""
    like = target(config)
    return Stage(like.phases, like.lowered_by, documents=2 * like.documents)


def _is_checkpoint(config: Config) -> bool:
    """Whether the run's model is a checkpoint, whose dropout may be on while it is trained."""
    return isinstance(config.models[config.model], Checkpoint)


def _dropped(config: Config, batch: int) -> tuple[Held, ...]:
    """What dropout keeps of a batch: strategies run without."""
    tokens = batch * config.length
    return (
        Held("dropout's masks", "dropout", tokens),
        Held("attention's dropout", "attention", tokens * config.length),
    )
