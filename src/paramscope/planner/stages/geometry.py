"""The stages of rules/geometry.smk that take a model, or what is as large as one."""

from paramscope.config.model import Config
from paramscope.names import Strategy
from paramscope.planner.stages.phases import UNIT_TABLE, Held, Phase, Stage, loading, run, texts

# Draws that a plan runs: those between the first, after which nothing of another is left, and the
# last, which lets its graph go, take the most.
FEW = 3
PROBES = 16  # that a plan's XDiag takes
SIGNS = "random signs, as NumPy makes them: bytes and their bits"


def curvature_draws(config: Config) -> Stage:
    """A shard of draws, and what they are merged by."""
    section = config.curvature
    draws = min(section.draws_per_shard, section.draws)
    if section.method in ("exact", "finite_difference"):
        draws = 1
    return Stage(
        (
            loading(config),
            *_drawing(config, draws, config.corpus.documents.calibration),
            Phase(held=(_moments(draws),)),
        ),
        ("curvature.graph", "curvature.batch", "curvature.draws_per_shard", "dtype"),
        documents=texts(config, "calibration"),
        memory_gb=section.memory_gb,
    )


def curvature(config: Config) -> Stage:
    """Shards merged one after the other: two means and sums of squares, and the new ones."""
    held = (
        Held("means and squares, old and new, and errors", "vectors", 5, "memory"),
        Held("a tensor in float64, and its order", "entries", 4 * 8, "memory"),
        Held("two shards, mapped", "vectors", 4, "file"),
    )
    return Stage((Phase(held=held, model=False),), computes=False)


def spotcheck(config: Config) -> Stage:
    """Draws, and then exact entries: of G by forward mode, of H by the gradient's own graph."""
    sequences, draws = config.spotcheck.sequences, config.curvature.draws
    made = Held("draws, their mean and errors", "vectors", draws + 3)
    tokens = sequences * config.length
    forward = (
        Held("logits, their tangents, probabilities, products", "logits", 6 * tokens),
        Held("tangents of a block's outputs", "outputs", tokens),
        made,
    )
    return Stage(
        (
            loading(config),
            *_drawing(config, draws, sequences),
            Phase(held=(_moments(draws),)),
            run("inference", config, sequences, *forward),
            _product(config, sequences, made),
        ),
        ("curvature.graph", "curvature.batch", "spotcheck.sequences", "curvature.draws", "dtype"),
        documents=texts(config, "calibration"),
        memory_gb=config.curvature.memory_gb,
    )


def curvature_blocks(config: Config) -> Stage:
    """As the diagonal's draws, whose accumulators it is without."""
    section = config.curvature
    batch = min(section.batch, config.corpus.documents.calibration)
    blocks = len(config.curvature_blocks.units) * (section.draws + 4)
    held = Held("blocks, a draw each, and their moments", "blocks", blocks)
    return Stage(
        (
            loading(config),
            _drawn(config, "ggn", batch, section.draws, held),
        ),
        ("curvature.graph", "curvature.batch", "curvature.draws", "dtype"),
        documents=texts(config, "calibration"),
        memory_gb=section.memory_gb,
    )


def eigenspace(config: Config) -> Stage:
    """Lanczos: products with the Hessian, and the basis that they are made orthogonal to."""
    section = config.eigenspace
    basis = Held(
        "Lanczos' basis",
        "vectors",
        2 * section.k + 10,
        "device" if section.basis == "device" else "memory",
    )
    saved = Held("the basis on its way to a file", "vectors", 2 * section.k + 10, "copy")
    at_work = Held("the start, an image and its projection", "vectors", 3)
    found = Held("eigenvectors, and each in its parameters' shapes", "vectors", 2 * section.k)
    batch = min(config.curvature.batch, section.sequences)
    copy = () if section.basis == "cpu" else (saved,)
    return Stage(
        (
            loading(config),
            _product(config, batch, basis, *copy, at_work),
            Phase(held=(basis, found)),
        ),
        ("curvature.batch", "eigenspace.basis", "eigenspace.k", "dtype"),
        documents=texts(config, "calibration"),
    )


def activation_sparsity(config: Config) -> Stage:
    """A forward that keeps each layer's outputs."""
    batch = min(config.activation_sparsity.batch, config.corpus.documents.calibration)
    outputs = Held("every layer's outputs until they are counted", "outputs", batch * config.length)
    return Stage(
        (loading(config), run("inference", config, batch, outputs, UNIT_TABLE)),
        ("activation_sparsity.batch", "dtype"),
        documents=texts(config, "calibration"),
    )


def membership_features(config: Config) -> Stage:
    """A backward over the probes, document by document, and Hessian traces."""
    probe = config.membership.probe
    batch = min(config.curvature.batch, probe)
    gates = Held("gates of every unit and document, and their residuals", "units", 2 * 32 * probe)
    gap = Held("the gradient of the loss gap", "vectors")
    return Stage(
        (
            loading(config),
            run("gradient", config, batch, gap, gates, UNIT_TABLE),
            _hutchinson(config, batch, config.membership.contrast_draws, gap, gates, UNIT_TABLE),
        ),
        ("curvature.batch", "membership.contrast_draws", "dtype"),
        documents=texts(config, "member", "nonmember"),
    )


def kfac(config: Config) -> Stage:
    """Draws, and the factors that they add up to."""
    section = config.curvature
    batch = min(section.batch, config.corpus.documents.calibration)
    means = Held("the factors' means beside their sums", "factors")
    return Stage(
        (loading(config), _drawn(config, "kfac", batch, config.kfac.draws, means)),
        ("curvature.graph", "curvature.batch", "kfac.draws", "dtype"),
        documents=texts(config, "calibration"),
        memory_gb=section.memory_gb,
    )


def directions(config: Config) -> Stage:
    """Eigenvectors of the factors: no model, and matrices as large as one."""
    held = (
        Held("eigenvectors, and again in float32", "factors", 1.5, "memory"),
        Held("curvature along them in float64 and float32, and labels", "inside", 13, "memory"),
        Held("a weight's curvature, its order and their permutation", "entries", 48, "memory"),
        Held("the factors, mapped", "factors", 1, "file"),
    )
    return Stage((Phase(held=held, model=False),), computes=False)


def units(config: Config) -> Stage:
    """The model, its curvature and eigenvectors side by side, in main memory."""
    held = (
        Held("the model, in float32", "singles", 1, "memory"),
        Held("a tensor's weights, curvature, errors and projections", "entries", 6 * 4, "memory"),
        Held("a tensor's absolute values and what of them is finite", "entries", 7, "memory"),
        UNIT_TABLE,
        Held("the curvature, its error and the eigenvectors, mapped", "vectors", 2, "file"),
        Held("eigenvectors, mapped", "vectors", config.eigenspace.k, "file"),
    )
    return Stage((Phase(held=held, model=False),), computes=False)


def _drawing(config: Config, draws: int, sequences: int) -> tuple[Phase, ...]:
    """Draws of the curvature by the run's method over so many sequences."""
    section = config.curvature
    batch = min(section.batch, sequences)
    match section.method:
        case "ggn":
            further = Held("accumulators of further draws", "vectors", _further(draws))
            return (_drawn(config, "ggn", batch, draws, further),)
        case "hutchinson":
            return (_hutchinson(config, batch, draws),)
        case "xdiag":
            made = Held("diagonals of earlier draws", "vectors", draws)
            signs = Held(SIGNS, "parameters", 0.625 * section.probes)
            pairs = max(0, section.probes - PROBES) / 2
            further = Held(
                "images of further probes, their basis and its making", "vectors", 3 * pairs
            )
            return (run("xdiag", config, batch, made, signs, further),)
    # Entry by entry, of small models alone: 32 rows of the Hessian share a backward, each with
    # gradients of all that the double backward keeps.
    rows = Held("gradients of 32 rows of the Hessian", "outputs", 32 * 3 * batch * config.length)
    logits = Held("logits' part of them", "logits", 32 * 2 * batch * config.length)
    return (_product(config, batch, rows, logits),)


def _product(config: Config, batch: int, *held: Held) -> Phase:
    """A product with the Hessian, as of XDiag, without the signs and the images that it gathers."""
    gathered = Held("images of earlier probes", "vectors", 1 - PROBES / 2)
    signs = Held("their signs", "parameters", -PROBES / 2)
    return run("xdiag", config, batch, gathered, signs, *held)


def _drawn(config: Config, strategy: Strategy, batch: int, draws: int, *held: Held) -> Phase:
    """A few draws, and of each further one what its head hands to the body."""
    tokens, more = batch * config.length, _further(draws)
    handed = Held("gradients of further draws at the head's input", "hidden", more * tokens)
    own = 4 * config.length + 8 * 9  # r at the sequence's own tokens; a uniform and 8 for signs
    labels = Held("labels of further draws", "bytes", more * tokens * own)
    options = {"draws": min(draws, FEW), "graph": config.curvature.graph}
    return run(strategy, config, batch, handed, labels, *held, **options)


def _hutchinson(config: Config, batch: int, draws: int, *held: Held) -> Phase:
    """A few draws, and the accumulators of further ones."""
    further = Held("accumulators of further draws", "vectors", _further(draws))
    signs = Held(SIGNS, "parameters", 1.25)
    return run("hutchinson", config, batch, further, signs, *held, draws=min(draws, FEW))


def _further(draws: int) -> int:
    return max(0, draws - FEW)


def _moments(draws: int) -> Held:
    return Held("draws, and means and squares, old and new", "vectors", draws + 4)
