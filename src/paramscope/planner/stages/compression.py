"""The stages of rules/compression.smk that take a model."""

from paramscope.config.model import Config
from paramscope.names import Strategy
from paramscope.planner.stages.phases import SAVED, Held, Phase, Stage, loading, most, run, texts

PRUNING: dict[str, Strategy] = {
    "magnitude": "prune-magnitude",
    "wanda": "prune-wanda",
    "sparsegpt": "prune-sparsegpt",
    "gradual": "prune-sparsegpt",
    "admm": "prune-sparsegpt",
}
BEST = Held("what the best epoch kept", "weights")
MASKS = Held("masks, a byte a weight", "inside")


def prune(config: Config) -> Stage:
    """By all of the run's methods: what the dearest takes."""
    section = config.compression
    sequences = section.samples or config.corpus.documents.calibration
    sequences = min(sequences, config.corpus.documents.calibration)
    batch = min(section.batch, sequences)
    held = [
        Held("hidden states of the other batches", "hidden", (sequences - batch) * config.length)
    ]
    if "admm" in section.methods:
        held.append(Held("ADMM's six matrices of a weight's shape", "entries", 6 * 4))
    density = max(section.densities)
    phases = [
        run(strategy, config, batch, *held, density=density)
        for strategy in dict.fromkeys(PRUNING[method] for method in section.methods)
    ]
    training = "gradual" in section.methods and section.recovery_steps > 0
    if training:
        recovery = min(section.finetune.batch, _training_documents(config))
        phases.append(run("masked_finetune", config, recovery, BEST, MASKS, density=density))
    written = Held("the compact model that is written", "weights", 1, "memory")
    documents = texts(config, "calibration") + (texts(config, "public") if training else 0)
    return Stage(
        (loading(config), *phases, Phase(held=(MASKS, written))),
        ("compression.batch", "compression.samples", "dtype"),
        documents=documents,
        memory_gb=section.memory_gb,
    )


def finetune(config: Config) -> Stage:
    """At the highest density that is finetuned; that of the control is 1."""
    section, schedule = config.compression, config.compression.finetune
    batch = min(schedule.batch, _training_documents(config))
    size = -(-batch // schedule.accumulation)
    held = [BEST, MASKS, SAVED, Held("optimizer's states, saved", "vectors", 2, "copy")]
    if schedule.accumulation > 1:
        held.append(Held("the gradient of a step's earlier forwards", "weights"))
    if schedule.distillation:
        tokens = size * config.length
        held += [
            Held("the dense model, the teacher", "weights"),
            Held("hidden states of both, in float32 once more", "outputs", tokens),
        ]
    density = 1.0 if section.control else max(section.densities)
    judged = min(schedule.batch, most(config, "nonmember", "evaluation"))
    states = Held("optimizer's states", "vectors", 2)
    return Stage(
        (
            _unpacked(),
            run(
                "masked_finetune",
                config,
                size,
                *held,
                density=density,
                checkpointing=schedule.checkpoint_activations,
            ),
            run("inference", config, judged, BEST, MASKS, states),
        ),
        (
            "compression.finetune.checkpoint_activations",
            "compression.finetune.accumulation",
            "dtype",
        ),
        documents=texts(config, "public", "nonmember"),
        windows=texts(config, "evaluation"),
        memory_gb=section.memory_gb,
    )


def evaluate(config: Config) -> Stage:
    """A dense model and two compact ones, each read while the one before is let go."""
    batch, generation = config.compression.batch, config.compression.generation
    before = Held("the model before it", "weights")
    phases = [loading(config), _unpacked(before), run("inference", config, batch, before, MASKS)]
    if generation.enabled:
        tokens = batch * (generation.prompt_tokens + generation.new_tokens)
        cache = Held("keys and values, and their copies", "cache", 2 * tokens)
        phases.append(run("inference", config, batch, before, MASKS, cache))
    return Stage(
        tuple(phases),
        ("compression.batch", "dtype"),
        documents=texts(config, "evaluation") if generation.enabled else 0,
        windows=texts(config, "evaluation"),
    )


def _unpacked(*held: Held) -> Phase:
    """A compact model as it is read."""
    places = Held("places of a weight's kept values", "entries", 2 * 8, "memory")
    copied = Held("weights on their way to the GPU", "weights", 1, "copy")
    return Phase(held=(MASKS, places, copied, *held))


def _training_documents(config: Config) -> int:
    public = config.corpus.documents.public
    return min(config.compression.finetune.documents or public, public)
