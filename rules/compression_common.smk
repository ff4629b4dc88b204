"""What the compression study's rules share: its runs, and the options of their stages.

Functions of options don't look at `input`: what they return would then bring no rerun.
"""

PRUNING = config["compression"]
COMPRESSION_RUNS = [
    f"{method}/density-{density:g}"
    for method in PRUNING["methods"]
    for density in PRUNING["densities"]
]
if PRUNING["control"] and "magnitude/density-1" not in COMPRESSION_RUNS:
    COMPRESSION_RUNS.append("magnitude/density-1")
COMPRESSION_FIGURES = [
    "perplexity_trend",
    "density_frontier",
    "layer_sparsity",
    "memory_per_epoch",
]


def compression_outputs(wildcards):
    """All that the compression study ends with."""
    folder = f"{RESULTS}/compression"
    summaries = [f"{folder}/{run}/summary.txt" for run in COMPRESSION_RUNS]
    figures = [f"{folder}/figures/{name}.png" for name in COMPRESSION_FIGURES]
    return [*summaries, *figures, f"{folder}/study/results.json"]


def recovery_options(wildcards):
    """How gradual finetunes between its stages."""
    if wildcards.method != "gradual":
        return ""
    schedule = PRUNING["finetune"]
    rate = schedule["learning_rate"] or schedule["base_learning_rate"] * schedule["batch"] ** 0.5
    return options(
        {
            "documents": schedule["documents"],
            "recovery_steps": PRUNING["recovery_steps"],
            "learning_rate": rate,
            "training_batch": schedule["batch"],
        }
    )


def finetune_options(wildcards):
    """The schedule of a finetuning."""
    schedule = dict(PRUNING["finetune"])
    flag = " --checkpoint-activations" if schedule.pop("checkpoint_activations") else ""
    teacher = f" --teacher {target_folder(wildcards)}" if schedule["distillation"] else ""
    for tracker in ("tensorboard", "wandb"):
        schedule.pop(tracker)
    return options(schedule) + flag + teacher


def tracking_options(wildcards):
    """Where each step of a finetuning is shown while it runs."""
    run = f"{wildcards.method}-{wildcards.density}"
    folder = f"logs/{wildcards.model}/finetune/{run}.tensorboard"
    shown = {"tensorboard": folder, "wandb": "paramscope"}
    return options({name: where for name, where in shown.items() if PRUNING["finetune"][name]})


def distillation_teacher(wildcards):
    """The dense model, where the finetuning is to be like it."""
    if not PRUNING["finetune"]["distillation"]:
        return []
    return [f"results/{wildcards.model}/target/{name}" for name in WEIGHTS]


def evaluation_files(wildcards):
    """The local files of more text for perplexity."""
    return [text["path"] for text in PRUNING["texts"] if not text["dataset"]]


def generation_documents(wildcards):
    """Documents whose continuations are scored, where that is asked for.

    Not the non-members: finetuning's best epoch is chosen by them.
    """
    wanted = PRUNING["generation"]["enabled"]
    return f"results/{wildcards.model}/corpus/evaluation.parquet" if wanted else []


def evaluation_options(wildcards):
    """More text for perplexity, and what is scored of continuations."""
    texts = PRUNING["texts"]
    local = [f"{t['name']}={t['path']}" for t in texts if not t["dataset"]]
    hub = [f"{t['name']}={t['dataset']}:{t['path']}" for t in texts if t["dataset"]]
    told = f"{repeated('text', local)} {repeated('hub', hub)}"
    if not PRUNING["generation"]["enabled"]:
        return told
    sizes = {k: PRUNING["generation"][k] for k in ("prompt_tokens", "new_tokens")}
    return f"{told} --documents {generation_documents(wildcards)} {options(sizes)}"


def compression_folders(wildcards):
    """The runs' folders as options."""
    folder = f"results/{wildcards.model}/compression"
    return repeated("run", [f"{folder}/{run}" for run in COMPRESSION_RUNS])
