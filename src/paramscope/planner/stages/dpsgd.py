"""The stages of rules/dpsgd.smk that take a model."""

from typing import Any, cast

from paramscope.config.model import Config
from paramscope.names import Strategy
from paramscope.planner.stages.phases import SAVED, Held, Phase, Stage, loading, most, run, texts

SCORED = 16  # sequences a forward of `privacy-scores`, which the configuration has no key for


def dpsgd_profile(config: Config) -> Stage:
    """By all of the run's methods: what the dearest takes. One that can't be is a result, too."""
    section = config.dpsgd
    phases = (_profiled(config, variant) for variant in section.methods)
    return Stage(
        tuple(phases),
        predicted=section.workload in section.predicted,
        binding=False,
    )


def _profiled(config: Config, variant: str) -> Phase:
    section = config.dpsgd
    workload = section.known[section.workload]
    method, *flags = variant.split("+")
    options: dict[str, Any] = {
        "dtype": "bfloat16" if "bf16" in flags else config.dtype,
        "batch": workload.batch,
        "length": workload.length,
    }
    if "chunk" in flags:
        options["chunk_tokens"] = section.chunk_tokens
    if "checkpoint" in flags:
        options["checkpointing"] = True
    held: tuple[Held, ...] = ()
    if method == "opacus_hooks":
        method, held = "vanilla", (Held("each sample's gradient", "weights", workload.batch + 1),)
    elif method == "opacus_ghost":
        method, held = "ghost", (Held("a sum of gradients of its own", "weights"),)
    sizes = workload.model_dump(mode="json")
    return Phase(cast("Strategy", f"dpsgd-{method}"), options, held, workload=sizes)


def dp_finetune(config: Config) -> Stage:
    """Private training, as many members a forward as fit the physical batch."""
    section = config.dpsgd.finetuning
    batch = min(section.physical_batch, config.corpus.documents.member)
    saved = Held("optimizer's states, saved", "weights", 2, "copy")
    held = [SAVED, saved]
    if section.batch > batch:
        held.append(Held("the clipped sum of a step's earlier parts", "weights"))
    strategy = cast("Strategy", f"dpsgd-{section.method}")
    return Stage(
        (loading(config), run(strategy, config, batch, *held)),
        ("dpsgd.finetuning.physical_batch", "dtype"),
        documents=texts(config, "member"),
    )


def privacy_scores(config: Config) -> Stage:
    """Base, private models and target, one after the other."""
    batch = min(SCORED, most(config, "member", "nonmember", "evaluation"))
    other = Held("the model before it, while it is let go", "weights")
    return Stage(
        (loading(config), run("inference", config, batch, other)),
        ("dtype",),
        documents=texts(config, "member", "nonmember"),
        windows=texts(config, "evaluation"),
    )
