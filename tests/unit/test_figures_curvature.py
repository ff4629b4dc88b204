"""The curvature's figures show what the tables hold, and say what they leave out."""

from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from scipy.stats import spearmanr

from paramscope.artifacts.digest import file_digest, imported_modules
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.artifacts.tables import write_table
from paramscope.errors import ArtifactError
from paramscope.figures.benchmark_contenders import look_of
from paramscope.figures.benchmark_curvature import benchmark_curvature
from paramscope.figures.curvature_by_layer import SUMMARY, curvature_by_layer
from paramscope.figures.curvature_quality import curvature_quality
from paramscope.figures.families import (
    ATTENTION,
    COLOURS,
    EMBEDDING,
    FAMILIES,
    HEAD,
    MARKERS,
    MLP,
    NORM,
    OTHER,
    family,
    module,
    short_names,
)
from paramscope.figures.saving import read_figure_provenance
from paramscope.names import OUTSIDE, block_number
from tests.unit.figure_checks import check_type, draw_by_commands, laid_out, said, with_gid

DRAWS, SEQUENCES = 16, 12
KINDS = {
    "opt": (
        "model.decoder.layers.{}.",
        ("embed_tokens", "embed_positions", "final_layer_norm"),
        "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj"
        " self_attn_layer_norm fc1 fc2 final_layer_norm",
    ),
    "gpt2": (
        "transformer.h.{}.",
        ("wte", "wpe", "ln_f"),
        "ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj",
    ),
    "llama": (
        "model.layers.{}.",
        ("embed_tokens", "norm", "lm_head"),
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj"
        " mlp.up_proj mlp.down_proj input_layernorm post_attention_layernorm",
    ),
}


def tensors(family="opt", layers=2):
    """Names of a model's parameters, as transformers gives them; Llama has no bias."""
    prefix, outside, modules = KINDS[family]
    names = [f"{prefix.partition('layers')[0].partition('h.')[0]}{own}.weight" for own in outside]
    roles = ("weight",) if family == "llama" else ("weight", "bias")
    for number in range(layers):
        names += [f"{prefix.format(number)}{m}.{r}" for m in modules.split() for r in roles]
    return names


def make_draws(entries, generator, zero=()):
    """True G, lognormal, and draws of it, [draws, n], that are means of squares like GGN's."""
    truth = generator.lognormal(-8, 2, entries)
    truth[list(zero)] *= 1e-13
    return truth, truth * generator.chisquare(6, (DRAWS, entries)) / 6


def relative_errors(estimate, truth):
    return np.abs(estimate / truth - 1)


def make_spotcheck(family="opt", layers=2, entries=5):
    """A spot check's two tables and its record, of draws from known G."""
    generator = np.random.default_rng(0)
    names = np.repeat(tensors(family, layers), entries)
    zero = np.flatnonzero(pd.Series(names).str.endswith("k_proj.bias"))
    truth, draws = make_draws(len(names), generator, zero)
    hessian = truth * (1 + 0.6 * generator.normal(size=len(names)))
    estimate = draws.mean(0)
    checked = pd.DataFrame(
        {
            "tensor": names,
            "index": generator.integers(0, 1000, len(names)),
            "estimate": estimate,
            "standard_error": draws.std(0, ddof=1) / np.sqrt(DRAWS),
            "exact_ggn": truth,
            "exact_hessian": hessian,
        }
    )
    groups = []
    for size in (1, 2, 4, 8, 16):
        for group, part in enumerate(draws.reshape(-1, size, len(names))):
            mean = part.mean(0)
            groups.append(
                {
                    "draws": size,
                    "group": group,
                    "spearman_ggn": spearmanr(mean, truth).statistic,
                    "spearman_hessian": spearmanr(mean, hessian).statistic,
                    "relative_error_ggn": np.linalg.norm(mean - truth) / np.linalg.norm(truth),
                    "median_relative_error_ggn": np.median(relative_errors(mean, truth)),
                }
            )
    quality = {
        "sequences": SEQUENCES,
        "draws": DRAWS,
        "n": len(checked),
        "spearman_ggn": spearmanr(estimate, truth).statistic,
        "spearman_hessian": spearmanr(estimate, hessian).statistic,
        "median_relative_error_ggn": np.median(relative_errors(estimate, truth)),
        "median_relative_error_hessian": np.median(relative_errors(estimate, hessian)),
        "r_gap": np.linalg.norm(hessian - truth) / np.linalg.norm(hessian),
    }
    return checked, pd.DataFrame(groups), quality


def make_summary(family="opt", layers=2, draws=DRAWS):
    """A summary of each tensor of a model, of entries drawn here; k_proj's bias has none."""
    generator = np.random.default_rng(1)
    rows = []
    for name in tensors(family, layers):
        depth = block_number(name)
        owner, _, role = name.rpartition(".")
        n = 512 if role == "weight" else 32
        scale = 1e-13 if name.endswith("k_proj.bias") else 1.0
        values = scale * generator.lognormal(-9 - 0.1 * depth, 1.2, n)
        values *= np.exp(generator.normal(0, 0.7))
        se = float(values.mean() * 0.05)
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        rows.append(
            {
                "tensor": name,
                "layer": depth,
                "kind": owner.rpartition(".")[2],
                "role": role,
                "n": n,
                "draws": draws,
                "mean": values.mean(),
                "min": values.min(),
                "q05": low,
                "median": middle,
                "q95": high,
                "max": values.max(),
                "se_mean": se if draws > 1 else None,
                "relative_se": 0.05 if draws > 1 else None,
                "fraction_negative": 0.0,
                "fraction_zero": 0.0,
            }
        )
    return pd.DataFrame(rows)


# name: (of, unit, budgets, gradients a unit, degrees of freedom a draw or noise, memory)
CONTENDERS = {
    "ggn": ("ggn", "draw", (1, 2, 4, 8, 16), 0.9, 6, 1.15),
    "sampled_ggn": ("ggn", "draw", (1, 2, 4, 8, 16), 1.3, 2, 2.4),
    "curvlinops_ggn_hutchinson": ("ggn", "matvec", (1, 4, 16, 64), 2.2, 1.1, 3.1),
    "hutchinson": ("hessian", "probe", (1, 4, 16, 64), 1.8, 1.5, 2.6),
    "curvlinops_hutchinson": ("hessian", "matvec", (1, 4, 16, 64), 2.9, 4.0, 2.5),
    "curvlinops_xdiag": ("hessian", "matvec", (4, 16, 64), 6.0, 2.0, 9.5),
    "double_backward": ("hessian", "entry", (4, 16), 2.9, 0.0, 2.5),
    "jvp_grad": ("hessian", "entry", (4, 16), 4.7, 0.0, 2.1),
    "finite_difference": ("hessian", "entry", (4, 16), 2.0, 0.0, 1.0),
}


def make_benchmark(repeats=3, entries=300):
    """Runs of each contender, their errors from estimates of known G and H, and the summary."""
    generator = np.random.default_rng(2)
    truth = generator.lognormal(-8, 2, entries)
    hessian = truth * (1 + 0.15 * generator.normal(size=entries))
    rows = []
    for name, (of, unit, budgets, cost, spread, _) in CONTENDERS.items():
        exact = truth if of == "ggn" else hessian
        for budget in budgets:
            n = budget if unit == "entry" else entries
            for repeat in range(repeats):
                if unit == "draw":
                    factor = generator.chisquare(spread, (budget, n)).mean(0) / spread
                    estimate = exact * factor
                else:
                    noise = spread * np.median(exact) + spread * exact
                    estimate = exact[:n] + noise[:n] * generator.normal(size=n) / np.sqrt(budget)
                gradient = 2.0 * generator.uniform(0.97, 1.03)
                cpu = 2.0 * cost * budget * generator.uniform(0.95, 1.1)
                rows.append(
                    {
                        "contender": name,
                        "of": of,
                        "unit": unit,
                        "budget": budget,
                        "repeat": repeat,
                        "cpu_s": cpu,
                        "gradient_cpu_s": gradient,
                        "gradients": cpu / gradient,
                        "rmse": np.linalg.norm(estimate - exact[:n]) / np.linalg.norm(exact[:n]),
                        "spearman_hessian": spearmanr(estimate, hessian[:n]).statistic,
                        "n_entries": n,
                    }
                )
    runs = pd.DataFrame(rows)
    level = runs[(runs["contender"] == "ggn") & (runs["budget"] == 4)]["rmse"].median()
    summary = []
    for name, (of, unit, _, cost, _, memory) in CONTENDERS.items():
        curve = runs[runs["contender"] == name].groupby("budget").median(numeric_only=True)
        curve["away"] = 1 - curve["spearman_hessian"]
        row = {"contender": name, "of": of, "gradients_per_unit": cost}
        row |= {"peak_ratio_tracked": memory, "peak_ratio_rss": 0.8 * memory + 0.4}
        for column, goal, key in (("away", 0.02, "98"), ("rmse", level, "to_ggn4")):
            slope, start = (
                np.polyfit(np.log(curve["gradients"]), np.log(curve[column]), 1)
                if unit != "entry"
                else (0.0, 0.0)
            )
            reached = np.exp((np.log(goal) - start) / slope) if slope < -0.05 else None
            row[f"gradients_{key}"] = reached
            row[f"extrapolated_{key.replace('to_', '')}"] = bool(
                reached and reached > curve["gradients"].max()
            )
        summary.append(row)
    return runs, pd.DataFrame(summary)


FIGURES = ("quality", "quality, deep", "layers", "layers, deep", "benchmark")
COMMANDS = ("curvature_quality", "curvature_by_layer", "benchmark_curvature")


def figures():
    """Each figure where it is fullest: many layers, names of all kinds, biases."""
    return {
        "quality": curvature_quality(*make_spotcheck(), "tiny"),
        "quality, deep": curvature_quality(*make_spotcheck("llama", 24, 1), "tiny"),
        "layers": curvature_by_layer(make_summary(layers=4), "tiny"),
        "layers, deep": curvature_by_layer(make_summary("llama", 40), "tiny"),
        "benchmark": benchmark_curvature(*make_benchmark(), model="tiny"),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with each figure as its command writes it, and the command lines."""
    folder = tmp_path_factory.mktemp("drawn")
    by = provenance("figures.saving", {}, synthetic=True)

    def table(name, frame):
        schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
        write_table(folder / name, frame, schema, by)

    checked, groups, quality = make_spotcheck()
    runs, summary = make_benchmark()
    table("spotcheck.parquet", checked)
    table("draws.parquet", groups)
    write_record(folder / "spotcheck.json", quality, by)
    table("summary.parquet", make_summary())
    table("runs.parquet", runs)
    table("contenders.parquet", summary)
    options = {
        "curvature_quality": {
            "--spotcheck": "spotcheck.parquet",
            "--spotcheck-draws": "draws.parquet",
            "--quality": "spotcheck.json",
        },
        "curvature_by_layer": {"--summary": "summary.parquet"},
        "benchmark_curvature": {"--runs": "runs.parquet", "--summary": "contenders.parquet"},
    }
    lines = {
        name: [f"{name}.png", *(word for pair in given.items() for word in pair), "--model", "tiny"]
        for name, given in options.items()
    }
    draw_by_commands(folder, lines)
    return folder, lines


@cache
def quality_figure():
    return curvature_quality(*make_spotcheck(), "tiny")


@cache
def benchmark_figure():
    return benchmark_curvature(*make_benchmark())


def points(axes, gid):
    """All points of an axes' lines of one name, [n, 2]."""
    lines = [np.column_stack(line.get_data()) for line in with_gid(axes, gid)]
    return np.concatenate([np.empty((0, 2)), *lines])


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if title in axes.get_title(loc="left")]
    return axes


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_png_and_pdf_with_provenance(name, drawn):
    folder, lines = drawn
    path = folder / f"{name}.png"
    with Image.open(path) as image:
        assert image.width == 1400  # two columns at 200 dots an inch
    described = read_figure_provenance(path)
    inputs = [value for value in lines[name][1:-2] if not value.startswith("--")]
    assert described["inputs"] == {value: file_digest(folder / value) for value in inputs}
    assert described["parameters"] == {"model": "tiny"}
    assert described["command"] == " ".join(["paramscope", name, *lines[name]])
    assert described["synthetic"] is True
    pdf = path.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert described["content_digest"].encode() in pdf


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stage_hangs_on_no_other_figure(name):
    """Law 2: editing one figure redraws that figure alone."""
    own = name.removesuffix("_figure")
    stages = {"curvature_quality", "curvature_by_layer", "benchmark_curvature", "prm_phase_diagram"}
    modules = imported_modules(f"cli.{name}")
    assert {f"paramscope.figures.{s}" for s in stages} & modules == {f"paramscope.figures.{own}"}
    packages = {module.split(".")[1] for module in modules if "." in module}
    assert packages - {"names"} == {"artifacts", "cli", "errors", "figures"}


@pytest.fixture(scope="module")
def marked():
    return laid_out(figures())


@pytest.mark.parametrize("name", FIGURES)
def test_type_is_at_least_seven_points_uncut_and_apart(name, marked):
    check_type(marked[name])


@pytest.mark.parametrize("model", KINDS)
def test_families_and_layers_are_read_from_the_names(model):
    names = tensors(model, 12)
    of = {}
    for name in names:
        of.setdefault(family(name), []).append(name)
    assert OTHER not in of
    assert all("norm" in n or ".ln_" in n for n in of[NORM])
    assert all("attn" in n for n in of[ATTENTION])
    assert {module(n).rpartition(".")[2] for n in of[MLP]} <= {
        *("fc1", "fc2", "c_fc", "c_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all(block_number(n) == OUTSIDE for n in of[EMBEDDING] + of.get(HEAD, []))
    assert {block_number(n) for n in of[ATTENTION]} == set(range(12))
    assert len(set(COLOURS.values())) == len(set(MARKERS.values())) == len(FAMILIES)


def test_a_module_is_called_by_the_shortest_name_that_is_its_own():
    names = short_names([module(name) for name in tensors("gpt2")])
    assert names["attn.c_proj"] == "attn.c_proj"
    assert names["mlp.c_proj"] == "mlp.c_proj"
    assert names["attn.c_attn"] == "c_attn"
    assert short_names(["mlp.norm", "norm"]) == {"mlp.norm": "mlp.norm", "norm": "norm"}


def expected_points(frame, x, y):
    return frame[[x, y]].sort_values([x, y]).to_numpy()


def in_order(xy):
    return xy[np.lexsort((xy[:, 1], xy[:, 0]))]


def test_every_entry_is_drawn_where_it_is_or_hollow_at_the_edge():
    checked, _groups, _quality = make_spotcheck()
    figure = quality_figure()
    zero = checked["tensor"].str.endswith("k_proj.bias")
    assert zero.any()
    for title, column in (("a  ", "exact_ggn"), ("b  ", "exact_hessian")):
        axes = panel(figure, title)
        (left, right), low = axes.get_xlim(), axes.get_ylim()[0]
        for name in FAMILIES:
            inside = checked[~zero & (checked["tensor"].map(family) == name)]
            drawn_ = in_order(points(axes, f"entry {name}"))
            np.testing.assert_allclose(drawn_, expected_points(inside, column, "estimate"))
        edge = points(axes, f"edge {ATTENTION}")
        assert len(edge) == zero.sum()
        assert (edge[:, 1] == low).all()
        assert ((left <= edge[:, 0]) & (edge[:, 0] <= right)).all()
        assert f"hollow: {zero.sum()} outside the frame" in said(figure)
    assert f"{zero.sum()} with G = 0 but for rounding" in said(figure)


def test_negative_hessian_entries_are_seen_and_counted():
    checked, groups, quality = make_spotcheck(entries=8)
    figure = curvature_quality(checked, groups, quality, "tiny")
    negative = (checked["exact_hessian"] < 0).sum()
    assert negative > 2
    assert f"\n{negative} with H < 0" in said(figure)
    axes = panel(figure, "b  ")
    shown = np.concatenate([points(axes, f"entry {name}")[:, 0] for name in FAMILIES])
    real = ~checked["tensor"].str.endswith("k_proj.bias")
    assert (shown < 0).sum() == (checked.loc[real, "exact_hessian"] < 0).sum()
    scale = axes.xaxis.get_transform()
    values = np.array([-1e-2, -1e-9, 0, 1e-12, 1e-9, 3e-5, 1.0])
    np.testing.assert_allclose(scale.inverted().transform(scale.transform(values)), values)
    assert (np.diff(scale.transform(values)) > 0).all()
    checked["exact_hessian"] = checked["exact_ggn"]
    alone = curvature_quality(checked, groups, quality, "tiny")
    assert "0 with H < 0" in said(alone)


def test_estimates_that_are_negative_are_at_the_edge_and_counted():
    checked, groups, quality = make_spotcheck("llama")
    checked.loc[[3, 10], "estimate"] *= -1
    figure = curvature_quality(checked, groups, quality, "tiny")
    edges = [points(panel(figure, "a  "), f"edge {name}") for name in FAMILIES]
    assert sum(map(len, edges)) == 2
    assert "hollow: 2 outside the frame" in said(figure)


def test_error_bars_are_the_standard_errors():
    checked, groups, quality = make_spotcheck("llama")
    axes = panel(curvature_quality(checked, groups, quality, "tiny"), "a  ")
    bars = [s for c in axes.collections for s in c.get_segments()]
    lengths = sorted(bar[1, 1] - bar[0, 1] for bar in bars)
    np.testing.assert_allclose(lengths, sorted(2 * checked["standard_error"]))


def test_the_head_and_the_panels_say_the_record():
    checked, _groups, quality = make_spotcheck()
    figure = quality_figure()
    for part in (
        f"n = {len(checked)} entries · {SEQUENCES} sequences · {DRAWS} draws",
        f"Spearman {quality['spearman_ggn']:.3f} with G",
        f"{quality['spearman_hessian']:.3f} with H",
    ):
        assert part in figure.get_suptitle()
    assert f"median relative error {100 * quality['median_relative_error_ggn']:.1f}%" in said(
        figure
    )
    assert f"R gap ‖H − G‖ / ‖H‖ {quality['r_gap']:.2f}" in said(figure)


def test_errors_over_draws_are_groups_their_means_and_a_guide():
    checked, groups, _quality = make_spotcheck()
    figure = quality_figure()
    mean = groups.groupby("draws").mean()
    for title, names, value in (
        ("c  ", ("relative_error_ggn", "median_relative_error_ggn"), lambda x: x),
        ("d  ", ("spearman_ggn", "spearman_hessian"), lambda x: 1 - x),
    ):
        axes = panel(figure, title)
        for name in names:
            dots = points(axes, f"group {name}")
            np.testing.assert_allclose(
                dots, np.column_stack([groups["draws"], value(groups[name])])
            )
            line = points(axes, f"mean {name}")
            np.testing.assert_allclose(line, np.column_stack([mean.index, value(mean[name])]))
    guide = points(panel(figure, "c  "), "guide")
    assert guide[0, 1] == pytest.approx(mean["relative_error_ggn"].iloc[0])
    np.testing.assert_allclose(guide[:, 1] * np.sqrt(guide[:, 0]), guide[0, 1])
    ((level, *_),) = [line.get_ydata() for line in with_gid(panel(figure, "d  "), "exact")]
    rho = spearmanr(checked["exact_ggn"], checked["exact_hessian"]).statistic
    assert level == pytest.approx(1 - rho)


def test_a_perfect_rank_is_left_off_the_logarithmic_axis_and_told():
    checked, groups, quality = make_spotcheck()
    groups.loc[groups.index[-1], "spearman_ggn"] = 1.0
    figure = curvature_quality(checked, groups, quality, "tiny")
    assert "1 group at 1, left out" in said(figure)


def test_errors_by_layer_and_family_are_medians_and_quartiles():
    checked, groups, quality = make_spotcheck(layers=3)
    axes = panel(curvature_quality(checked, groups, quality, "tiny"), "e  ")
    real = checked[~checked["tensor"].str.endswith("k_proj.bias")]
    errors = relative_errors(real["estimate"], real["exact_ggn"])
    grouped = errors.groupby([real["tensor"].map(block_number), real["tensor"].map(family)])
    assert len(grouped) == 3 * 3 + 2
    for (where, name), values in grouped:
        ((_, middle),) = points(axes, f"median {name} {where}")
        assert middle == pytest.approx(values.median())
        ends = points(axes, f"quartiles {name} {where}")[:, 1]
        np.testing.assert_allclose(ends, values.quantile([0.25, 0.75]))
    n = grouped.size()
    assert axes.get_xlabel() == f"Layer ({n.min()} to {n.max()} entries each)"


def test_spot_checks_that_cannot_be_drawn_are_refused():
    checked, groups, quality = make_spotcheck()
    with pytest.raises(ArtifactError, match="no rows"):
        curvature_quality(checked, groups.iloc[:0], quality, "tiny")
    with pytest.raises(ArtifactError, match="no rows"):
        curvature_quality(checked.iloc[:0], groups, quality | {"n": 0}, "tiny")
    with pytest.raises(ArtifactError, match=r"of 3 entries, its table of 175"):
        curvature_quality(checked, groups, quality | {"n": 3}, "tiny")
    for table, column in ((checked, "exact_hessian"), (groups, "spearman_ggn")):
        broken = table.assign(**{column: [np.nan, *table[column][1:]]})
        given = (broken, groups) if table is checked else (checked, broken)
        with pytest.raises(ArtifactError, match="not finite"):
            curvature_quality(*given, quality, "tiny")
    with pytest.raises(ArtifactError, match="nothing to compare"):
        curvature_quality(checked.assign(exact_ggn=0.0), groups, quality, "tiny")


@pytest.mark.parametrize(("model", "layers"), [("opt", 2), ("gpt2", 12), ("llama", 40)])
def test_each_kind_has_its_means_errors_and_quantiles_over_layers(model, layers):
    summary = make_summary(model, layers)
    figure = curvature_by_layer(summary, "tiny")
    names = short_names([module(n) for n in summary.loc[summary["layer"] != OUTSIDE, "tensor"]])
    for path, kind in names.items():
        axes = panel(figure, f"  {kind}" if len(kind) < 16 else f"  {kind[:5]}")
        rows = summary[(summary["tensor"].map(module) == path) & (summary["layer"] != OUTSIDE)]
        for role, of_role in rows.groupby("role"):
            shown = of_role if not (kind == "k_proj" and role == "bias") else of_role.iloc[:0]
            np.testing.assert_allclose(
                points(axes, f"mean {role} {kind}"), shown[["layer", "mean"]]
            )
            (bars,) = with_gid(axes, f"error {role} {kind}")
            ends = np.array([s[:, 1] for s in bars.get_segments()]).reshape(-1, 2)
            np.testing.assert_allclose(ends.mean(1), shown["mean"])
            np.testing.assert_allclose(np.diff(ends)[:, 0], 2 * shown["se_mean"])
        (band,) = with_gid(axes, f"quantiles {kind}")
        (outline,) = band.get_paths()
        for row in rows[rows["role"] == "weight"].itertuples():
            at = outline.vertices[outline.vertices[:, 0] == row.layer, 1]
            np.testing.assert_allclose([at.min(), at.max()], [row.q05, row.q95])
    assert ("bias: 0 but\nfor rounding" in said(figure)) == (model == "opt")


def test_what_is_outside_the_layers_has_a_row_of_its_own():
    summary = make_summary()
    axes = panel(curvature_by_layer(summary, "tiny"), "Outside the layers")
    rows = summary[summary["layer"] == OUTSIDE]
    assert len(rows) == 3
    for row in rows.itertuples():
        ((mean, _),) = points(axes, f"mean weight {row.kind}")
        assert mean == pytest.approx(row.mean)
        ends = points(axes, f"quantiles weight {row.kind}")[:, 0]
        np.testing.assert_allclose(ends, [row.q05, row.q95])


@pytest.mark.parametrize("model", KINDS)
def test_shares_are_of_the_trace_and_add_up(model):
    summary = make_summary(model, 3)
    figure = curvature_by_layer(summary, "tiny")
    trace = summary["n"] * summary["mean"]
    whole = trace.groupby([summary["layer"], summary["tensor"].map(family)]).sum() / trace.sum()
    axes = panel(figure, "Share of the trace")
    total = 0.0
    for name in set(summary["tensor"].map(family)):
        heights = [bar.get_height() for bar in with_gid(axes, f"share {name}")]
        expected = whole.xs(name, level=1).reindex([OUTSIDE, 0, 1, 2], fill_value=0.0)
        np.testing.assert_allclose(heights, expected)
        total += sum(heights)
    assert total == pytest.approx(1)
    blocks = summary[summary["layer"] != OUTSIDE]
    paths = blocks["tensor"].map(module)
    within = trace[blocks.index].groupby([blocks["layer"], paths]).sum()
    within /= within.groupby(level=0).transform("sum")
    axes = panel(figure, "Within a layer")
    for path, kind in short_names(list(paths)).items():
        heights = [bar.get_height() for bar in with_gid(axes, f"share {kind}")]
        np.testing.assert_allclose(heights, within.xs(path, level=1))


def test_one_draw_has_no_errors_and_a_negative_mean_is_told():
    summary = make_summary("llama", draws=1)
    summary.loc[5, "mean"] *= -1
    figure = curvature_by_layer(summary, "tiny")
    assert "1 draw" in figure.get_suptitle()
    assert "1 mean < 0,\nnot drawn" in said(figure)
    assert "1 trace < 0, as 0" in said(figure)


def test_a_summary_without_layers_or_without_an_outside_is_drawn():
    summary = make_summary()
    inside = summary["layer"] != OUTSIDE
    assert "0 layers" in curvature_by_layer(summary[~inside], "tiny").get_suptitle()
    assert "2 layers" in curvature_by_layer(summary[inside], "tiny").get_suptitle()


def test_summaries_that_cannot_be_drawn_are_refused():
    summary = make_summary()[list(SUMMARY)]
    with pytest.raises(ArtifactError, match="no rows"):
        curvature_by_layer(summary.iloc[:0], "tiny")
    with pytest.raises(ArtifactError, match="two tensors"):
        curvature_by_layer(pd.concat([summary, summary.iloc[[4]]]), "tiny")
    with pytest.raises(ArtifactError, match="not finite"):
        curvature_by_layer(summary.assign(q95=np.inf), "tiny")
    with pytest.raises(ArtifactError, match="scale"):
        curvature_by_layer(summary.assign(role="scale"), "tiny")
    with pytest.raises(ArtifactError, match="nothing to draw"):
        curvature_by_layer(summary.assign(mean=0.0), "tiny")


def test_the_benchmarks_curves_are_its_runs_and_their_medians():
    runs, _summary = make_benchmark()
    figure = benchmark_figure()
    runs["away"] = 1 - runs["spearman_hessian"]
    for title, column in (("a  ", "rmse"), ("b  ", "away")):
        axes = panel(figure, title)
        for name, of_contender in runs.groupby("contender"):
            if (of_contender["unit"] == "entry").all():
                assert not with_gid(axes, f"runs {name}")
                continue
            dots = points(axes, f"runs {name}")
            np.testing.assert_allclose(dots, of_contender[["gradients", column]])
            line = points(axes, f"median {name}")
            expected = of_contender.groupby("budget")[["gradients", column]].median()
            np.testing.assert_allclose(line, expected)
    assert "9 contenders · n = 300 entries · 3 runs of each budget" in figure.get_suptitle()
    assert "tiny" not in figure.get_suptitle()


def test_levels_and_where_they_are_reached_are_the_summarys():
    runs, summary = make_benchmark()
    figure = benchmark_figure()
    ours = runs[(runs["contender"] == "ggn") & (runs["budget"] == 4)]["rmse"].median()
    for title, column, flag, level in (
        ("a  ", "gradients_to_ggn4", "extrapolated_ggn4", ours),
        ("b  ", "gradients_98", "extrapolated_98", 0.02),
    ):
        axes = panel(figure, title)
        (line,) = with_gid(axes, "level")
        assert line.get_ydata()[0] == pytest.approx(level)
        for row in summary.to_dict("records"):
            found = with_gid(axes, f"reached {row['contender']}")
            if not np.isfinite(row[column]):
                assert not found
                continue
            assert found[0].get_xdata()[0] == pytest.approx(row[column])
            assert found[0].get_ydata()[0] == pytest.approx(level)
            assert (found[0].get_markerfacecolor() == "white") == row[flag]
    assert summary["extrapolated_98"].any()
    assert not summary["extrapolated_98"].all()


def test_memory_bars_are_sorted_and_carry_their_numbers():
    runs, summary = make_benchmark()
    figure = benchmark_figure()
    axes = panel(figure, "d  ")
    ordered = summary.sort_values("peak_ratio_tracked", kind="stable")
    bars = with_gid(axes, "tracked")
    assert [bar.get_width() for bar in bars] == list(ordered["peak_ratio_tracked"])
    (rss,) = with_gid(axes, "rss")
    np.testing.assert_array_equal(rss.get_xdata(), ordered["peak_ratio_rss"])
    rows = ordered[["peak_ratio_tracked", "peak_ratio_rss"]].to_numpy()
    assert [t.get_text() for t in axes.texts] == [f"{a:.2f} | {b:.2f}" for a, b in rows]
    table = [text.get_text() for text in panel(figure, "c  ").texts]
    for name in summary["contender"]:
        matrix = "G" if CONTENDERS[name][0] == "ggn" else "H"
        assert f"{name.replace('_', ' ')} ({matrix})" in table
    looks = look_of(runs.drop_duplicates("contender").set_index("contender"))
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)


def test_runs_without_a_logarithm_are_left_out_and_told():
    runs, summary = make_benchmark()
    first = runs.index[runs["contender"] == "hutchinson"][:2]
    runs.loc[first, "spearman_hessian"] = [1.0, np.nan]
    figure = benchmark_curvature(runs, summary)
    assert "2 runs not on a log axis, left out" in said(figure)
    assert len(points(panel(figure, "b  "), "runs hutchinson")) == 4 * 3 - 2


def test_a_benchmark_without_ours_has_no_level_for_it():
    runs, summary = make_benchmark()
    runs, summary = (table[table["contender"] != "ggn"] for table in (runs, summary))
    assert not with_gid(panel(benchmark_curvature(runs, summary), "a  "), "level")


def test_benchmarks_that_cannot_be_drawn_are_refused():
    runs, summary = make_benchmark()
    with pytest.raises(ArtifactError, match="no runs"):
        benchmark_curvature(runs.iloc[:0], summary)
    with pytest.raises(ArtifactError, match="different contenders"):
        benchmark_curvature(runs, summary.iloc[1:])
    with pytest.raises(ArtifactError, match="two runs"):
        benchmark_curvature(pd.concat([runs, runs.iloc[[0]]]), summary)
    with pytest.raises(ArtifactError, match="not positive"):
        benchmark_curvature(runs.assign(gradients=0.0), summary)
    with pytest.raises(ArtifactError, match="fisher"):
        benchmark_curvature(runs.assign(of="fisher"), summary)
