"""What all rules share: the checked configuration, code digests, and where things are.

A function of options that looks at `input` brings no rerun when what it returns changes: only
those of paths do.
"""

import os
import re
import sys
from pathlib import Path

from paramscope.artifacts.digest import code_digest
from paramscope.config.load import validate_mixed
from paramscope.errors import ConfigError, RequestError
from paramscope.names import CONTROLS, RANDOM, control_of
from paramscope.planner.run_plan import RunPlan, on_gpu, shared_memory_mb
from snakemake.exceptions import WorkflowError

try:
    CHECKED = validate_mixed(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None
config = CHECKED.model_dump(mode="json")

# `paramscope` is installed where Snakemake is; a conda environment's own comes first.
os.environ |= {"PATH": os.pathsep.join([*os.get_exec_path(), str(Path(sys.executable).parent)])}

MODEL = config["model"]
RESULTS = f"results/{MODEL}"
KIND = config["models"][MODEL]["kind"]
PLANTED = KIND == "planted"
FIGURES = {
    "curvature_quality": False,  # whether a planted model has it
    "curvature_by_layer": False,
    "umap_visualization": True,
    "parameter_clustering": True,
    "prm_phase_diagram": False,
    "noise_response_curves": False,
    "statistical_summary": False,
    "separation": False,
    "membership_scores": False,
    "layer_responses": False,
}
CURVATURE_ENGINE = {
    name: config["curvature"][name] for name in ("method", "probes", "graph", "batch", "memory_gb")
}
DEFAULT_PARTITION = f"{RESULTS}/geometry/partition/{config['partition']['default']}.parquet"
PARTITIONS = [
    f"{RESULTS}/geometry/partition/{rule}.parquet" for rule in config["partition"]["rules"]
]
PRM_RULES = [] if PLANTED else config["prm"]["rules"]
RESPONSES = [f"{RESULTS}/prm/{rule}.parquet" for rule in PRM_RULES]
STATISTICS = [f"{RESULTS}/prm/{rule}.statistics.json" for rule in PRM_RULES]
WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json")
COMPUTE_ENVIRONMENT = (
    "../envs/cuda.yaml" if config["device"].startswith("cuda") else "../envs/cpu.yaml"
)


def models_of(planted):
    """A pattern for the names of planted, or of measured, models."""
    names = [n for n, m in config["models"].items() if (m["kind"] == "planted") == planted]
    return rf"({'|'.join(map(re.escape, names))})(@\d+)?" if names else "(?!)"


PLANTED_MODELS, MEASURED_MODELS = models_of(True), models_of(False)


def figure_paths():
    """The figures of this run's model."""
    return [
        f"{RESULTS}/figures/{name}.png"
        for name, planted in FIGURES.items()
        if planted or not PLANTED
    ]


def study_outputs(wildcards):
    """All that the study ends with."""
    words = [] if PLANTED else [f"{RESULTS}/findings.md"]
    words += [f"{RESULTS}/replication.json"] if config["replicates"] else []
    return [*figure_paths(), *words, f"{RESULTS}/results.json", f"{RESULTS}/results.csv"]


def closing_words():
    """Where the outputs are that were asked for."""
    asked = workflow.dag.targetjobs
    if any(job.rule.name == "all" for job in asked):
        return (
            f"Done. Figures: {RESULTS}/figures/*.png (and .pdf)\n"
            f"      Numbers: {RESULTS}/results.json, {RESULTS}/results.csv"
        )
    folders = {Path(path).parent for job in asked for path in job.output or job.input}
    return f"Done: {', '.join(sorted(map(str, folders)))}"


def run_seed(wildcards):
    """The seed of a model's run: the configuration's, or a replicate's own, as in NAME@SEED."""
    own = wildcards.model.partition("@")[2]
    return int(own) if own else config["seed"]


def settings_of(wildcards):
    """The model's part of the configuration."""
    return config["models"][wildcards.model.partition("@")[0]]


def replicated_statistics():
    """The statistics of every rule at every training seed, by seed."""
    names = {config["seed"]: MODEL} | {seed: f"{MODEL}@{seed}" for seed in config["replicates"]}
    paths = {}
    for seed, name in names.items():
        paths[seed] = [f"results/{name}/prm/{tried}.statistics.json" for tried in PRM_RULES]
    return paths


def replication_inputs(wildcards):
    """All that the replication is gathered from."""
    statistics = [path for paths in replicated_statistics().values() for path in paths]
    return {"statistics": statistics, "removal": replicated_removals()}


def replicated_removals():
    """The record of removal at every training seed, where directions are classed."""
    names = [MODEL, *(f"{MODEL}@{seed}" for seed in config["replicates"])]
    return [f"results/{name}/prm/removal.json" for name in names if "kfac" in PRM_RULES]


def replication_options(wildcards):
    """Each statistics with its training seed, and the removals in the seeds' order, as options."""
    statistics = " ".join(
        f"--seed {seed} --statistics {path}"
        for seed, paths in replicated_statistics().items()
        for path in paths
    )
    return f"{statistics} {repeated('removal', replicated_removals())}"


def corpus_files(wildcards):
    """The local files that the corpus is made from."""
    return [] if config["corpus"]["source"] == "hub" else config["corpus"]["paths"]


def corpus_options(wildcards):
    """The files that the corpus is made from, and their dataset, as options."""
    dataset = config["corpus"]["dataset"]
    paths = repeated("path", config["corpus"]["paths"])
    return f"--dataset {dataset} {paths}" if dataset else paths


def target_folder(wildcards):
    """The model under study."""
    return f"results/{wildcards.model}/target"


def run_target_folder(wildcards):
    """The model under study in this run."""
    return f"{RESULTS}/target"


def base_folder(wildcards):
    """The model that has not seen the members."""
    return f"results/{wildcards.model}/base"


def shards(total, size):
    """First number and count of each shard of `size`; the last may be smaller."""
    return [(first, min(size, total - first)) for first in range(0, total, size)]


def draw_sizes():
    """First number and count of each shard of the curvature; one draw where none is random."""
    settings = config["curvature"]
    if settings["method"] in ("exact", "finite_difference"):
        return [(0, 1)]
    return shards(settings["draws"], settings["draws_per_shard"])


def draw_shards(wildcards):
    """The curvature's shards, in the order of draws."""
    folder = f"results/{wildcards.model}/curvature/draws"
    return [f"{folder}/{first}-{size}.pt" for first, size in draw_sizes()]


def earlier_draw_shards(wildcards):
    """The shards that tell whether this one is still needed, where a tolerance is set.

    Rounds of 1, 1, 2, 4, ... shards: those of a round run side by side, after all before.
    """
    if not config["curvature"]["tolerance"]:
        return []
    place = [first for first, _ in draw_sizes()].index(int(wildcards.first))
    begun = 1 << (place.bit_length() - 1) if place else 0
    return draw_shards(wildcards)[:begun]


def stop_options(wildcards):
    """When a shard has nothing left to do."""
    previous = earlier_draw_shards(wildcards)
    if not previous:
        return ""
    earlier = repeated("previous", previous)
    return f"--tolerance {config['curvature']['tolerance']} {earlier}"


def shadow_tables(wildcards):
    """The tables of LiRA's shadow models, where there are some."""
    total = config["membership"]["shadows"]
    folder = f"results/{wildcards.model}/membership/shadows"
    return [f"{folder}/{number}-of-{total}.parquet" for number in range(total)]


def shadow_options(wildcards):
    """The shadow models' tables as options."""
    tables = shadow_tables(wildcards)
    if not tables:
        return ""
    variant = config["membership"]["lira_variant"]
    return f"{repeated('shadow', tables)} --lira-variant {variant}"


def classes_file(wildcards):
    """Where a partition's classes are: a table of units, or directions."""
    units = f"partition/{wildcards.rule}.parquet"
    name = {"kfac": "directions.pt"}.get(wildcards.rule, units)
    return f"results/{wildcards.model}/geometry/{name}"


def null_is_measured(name):
    """Whether a rule is the control, measured at the scale of +5% perplexity alone."""
    return is_control(name) and config["prm"]["scales"] == "auto"


def is_control(name):
    """Whether a partition rule is random, drawn like another's."""
    return name in CONTROLS


def response_shards(wildcards):
    """A rule's shards of the sweep, in the order of noise seeds."""
    seeds = config["prm"]["seeds"]
    if null_is_measured(wildcards.rule):
        seeds = config["partition"]["random_draws"] * config["prm"]["null_seeds"]
    return [
        f"results/{wildcards.model}/prm/shards/{wildcards.rule}/{first}-{size}.parquet"
        for first, size in shards(seeds, shard_seeds(wildcards.rule))
    ]


def shard_seeds(name):
    """Noise seeds a job: as many evaluations a job for the control, which takes few a seed."""
    few = config["prm"]["seeds_per_shard"]
    return few * config["prm"]["points"] if null_is_measured(name) else few


def noise_scales(wildcards):
    """Each class's own scales, where they are sought."""
    if config["prm"]["scales"] == "fixed":
        return []
    return f"results/{wildcards.model}/prm/{wildcards.rule}.range.json"


def scale_options(wildcards):
    """The scales of noise as options of the sweep."""
    if config["prm"]["scales"] == "fixed":
        return repeated("sigma", config["prm"]["sigmas"])
    control = " --iso --only W_func --only W_sens" if null_is_measured(wildcards.rule) else ""
    return f"--ranges {noise_scales(wildcards)}{control}"


def null_statistics(wildcards):
    """The statistics of a rule's own control, or else of the rows' control, where measured."""
    if is_control(wildcards.rule):
        return []
    measured = [name for name in (control_of(wildcards.rule), RANDOM) if name in PRM_RULES]
    return [f"results/{wildcards.model}/prm/{name}.statistics.json" for name in measured[:1]]


def null_options(wildcards, input):
    """The control's statistics as an option."""
    return f"--null {input.null}" if input.null else ""


def shard_options(wildcards, input):
    """The shards in order, as the options of a merge."""
    return repeated("shard", input)


def results_inputs(wildcards):
    """What the results are gathered from, by the name of its option."""
    folder = f"results/{wildcards.model}"
    common = {
        "units": f"{folder}/geometry/units.parquet",
        "quality": f"{folder}/geometry/embedding.json",
        "partition": PARTITIONS,
    }
    if PLANTED:
        return common
    return common | {
        "responses": RESPONSES,
        "statistics": STATISTICS,
        "curvature_summary": f"{folder}/curvature/summary.parquet",
        "spotcheck": f"{folder}/curvature/spotcheck.json",
        "gate": f"{folder}/corpus/gate.json",
        "membership": f"{folder}/membership/summary.json",
        "removal": [f"{folder}/prm/removal.json"] if "kfac" in PRM_RULES else [],
        "tensor_responses": f"{folder}/prm/tensors.responses.parquet",
        "base_training": f"{folder}/base/training.parquet",
        "target_training": f"{folder}/target/training.parquet",
    }


def results_options(wildcards, input):
    """The results' inputs as options; a list is repeated."""
    given = results_inputs(wildcards)
    return " ".join(
        repeated(name.replace("_", "-"), [paths] if isinstance(paths, str) else paths)
        for name, paths in given.items()
    )


def planted_count(wildcards):
    """Units of a planted model."""
    return settings_of(wildcards)["units"]


def partition_reference(wildcards):
    """The partition whose labels a control deals out anew."""
    if not is_control(wildcards.rule):
        return []
    like = config["partition"]["default"] if wildcards.rule == RANDOM else "contrast"
    return f"results/{wildcards.model}/geometry/partition/{like}.parquet"


def partition_options(wildcards):
    """What only a control takes."""
    reference = partition_reference(wildcards)
    if not reference:
        return ""
    return (
        f"--like {reference} "
        f"--draws {config['partition']['random_draws']} --seed {run_seed(wildcards)}"
    )


def tokenizer_options(wildcards):
    """A tokenizer of the model's own, or its checkpoint's."""
    model = settings_of(wildcards)
    if model["kind"] == "checkpoint":
        return f"--checkpoint {model['source']}"
    return f"--vocab {model['vocab']}"


def base_options(wildcards):
    """A model trained from scratch, or a checkpoint as it is."""
    model = settings_of(wildcards)
    if model["kind"] == "checkpoint":
        return f"--checkpoint {model['source']}"
    sizes = ("hidden", "layers", "heads", "ffn", "positions")
    training = ("epochs", "batch", "learning_rate")
    return (
        options({name: model[name] for name in sizes})
        + " "
        + options({name: config["base"][name] for name in training})
    )


def options(values):
    """Values as command line options: {"min_k": 20} is --min-k 20."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def compute_options(threads):
    """The options of every stage that computes on the model."""
    return options({"device": config["device"], "dtype": config["dtype"], "threads": threads})


def repeated(option, values):
    """An option once a value."""
    return " ".join(f"--{option} {value}" for value in values)


def stage_gpus(wildcards):
    """GPUs of a stage that computes: one, unless it is planned for the CPU."""
    return int(on_gpu(CHECKED))


PLAN = RunPlan(config)
TOLD = set()  # what was said already: resources are asked for several times a job


def say_once(words):
    """A line on stderr, the first time alone."""
    if words not in TOLD:
        TOLD.add(words)
        print(words, file=sys.stderr)


def planned_model(wildcards):
    """The name in models that a job's model goes by."""
    return getattr(wildcards, "model", MODEL).partition("@")[0]


def planned_jobs():
    """The rule and the model of each job that is to run."""
    wanted = [(job.rule.name, planned_model(job.wildcards)) for job in workflow.dag.needrun_jobs()]
    return [(rule, model) for rule, model in wanted if model in config["models"]]


def stage_memory(rule, unplanned=2000):
    """The memory of a rule's jobs by the plan; `unplanned` where its model can't be read.

    The first job that asks has the plan made for all.
    """

    def mem_mb(wildcards):
        model = planned_model(wildcards)
        if model not in config["models"]:
            return unplanned
        try:
            told = PLAN.of(rule, model, planned_jobs)
            if workflow.dryrun:
                for line in PLAN.refusals([(rule, model)]):
                    say_once(f"does not fit: {line}")
        except RequestError as error:
            reason = str(error).partition("\n")[0]
            say_once(f"memory is not planned, its rules' own constants are taken: {reason}")
            return unplanned
        return told["mem_mb"] if told else unplanned

    return mem_mb


def refuse_what_does_not_fit():
    """Stop a run before its first job where a stage of it does not fit memory.device.

    Where jobs run on other machines, this one's free memory says nothing.
    """
    elsewhere = not workflow.local_exec and config["memory"]["device"] == "local"
    if config["force"] or workflow.touch or elsewhere:
        return
    try:
        lines = PLAN.refusals(planned_jobs())
    except RequestError:
        return  # told where a job's memory is asked for
    if lines:
        raise WorkflowError(
            "\n".join(f"does not fit: {line}" for line in lines)
            + "\nNothing was started; --config force=true begins all the same."
        )


def share_memory():
    """Let the jobs that run at once on this machine share its memory, unless told otherwise."""
    given = workflow.global_resources
    if "mem_mb" not in given and given["_nodes"].value is None:
        given["mem_mb"] = shared_memory_mb(CHECKED)


share_memory()
