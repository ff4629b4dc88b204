"""How near plans come to real runs, on this machine's CPU: the cases, a row each, and words."""

from dataclasses import fields

import pandas as pd
import pyarrow as pa

from paramscope.dpsgd.workloads import Workload, architecture
from paramscope.planner.advice import Adviser, Verdict
from paramscope.planner.estimate import resolved
from paramscope.planner.known_devices import MARGINS, known_device
from paramscope.planner.options import Options
from paramscope.planner.real_run import Case, Measured
from paramscope.planner.strategies import COMMON
from paramscope.units import amount

WORST, MEDIAN = 0.005, 0.001  # what all cases' errors, and half of them, should be within
PLACE = known_device("laptop-8gb")  # of all CPUs' plans only the verdicts differ
PLAIN = Options()
ACCURACY = pa.schema(
    [
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        *(
            pa.field(name, pa.int32(), nullable=False)
            for name in ("layers", "hidden", "heads", "ffn", "vocabulary")
        ),
        pa.field("tied", pa.bool_(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("options", pa.string(), nullable=False),  # those that are not the default
        pa.field("threads", pa.int32(), nullable=False),
        pa.field("how", pa.string(), nullable=False),  # full or extrapolated
        pa.field("operation", pa.string(), nullable=False),  # at the predicted peak
        pa.field("phase", pa.string(), nullable=False),
        pa.field("predicted_bytes", pa.int64(), nullable=False),  # live tensors and scratch
        pa.field("measured_bytes", pa.int64(), nullable=False),  # the same, by torch's profiler
        pa.field("error", pa.float64(), nullable=False),  # predicted over measured, less 1
        pa.field("total_bytes", pa.int64(), nullable=False),  # predicted, with the known terms
        pa.field("rss_bytes", pa.int64(), nullable=False),  # of the process at most
        pa.field("false_fit", pa.bool_(), nullable=False),
    ]
)


def _case(
    strategy: str,
    family: str,
    sizes: tuple[int, int, int],
    text: tuple[int, int],
    *,
    tied: bool = False,
    **options: object,
) -> Case:
    """A case of `sizes` layers, width and vocabulary, on a `text` of sequences and tokens each."""
    layers, hidden, vocabulary = sizes
    batch, length = text
    heads, ffn = hidden // 64, (11 if family == "llama" else 16) * hidden // 4
    workload = Workload(
        f"{family} {layers}×{hidden}", family, hidden, layers, heads, ffn, vocabulary,
        length, batch, tied,
    )  # fmt: skip
    asked = Options(batch=batch, length=length, **options)  # type: ignore[arg-type]
    return Case(strategy, workload, resolved(asked, strategy, "cpu"))


# More layers than estimates run, so that extrapolation is held to real runs, too.
CASES = (
    _case("inference", "gpt2", (8, 384, 8_000), (4, 256)),
    _case("inference", "opt", (12, 768, 50_272), (1, 512), tied=True, dtype="bfloat16"),
    _case("gradient", "llama", (8, 320, 8_000), (2, 512), checkpointing=True),
    _case("gradient", "opt", (6, 512, 16_000), (3, 200), dtype="bfloat16"),
    _case("training", "opt", (8, 256, 8_000), (4, 256), tied=True),
    _case("training", "gpt2", (10, 320, 4_000), (2, 256), optimizer="foreach"),
    _case(
        *("training", "llama", (12, 384, 8_000), (2, 384)),
        dtype="bfloat16", checkpointing=True, optimizer="fused",
    ),
    _case("masked_finetune", "opt", (7, 384, 6_000), (4, 128), density=0.1),
    _case(
        *("masked_finetune", "llama", (6, 384, 8_000), (1, 512)),
        dtype="bfloat16", checkpointing=True,
    ),
    _case("dpsgd-vanilla", "gpt2", (6, 320, 8_000), (4, 128), chunk_tokens=128),
    _case("dpsgd-ghost", "opt", (6, 256, 6_000), (4, 192), checkpointing=True),
    _case("dpsgd-flash", "llama", (8, 256, 4_000), (2, 384), optimizer="foreach"),
    _case("dpsgd-bk", "opt", (8, 320, 6_000), (4, 256), chunk_tokens=256),
    _case("dpsgd-bk", "llama", (6, 384, 4_000), (2, 256), dtype="bfloat16"),
    _case("dpsgd-per_layer", "gpt2", (7, 256, 4_000), (4, 192), tied=True, chunk_tokens=100),
    _case(
        *("dpsgd-micro", "llama", (8, 320, 16_000), (3, 384)),
        chunk_tokens=128, checkpointing=True,
    ),
    _case("ggn", "opt", (6, 256, 6_000), (4, 128), tied=True, draws=2),
    _case("ggn", "llama", (8, 320, 8_000), (4, 192), graph="layerwise"),
    _case("hutchinson", "gpt2", (6, 320, 6_000), (2, 128)),
    _case("xdiag", "opt", (5, 192, 2_000), (3, 96), tied=True),
    _case("kfac", "llama", (6, 256, 4_000), (4, 128)),
    _case("prune-magnitude", "opt", (8, 512, 16_000), (2, 128), tied=True, dtype="bfloat16"),
    _case("prune-wanda", "llama", (8, 384, 8_000), (4, 256)),
    _case("prune-sparsegpt", "gpt2", (6, 384, 8_000), (2, 256), density=0.25),
)  # fmt: skip


def verdict_of(case: Case, process_bytes: int) -> Verdict:
    """What a plan says of a case, on as many CPU threads as torch is set to here.

    `process_bytes` are Python's and its libraries', as `terms.measured_process_bytes` tells.
    """
    adviser = Adviser(architecture(case.workload), PLACE, process_bytes)
    return adviser.verdict(case.strategy, case.options)


def row(case: Case, verdict: Verdict, measured: Measured, threads: int) -> dict[str, object]:
    """A case's row of `ACCURACY`.

    A fit is false where the process took more than the least device has that the plan says it
    fits: the total and the margin.
    """
    estimate, workload, options = verdict.estimate, case.workload, case.options
    least = verdict.total_bytes / (1 - MARGINS["cpu"].fraction)
    return {
        "strategy": case.strategy,
        **{
            name: getattr(workload, name)
            for name in ("family", "layers", "hidden", "heads", "ffn", "vocabulary", "tied")
        },
        "parameters": estimate.parameters,
        **{name: getattr(options, name) for name in ("dtype", "batch", "length")},
        "options": told(options),
        "threads": threads,
        **{name: getattr(estimate, name) for name in ("how", "operation", "phase")},
        "predicted_bytes": estimate.peak_bytes,
        "measured_bytes": measured.peak_bytes,
        "error": estimate.peak_bytes / measured.peak_bytes - 1,
        "total_bytes": verdict.total_bytes,
        "rss_bytes": measured.rss_bytes,
        "false_fit": measured.rss_bytes > least,
    }


def told(options: Options) -> str:
    """The options beside dtype, batch and length that are not the default, as typed."""
    words = []
    for field in fields(options):
        value = getattr(options, field.name)
        own = "plain" if field.name == "optimizer" else getattr(PLAIN, field.name)
        if field.name in COMMON or value in (own, getattr(PLAIN, field.name)):
            continue
        name = "--" + field.name.replace("_", "-")
        words.append(name if value is True else f"{name} {value}")
    return " ".join(words)


def document(rows: pd.DataFrame, device: str) -> str:
    """The rows in words and as a table, Markdown."""
    size = rows["error"].abs()
    worst = rows.iloc[int(size.argmax())]
    over = rows["rss_bytes"] / rows["total_bytes"] - 1
    lines = [
        "# Plans beside real runs",
        "",
        f"{len(rows)} cases of {rows['strategy'].nunique()} strategies on {device}, each at random "
        "weights in a process of its own. Predicted: the strategy's own code on fake tensors, with "
        f"{' and '.join(rows['how'].unique())} layers. Measured: what torch's profiler saw "
        "allocated, and NumPy's memory under tensors. In all: predicted with Python and its "
        "libraries; resident: what the process held at most.",
        "",
        f"- Error of the peak: at most {size.max():.3%} ({worst['strategy']}, {worst['family']}), "
        f"median {size.median():.3%}; aimed at {WORST:.1%} and {MEDIAN:.1%}.",
        f"- Resident beside what is predicted in all: {over.min():+.0%} to {over.max():+.0%}. "
        f"False fits: {rows['false_fit'].sum()}, where the process takes more than the least "
        "device has that the plan says it fits, its margin of "
        f"{MARGINS['cpu'].fraction:.0%} included.",
        "",
        "| strategy | model | dtype | text | options | predicted | measured | error "
        "| in all | resident |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for one in rows.to_dict("records"):
        predicted, measured, total, resident = (
            amount(one[f"{name}_bytes"]) for name in ("predicted", "measured", "total", "rss")
        )
        cells = [
            one["strategy"],
            f"{one['family']} {one['layers']} × {one['hidden']}, {one['parameters'] / 1e6:.1f} M",
            one["dtype"],
            f"{one['batch']} × {one['length']}",
            f"`{one['options']}`" if one["options"] else "",
            *(predicted, measured, f"{one['error']:+.3%}", total, resident),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
