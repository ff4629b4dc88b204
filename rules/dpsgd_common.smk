"""What the DP-SGD study's rules share: its profiles, and the options of their stages.

Functions of options don't look at `input`: what they return would then bring no rerun.
"""

import shlex

PRIVACY = config["dpsgd"]
PRIVATE = PRIVACY["finetuning"]
PROFILE_FIGURES = [
    "memory_breakdown_comparison",
    "memory_timeline",
    "performance_tradeoff",
]
WORKLOAD = PRIVACY["workload"]
PROFILES = f"results/dpsgd/{WORKLOAD}"
PROFILED = [f"{PROFILES}/{name}.json" for name in PRIVACY["methods"]]
EPSILONS = [f"{epsilon:g}" for epsilon in PRIVATE["epsilons"]]


def dpsgd_outputs(wildcards):
    """All that the DP-SGD study ends with."""
    untimed = WORKLOAD in PRIVACY["predicted"] and not stage_gpus(wildcards)
    names = [name for name in PROFILE_FIGURES if not (untimed and name == "performance_tradeoff")]
    figures = [f"{PROFILES}/figures/{name}.png" for name in names]
    utility = [] if PLANTED else [f"{RESULTS}/dpsgd/figures/privacy_utility.png"]
    return [f"{PROFILES}/summary.txt", *figures, *utility]


def workload_options(wildcards):
    """A workload's sizes."""
    sizes = dict(PRIVACY["known"][wildcards.workload])
    flags = " --tied" if sizes.pop("tied") else ""
    flags += " --predict" if wildcards.workload in PRIVACY["predicted"] else ""
    return f"--workload {wildcards.workload} {options(sizes)}{flags}"


def profile_options(wildcards):
    """How a profile is taken."""
    names = ("max_norm", "noise_multiplier", "warmup", "iterations", "chunk_tokens")
    trainable = PRIVACY["trainable"]
    return (
        options({name: PRIVACY[name] for name in names})
        + (f" --trainable {shlex.quote(trainable)}" if trainable else "")
        + (" --wait" if PRIVACY["wait"] else "")
    )


def profile_flags(wildcards):
    """All profiles as options."""
    return repeated("profile", PROFILED)


def private_options(wildcards):
    """How the base is finetuned privately."""
    names = ("accountant", "epochs", "batch", "physical_batch", "max_norm", "learning_rate")
    told = {name: PRIVATE[name] for name in (*names, "method", "delta")}
    return options({"epsilon": wildcards.epsilon} | told)


def private_folders(wildcards):
    """The private models of the run's model."""
    return [f"results/{wildcards.model}/dpsgd/epsilon-{epsilon}" for epsilon in EPSILONS]
