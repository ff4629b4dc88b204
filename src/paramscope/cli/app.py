"""The `paramscope` command: finds the stages, runs one, and words its failures."""

import sys
from importlib import import_module

import typer

from paramscope.errors import ParamscopeError

STAGES = (
    "config",
    "corpus",
    "tokenizer",
    "base",
    "target",
    "curvature_draws",
    "curvature",
    "curvature_blocks",
    "spotcheck",
    "eigenspace",
    "activation_sparsity",
    "membership_features",
    "kfac",
    "directions",
    "units",
    "planted_units",
    "embedding",
    "membership",
    "shadow",
    "partition",
    "noise_range",
    "prm",
    "prm_responses",
    "prm_statistics",
    "removal",
    "tensor_responses",
    "findings",
    "replication",
    "results",
    "curvature_quality",
    "curvature_by_layer",
    "umap_visualization",
    "parameter_clustering",
    "prm_phase_diagram",
    "noise_response_curves",
    "statistical_summary",
    "separation",
    "membership_scores",
    "layer_responses",
    "benchmark_curvature",
    "prune",
    "finetune",
    "evaluate",
    "expand",
    "summary",
    "compression_results",
    "perplexity_trend",
    "density_frontier",
    "layer_sparsity",
    "memory_per_epoch",
    "dpsgd_results",
    "memory_breakdown_comparison",
    "memory_timeline",
    "performance_tradeoff",
    "privacy_utility",
    "memory_regression",
    "dpsgd_profile",
    "dp_finetune",
    "privacy_scores",
    "device",
    "plan",
    "stage_memory",
    "plan_accuracy",
    "memory_estimates",
    "memory_plan",
    "model_device_matrix",
)

app = typer.Typer(
    help="Measure a causal language model: what its parameters do, remember, and cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(debug: bool = typer.Option(False, help="Show the traceback of a failure.")) -> None:
    """Options before the stage's name; read by `main`."""


def _register() -> None:
    for stage in STAGES:
        command = getattr(import_module(f"paramscope.cli.{stage}"), stage)
        app.command(name=stage.replace("_", "-"))(command)


def main() -> None:
    """Run the command line; exit 2 for a wrong request, 1 for a failure.

    A failure is one or two lines; its traceback is shown with `--debug` before the stage's
    name.
    """
    _register()
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        own = isinstance(error, ParamscopeError)
        print(
            f"paramscope: {error}"
            if own
            else f"paramscope: {type(error).__name__}: {error} (--debug shows where)",
            file=sys.stderr,
        )
        sys.exit(error.exit_code if isinstance(error, ParamscopeError) else 1)
