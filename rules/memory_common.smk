"""What the memory study's rules share: the plan's files, and its options.

Functions of options don't look at `input`: what they return would then bring no rerun.
"""

MEMORY = config["memory"]
PLANNED = "results/memory"


def planned_configurations(wildcards):
    """The config.json of each model that is a local folder."""
    folders = [Path(model) for model in MEMORY["models"] if Path(model).is_dir()]
    return [str(folder / "config.json") for folder in folders]


def plan_options(wildcards):
    """What is planned, for which devices, and how it is asked for."""
    asked = {name: MEMORY[name] for name in ("dtype", "batch", "length")}
    lists = ("model", "strategy", "device")
    plural = {"model": "models", "strategy": "strategies", "device": "devices"}
    return " ".join([*(repeated(one, MEMORY[plural[one]]) for one in lists), options(asked)])
