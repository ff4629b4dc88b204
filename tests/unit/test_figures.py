"""Figures show what the tables hold, carry their provenance, and say when they are synthetic."""

import json
import re

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats
from matplotlib.path import Path
from PIL import Image, PngImagePlugin

from paramscope.artifacts.digest import file_digest, imported_modules
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.artifacts.tables import write_table
from paramscope.errors import ArtifactError, RequestError
from paramscope.figures.classes import CLASSES, COLOURS, MARKERS
from paramscope.figures.noise_response_curves import noise_response_curves
from paramscope.figures.parameter_clustering import FEATURES, PLANE, parameter_clustering
from paramscope.figures.prm_phase_diagram import HELD, prm_phase_diagram
from paramscope.figures.replicates import confidence_ellipse, null_band, seed_means
from paramscope.figures.responses import by_rule, response_scale, span
from paramscope.figures.saving import any_synthetic, read_figure_provenance, save, watermark
from paramscope.figures.statistical_summary import statistical_summary
from paramscope.figures.style import limits, new_figure
from paramscope.figures.umap_visualization import umap_visualization
from tests.unit.figure_checks import check_type, draw_by_commands, laid_out, texts, with_gid

COMMANDS = (
    "umap_visualization",
    "parameter_clustering",
    "prm_phase_diagram",
    "noise_response_curves",
    "statistical_summary",
)
SIGMAS = (0.25, 0.5, 1.0, 2.0)
SEEDS = 5
RESPONSES = ("delta_log_ppl", "delta_auc", "delta_auc_min_k", "delta_loss_gap")


def make_units(rows=20, layers=2):
    generator = np.random.default_rng(0)
    kinds = ("q_proj", "fc1")
    tensors = [(layer, kind) for layer in range(layers) for kind in kinds]
    frame = pd.DataFrame(
        [(f"{n}.{k}.weight:{i}", f"{n}.{k}.weight", n, k) for n, k in tensors for i in range(rows)],
        columns=["unit", "tensor", "layer", "kind"],
    )
    for name in FEATURES:
        frame[name] = generator.lognormal(-5, 2, len(frame))
    frame.loc[:2, "curvature_mean"] = 0.0
    return frame


def make_partition(units, draws=1, classes=CLASSES):
    generator = np.random.default_rng(1)
    labels = [generator.choice(classes, len(units)) for _ in range(draws)]
    tables = [
        pd.DataFrame({"unit": units["unit"], "label": label, "draw": draw})
        for draw, label in enumerate(labels)
    ]
    return pd.concat(tables, ignore_index=True).sample(frac=1, random_state=2)


def make_embedding(units):
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, len(units)))
    cluster = np.arange(len(units)) % 4 - 1
    return pd.DataFrame({"unit": units["unit"], "umap_x": x, "umap_y": y, "cluster": cluster})


QUALITY = {
    "method": "umap + dbscan",
    "noise_share": 0.25,
    "silhouette": 0.4567,
    "silhouette_features": None,
    "trustworthiness": 0.9876,
    "neighbourhood_preservation": None,
}


def make_responses(classes=CLASSES, seeds=SEEDS, random=False):
    """A grid of σ × seed × sign; each seed of the control has its own draw of the partition."""
    generator = np.random.default_rng(4)
    rows = [
        {"class": label, "sigma": sigma, "seed": seed, "sign": sign, "draw": seed if random else 0}
        for label in classes
        for sigma in SIGMAS
        for seed in range(seeds)
        for sign in (1, -1)
    ]
    frame = pd.DataFrame(rows)
    size = 1 + frame["class"].map(CLASSES.index)
    for response, scale in zip(RESPONSES, (0.1, -0.05, -0.04, -0.03), strict=True):
        noise = generator.normal(0, 0.2, len(frame))
        frame[response] = scale * size * frame["sigma"] ** 2 * (1 + noise)
    frame["n_units"] = 10 * size
    frame["ppl"] = 50 * np.exp(frame["delta_log_ppl"])
    frame["auc"] = 0.8 + frame["delta_auc"]
    return frame


def make_statistics(rule="curvature", pairs=((0, 1), (0, 2), (1, 2))):
    generator = np.random.default_rng(len(rule))
    comparisons = [
        {
            "response": response,
            "first": CLASSES[i],
            "second": CLASSES[j],
            "effect_size": float(generator.normal(0, 2)),
            "p_holm": float(generator.random()),
            "n": SEEDS,
        }
        for response in RESPONSES
        for i, j in pairs
    ]
    score = {"value": 0.75, "low": -0.25, "high": 1.5, "n": SEEDS}
    none = {"value": None, "low": None, "high": None, "n": 0}
    return {
        "rule": rule,
        "n_seeds": SEEDS,
        "comparisons": comparisons,
        "separation": {"gap": score, "auc": none},
    }


def figures():
    """Each figure, drawn from the tables above."""
    units = make_units()
    partition = make_partition(units)
    sweeps = {"random": make_responses(random=True), "curvature": make_responses()}
    return {
        "umap_visualization": umap_visualization(
            units, make_embedding(units), QUALITY, partition, "curvature", "tiny"
        ),
        "parameter_clustering": parameter_clustering(units, partition, "curvature", "tiny"),
        "prm_phase_diagram": prm_phase_diagram(sweeps, "tiny"),
        "noise_response_curves": noise_response_curves(sweeps, "tiny"),
        "statistical_summary": statistical_summary(
            [make_statistics("random"), make_statistics()], "tiny"
        ),
    }


def made_by(synthetic=False):
    return provenance("figures.saving", {}, synthetic=synthetic)


def dots(axes, gid):
    """All points of an axes' scatters of one name, [n, 2], sorted."""
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in with_gid(axes, gid)])
    return offsets[np.lexsort(offsets.T)]


def expected_dots(frame, x, y):
    points = frame[[x, y]].to_numpy()
    return points[np.lexsort(points.T)]


def write_inputs(folder, synthetic=False):
    """Each figure's tables as files in `folder`, and its command line, of relative paths."""
    by = made_by(synthetic)

    def table(name, frame):
        schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
        write_table(folder / name, frame, schema, by)

    units = make_units(rows=1152)  # as many as tiny-opt has: 4,608
    table("units.parquet", units)
    table("embedding.parquet", make_embedding(units))
    write_record(folder / "embedding.json", dict(QUALITY), by)
    table("partition/curvature.parquet", make_partition(units))
    for rule in ("curvature", "random"):
        table(f"prm/{rule}.parquet", make_responses(random=rule == "random"))
        write_record(folder / f"prm/{rule}.statistics.json", make_statistics(rule), by)
    partition = ["--units", "units.parquet", "--partition", "partition/curvature.parquet"]
    plane = ["--embedding", "embedding.parquet", "--quality", "embedding.json"]
    sweeps = ["--responses", "prm/curvature.parquet", "--responses", "prm/random.parquet"]
    statistics = [
        *("--statistics", "prm/curvature.statistics.json"),
        *("--statistics", "prm/random.statistics.json"),
    ]
    options = {
        "umap_visualization": [*partition, *plane],
        "parameter_clustering": partition,
        "prm_phase_diagram": sweeps,
        "noise_response_curves": sweeps,
        "statistical_summary": statistics,
    }
    return {
        name: [f"figures/{name}.png", *given, "--model", "tiny"] for name, given in options.items()
    }


def draw_all(folder, lines, hash_seed):
    """The bytes of all files that the figures' commands write.

    Those of units, which come first, stay within 250 MiB RSS.
    """
    peaks = {"parameter_clustering": 250 * 1024}
    draw_by_commands(folder, lines, hash_seed=hash_seed, peaks=peaks)
    return {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with each figure as its command writes it, the command lines, the bytes."""
    folder = tmp_path_factory.mktemp("drawn")
    lines = write_inputs(folder)
    return folder, lines, draw_all(folder, lines, "1")


@pytest.fixture(scope="module")
def marked():
    return laid_out(figures())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_png_and_pdf_with_provenance(name, drawn):
    folder, lines, _ = drawn
    path = folder / f"figures/{name}.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)  # stored in dots a metre
        assert image.width in (680, 1400)  # one or two columns
    described = read_figure_provenance(path)
    inputs = [value for value in lines[name][1:-2] if not value.startswith("--")]
    assert described["inputs"] == {value: file_digest(folder / value) for value in inputs}
    assert described["parameters"] == {"model": "tiny"}
    assert described["command"] == " ".join(["paramscope", name, *lines[name]])
    assert described["synthetic"] is False
    pdf = path.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"CreationDate" not in pdf
    keywords = re.search(rb"/Keywords \((.*?)(?<!\\)\)", pdf, re.DOTALL)[1]
    assert json.loads(re.sub(rb"\\([()\\])", rb"\1", keywords)) == described


def test_another_process_draws_the_same_bytes(drawn):
    folder, lines, before = drawn
    assert sorted(before) == sorted(f"{name}.{kind}" for name in lines for kind in ("pdf", "png"))
    assert draw_all(folder, lines, hash_seed="2") == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_figure_hangs_on_no_other_figures_module(name):
    """Law 2: editing one figure redraws that figure alone."""
    modules = imported_modules(f"cli.{name}")
    drawn = {f"paramscope.figures.{figure}" for figure in COMMANDS} & modules
    assert drawn == {f"paramscope.figures.{name}"}
    packages = {module.split(".")[1] for module in modules if "." in module}
    assert packages - {"names"} == {"artifacts", "cli", "errors", "figures"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_watermark_is_on_a_figure_once(name, marked):
    watermark(marked[name])
    assert texts(marked[name]).count("synthetic") == 1
    assert marked[name].get_suptitle().count("Synthetic data") == 1


@pytest.mark.parametrize("synthetic", [True, False])
def test_saving_marks_a_figure_if_and_only_if_its_data_are_synthetic(synthetic, tmp_path):
    figure = statistical_summary([make_statistics()], "tiny")
    assert "synthetic" not in "".join(texts(figure)).lower()
    save(figure, tmp_path / "f.png", made_by(synthetic))
    assert ("synthetic" in texts(figure)) == synthetic
    assert ("Synthetic data" in figure.get_suptitle()) == synthetic
    assert read_figure_provenance(tmp_path / "f.png")["synthetic"] == synthetic


@pytest.mark.parametrize("changed", ["embedding.json", "units.parquet"])
def test_one_synthetic_input_makes_a_synthetic_figure(changed, tmp_path):
    write_inputs(tmp_path / "synthetic", synthetic=True)
    write_inputs(tmp_path)
    given = [tmp_path / "partition/curvature.parquet", tmp_path / "prm/random.statistics.json"]
    assert not any_synthetic(given)
    assert any_synthetic([*given, tmp_path / "synthetic" / changed])


def test_the_watermark_shows_in_the_pixels(tmp_path):
    pixels = []
    for synthetic in (True, False):
        figure = new_figure(3.4, 3.4)
        figure.suptitle("a\nb\nc")
        save(figure, tmp_path / "f.png", made_by(synthetic))
        with Image.open(tmp_path / "f.png") as image:
            pixels.append(np.asarray(image.convert("L"))[150:])  # below the title
    assert (pixels[1] == 255).all()
    share = (pixels[0] < 255).mean()
    assert 0.02 < share < 0.3  # seen, and not in the way


def test_a_figure_that_was_changed_or_is_not_ours_is_refused(tmp_path):
    path = tmp_path / "f.png"
    with pytest.raises(ArtifactError, match="no such figure"):
        read_figure_provenance(path)
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ArtifactError, match="not a figure"):
        read_figure_provenance(path)
    save(new_figure(3.4, 1), path, made_by())
    with Image.open(path) as image:
        pixels, info = np.asarray(image).copy(), image.info
    pixels[0, 0] = 0
    text = PngImagePlugin.PngInfo()
    text.add_text("paramscope", info["paramscope"])
    Image.fromarray(pixels).save(path, pnginfo=text)
    with pytest.raises(ArtifactError, match="pixels differ"):
        read_figure_provenance(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_type_is_at_least_seven_points_uncut_and_apart(name, marked):
    check_type(marked[name])


def test_the_style_stays_within_the_figures():
    before = dict(matplotlib.rcParams)
    statistical_summary([make_statistics()], "tiny")
    assert dict(matplotlib.rcParams) == before


def test_classes_differ_by_colour_and_by_mark():
    assert len(set(COLOURS.values())) == len(set(MARKERS.values())) == len(CLASSES)


def test_umap_shows_each_unit_where_it_is_in_its_cluster_and_class():
    units = make_units()
    embedding, partition = make_embedding(units), make_partition(units, draws=3)
    figure = umap_visualization(units, embedding, QUALITY, partition, "random", "tiny")
    clusters, classes = figure.axes
    for cluster, inside in embedding.groupby("cluster"):
        drawn = dots(clusters, f"cluster {cluster}")
        np.testing.assert_array_equal(drawn, expected_dots(inside, "umap_x", "umap_y"))
    label = partition[partition["draw"] == 0].set_index("unit")["label"]
    for name in CLASSES:
        inside = embedding[embedding["unit"].map(label) == name]
        drawn = dots(classes, name)
        np.testing.assert_array_equal(drawn, expected_dots(inside, "umap_x", "umap_y"))
    said = "\n".join(texts(figure))
    assert "tiny" in figure.get_suptitle()
    assert f"n = {len(units)} units of 4 tensors in 2 layers" in said
    assert "DBSCAN: 3 clusters, noise 25.0%" in said
    assert "silhouette 0.46 in the plane, – in feature space" in said
    assert "trustworthiness 0.988" in said
    assert "neighbourhood preservation –" in said
    assert "draw 1 of 3" in said


def test_umap_says_what_an_outlier_costs():
    units = make_units(rows=300)
    embedding = make_embedding(units)
    embedding.loc[0, "umap_x"] = 1e3
    figure = umap_visualization(
        units, embedding, QUALITY, make_partition(units), "curvature", "tiny"
    )
    assert "1 unit beyond the frame" in texts(figure)
    assert figure.axes[0].get_xlim()[1] < 10


def test_tables_of_different_units_are_refused():
    units = make_units()
    with pytest.raises(ArtifactError, match="different units"):
        parameter_clustering(units, make_partition(units[1:]), "curvature", "tiny")
    with pytest.raises(ArtifactError, match="W_other"):
        parameter_clustering(units, make_partition(units, classes=["W_other"]), "x", "tiny")


def test_clustering_shows_distribution_functions_and_shares():
    units = make_units()
    partition = make_partition(units)
    units.loc[5, "sparsity"] = np.nan
    figure = parameter_clustering(units, partition, "curvature", "tiny")
    frame = units.merge(partition, on="unit")
    for axes, feature in zip(figure.axes, FEATURES, strict=False):
        for label in CLASSES:
            values = frame.loc[frame["label"] == label, feature].dropna()
            expected = scipy.stats.ecdf(values).cdf
            (line,) = with_gid(axes, label)
            x, y = line.get_data()
            assert line.get_drawstyle() == "steps-post"
            steps = pd.Series(y, index=x).groupby(level=0).last()  # ties are one step
            np.testing.assert_allclose(steps, expected.evaluate(steps.index))
            assert y[0] == 0
    assert "1 unit unmeasured" in texts(figure)
    assert "3 units ≤ 0" in texts(figure)
    plane, layers, kinds = figure.axes[6:9]
    for label in CLASSES:
        inside = frame[frame["label"] == label]
        np.testing.assert_array_equal(dots(plane, label), expected_dots(inside, *PLANE))
        share = frame.groupby("layer")["label"].apply(lambda of, label=label: (of == label).mean())
        heights = [bar.get_height() for bar in with_gid(layers, label)]
        np.testing.assert_allclose(heights, share)
        share = frame.groupby("kind")["label"].apply(lambda of, label=label: (of == label).mean())
        widths = [bar.get_width() for bar in with_gid(kinds, label)]
        np.testing.assert_allclose(widths, share[["fc1", "q_proj"]])  # from below


def test_a_class_without_units_is_told():
    units = make_units()
    partition = make_partition(units, classes=CLASSES[::2])
    for figure in (
        parameter_clustering(units, partition, "origin", "tiny"),
        umap_visualization(units, make_embedding(units), QUALITY, partition, "origin", "tiny"),
    ):
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "(n = 0)" in labels[1]
    table = make_responses(classes=CLASSES[::2])
    for draw in (prm_phase_diagram, noise_response_curves):
        legend = draw({"origin": table}, "tiny").axes[0].get_legend()
        assert [("empty" in text.get_text()) for text in legend.get_texts()] == [False, True, False]


def test_the_replicate_is_the_seed_so_what_is_odd_in_the_sign_cancels():
    table = make_responses()
    table["delta_auc"] = table["sign"] * 0.1 + table["seed"]
    means = seed_means(table, ["delta_auc"])
    assert len(means) == len(CLASSES) * len(SIGMAS) * SEEDS
    np.testing.assert_allclose(means["delta_auc"], means["seed"], atol=1e-12)


def test_curves_are_means_and_t_intervals_over_seeds():
    table, control = make_responses(), make_responses(random=True)
    control["delta_auc"] *= 2
    control["auc"] = 0.8 + control["delta_auc"]
    figure = noise_response_curves({"random": control, "curvature": table}, "tiny")
    for axes, response in zip(figure.axes, RESPONSES, strict=False):
        for prefix, frame in (("", table), ("control ", control)):
            for label in CLASSES:
                of_class = frame[frame["class"] == label]
                seeds = of_class.pivot_table(index="sigma", columns="seed", values=response)
                (line,) = with_gid(axes, f"mean {prefix}{label}")
                np.testing.assert_array_equal(line.get_xdata(), SIGMAS)
                np.testing.assert_allclose(line.get_ydata(), seeds.mean(axis=1))
                (band,) = with_gid(axes, f"interval {prefix}{label}")
                low, high = scipy.stats.t.interval(
                    0.95, SEEDS - 1, seeds.mean(axis=1), scipy.stats.sem(seeds, axis=1)
                )
                (path,) = band.get_paths()
                for sigma, *expected in zip(SIGMAS, low, high, strict=True):
                    drawn = path.vertices[path.vertices[:, 0] == sigma, 1]
                    np.testing.assert_allclose([drawn.min(), drawn.max()], expected)
    assert f"n = {SEEDS} noise seeds · {SEEDS} control draws" in figure.get_suptitle()
    assert "perplexity 50.0, AUC 0.800" in figure.get_suptitle()


def test_phase_diagram_joins_the_means_over_each_rules_own_control():
    table, rows, whole = make_responses(), make_responses(random=True), make_responses(random=True)
    whole["delta_auc"] *= 2
    tables = {"random": rows, "random_tensor": whole, "curvature": table, "contrast": table}
    figure = prm_phase_diagram(tables, "tiny")
    figure.draw_without_rendering()
    assert sum(axes.get_visible() for axes in figure.axes) == 2  # none for a control
    for axes, control in zip(figure.axes, (rows, whole), strict=True):
        for label in CLASSES:
            means = table[table["class"] == label].groupby("sigma")[list(RESPONSES)].mean()
            (path,) = with_gid(axes, f"path {label}")
            np.testing.assert_allclose(path.get_xdata(), [0, *means["delta_log_ppl"]])
            np.testing.assert_allclose(path.get_ydata(), [0, *means["delta_auc"]])
            assert len(with_gid(axes, f"mean {label}")) == len(SIGMAS)
            assert len(with_gid(axes, f"ellipse {label}")) == len(SIGMAS)
        last = control[control["sigma"] == SIGMAS[-1]]
        ends = last.groupby(["class", "draw"])[["delta_log_ppl", "delta_auc"]].mean().to_numpy()
        (dots,) = with_gid(axes, "draws")
        np.testing.assert_allclose(np.sort(dots.get_xydata(), 0), np.sort(ends, 0))
        (iso,) = with_gid(axes, "iso")
        assert iso.get_xdata()[0] == pytest.approx(np.log(1.05))


def test_a_null_band_holds_95_percent_of_straight_paths():
    """Of paths y = −c·x the band is that of c, as far as half of them go."""
    slopes = np.linspace(0.5, 1.5, 41)
    paths = [np.array([[x, -c * x] for x in (0.01, end)]) for c, end in
             zip(slopes, np.linspace(0.05, 0.2, 41), strict=True)]  # fmt: skip
    x, low, high = null_band(paths)
    assert x[0] == 0
    assert x[-1] == pytest.approx(0.125)
    near = (x > 0) & (x < 0.05)  # where all paths still are
    ends = np.quantile(-slopes, [0.025, 0.975])
    np.testing.assert_allclose(low[near] / x[near], ends[0])
    np.testing.assert_allclose(high[near] / x[near], ends[1])
    assert np.isfinite(low).all()


def test_a_density_contour_holds_its_share_of_the_replicates():
    table = make_responses(seeds=40)
    figure = prm_phase_diagram({"curvature": table}, "tiny")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for label in CLASSES:
        (contour,) = with_gid(axes, f"density {label}")
        own = table[table["class"] == label]
        points = own.groupby(["sigma", "seed"])[["delta_log_ppl", "delta_auc"]].mean().to_numpy()
        (path,) = contour.get_paths()
        rings = [ring for ring in path.to_polygons(closed_only=False) if len(ring) > 2]
        scale = axes.transData - axes.transAxes  # the contour is straight on the drawn scale
        inside = sum(Path(scale.transform(r)).contains_points(scale.transform(points)) % 2
                     for r in rings)  # fmt: skip
        assert inside.mean() == pytest.approx(HELD, abs=0.03)  # the grid's own coarseness


def test_an_ellipse_is_hotellings_region():
    points = np.random.default_rng(5).normal(size=(8, 2)) @ [[1.0, 0.4], [0.0, 0.3]]
    away = confidence_ellipse(points) - points.mean(0)
    inverse = np.linalg.inv(np.cov(points.T) / len(points))
    statistic = np.einsum("vi,ij,vj->v", away, inverse, away)
    n, p = points.shape
    bound = p * (n - 1) / (n - p) * scipy.stats.f.ppf(0.95, p, n - p)
    np.testing.assert_allclose(statistic, bound)


def test_an_ellipse_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(6)
    trials = 1000
    covered = sum(
        Path(confidence_ellipse(generator.normal(size=(8, 2)))).contains_point((0, 0))
        for _ in range(trials)
    )
    # three standard errors of a binomial share; the polygon's loss to the ellipse is .0005
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("draw", [prm_phase_diagram, noise_response_curves])
def test_one_seed_has_a_mean_and_no_interval(draw):
    figure = draw({"curvature": make_responses(seeds=1)}, "tiny")
    assert "n = 1 noise seed\n" in figure.get_suptitle()
    for axes in figure.axes:
        assert not axes.patches
        for band in axes.collections:
            assert not np.isfinite(
                np.concatenate([p.vertices for p in band.get_paths()] or [[]])
            ).any()


@pytest.mark.parametrize("draw", [prm_phase_diagram, noise_response_curves])
def test_a_broken_replicate_is_left_out_whole_and_told(draw):
    table = make_responses()
    broken = (table["class"] == "W_func") & (table["sigma"] == 2) & (table["seed"] == 1)
    whole = table[~broken]
    table.loc[broken & (table["sign"] == 1), ["ppl", "delta_log_ppl"]] = np.inf
    table.loc[broken & (table["sign"] == -1), "delta_auc"] = np.nan
    figure = draw({"curvature": table}, "tiny")
    assert "1 replicate not finite, left out" in texts(figure)
    gid = "path W_func" if draw is prm_phase_diagram else "mean W_func"
    (line,) = with_gid(figure.axes[-1], gid)
    mean = whole[(whole["class"] == "W_func") & (whole["sigma"] == 2)]["delta_auc"].mean()
    assert line.get_ydata()[-1] == pytest.approx(mean)


def test_responses_that_cannot_be_drawn_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no rows"):
        prm_phase_diagram({"curvature": make_responses().iloc[:0]}, "tiny")
    with pytest.raises(ArtifactError, match="no responses"):
        noise_response_curves({}, "tiny")
    with pytest.raises(RequestError, match="one file name"):
        by_rule([tmp_path / "a" / "x.parquet", tmp_path / "b" / "x.parquet"])


def test_the_control_alone_is_drawn_as_a_rule():
    figure = noise_response_curves({"random": make_responses(random=True)}, "tiny")
    assert with_gid(figure.axes[0], "mean W_func")
    assert not with_gid(figure.axes[0], "mean control W_func")


def test_on_the_response_scale_what_goes_with_sigma_squared_is_straight():
    axes = new_figure(3.4, 3.4).subplots()
    response_scale(axes, "y", *span([-1e4, 1e4]))
    forward = axes.yaxis.get_transform()
    sigmas = np.linspace(10, 100, 10)
    steps = np.diff(forward.transform(sigmas**2))
    # beyond the linear core, of 0.002, the scale is a square root to 0.002/2/10²
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
    values = np.array([-3.0, -1e-4, 0, 1e-4, 0.5, 7])
    np.testing.assert_allclose(forward.inverted().transform(forward.transform(values)), values)
    low, high = span([0.1], [0.11, 50.0])
    assert low < 0 < 0.11 < high < 1


def test_heat_map_cells_are_the_statistics():
    records = [make_statistics("random"), make_statistics("curvature")]
    records[1]["comparisons"][0]["effect_size"] = None
    records[1]["comparisons"][1]["p_holm"] = None
    records[1]["comparisons"][2]["p_holm"] = 1e-5
    figure = statistical_summary(records, "tiny")
    for axes, response in zip(figure.axes, RESPONSES, strict=False):
        (mesh,) = with_gid(axes, response)
        cells = [
            [c["effect_size"] for c in record["comparisons"] if c["response"] == response]
            for record in records[::-1]  # the control last
        ]
        expected = np.array(cells, dtype=float).T
        np.testing.assert_array_equal(mesh.get_array().filled(np.nan), expected)
        assert mesh.norm.vmin == -mesh.norm.vmax
        for (row, column), value in np.ndenumerate(expected):
            if not np.isnan(value):
                said = f"{value:.2f}".replace("-", "−")
                assert any(
                    text.get_text().startswith(f"{said}\n")
                    and text.get_position() == (column + 0.5, row + 0.5)
                    for text in axes.texts
                )
    first = [text.get_text() for text in figure.axes[0].texts]
    assert first[0].startswith("–\np = ")  # no effect size, but a p
    assert first[2].endswith("p –")
    assert first[4].endswith("p < 0.001")
    assert figure.axes[0].texts[4].get_fontweight() == "bold"


def test_separation_scores_are_the_statistics_and_a_null_is_a_dash():
    figure = statistical_summary([make_statistics()], "tiny")
    (scores,) = [axes for axes in figure.axes if "Separation" in axes.get_title(loc="left")]
    (point,) = with_gid(scores, "score curvature gap")
    (interval,) = with_gid(scores, "interval curvature gap")
    assert point.get_xdata() == [0.75]
    np.testing.assert_array_equal(interval.get_xdata(), [-0.25, 1.5])
    assert not with_gid(scores, "score curvature auc")
    said = [text.get_text() for text in scores.texts]
    assert said == ["curvature", "loss gap 0.75 [−0.25, 1.50]", "AUC (loss) –"]


def test_a_rule_with_one_class_leaves_its_column_hatched():
    records = [make_statistics("origin", pairs=()), make_statistics("curvature")]
    figure = statistical_summary(records, "tiny")
    (mesh,) = with_gid(figure.axes[0], "delta_log_ppl")
    assert mesh.get_array().mask[:, 0].all()
    assert len(figure.axes[0].patches) == 3
    alone = statistical_summary(records[:1], "tiny")
    assert "the statistics hold no comparison" in texts(alone)
    with pytest.raises(ArtifactError, match="another rule"):
        statistical_summary([records[0], records[0]], "tiny")


def test_limits_hold_all_but_what_stretches_the_axis():
    values = np.random.default_rng(7).normal(size=1000)
    low, high, outside = limits(values)
    assert (low, high, outside) < (values.min(), np.inf, 1)
    assert high > values.max()
    low, high, outside = limits([*values, 1e6, -1e6, np.nan, np.inf])
    assert low > -10
    assert high < 10
    assert outside >= 2
    assert limits([]) == (0, 1, 0)
    low, high, _ = limits([3.0, 3.0])
    assert low < 3 < high
