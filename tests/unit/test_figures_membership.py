"""The figure of membership scores shows what the record holds, and says what it rests on."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from paramscope.artifacts.digest import file_digest, imported_modules
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.artifacts.tables import write_table
from paramscope.errors import ArtifactError
from paramscope.evaluation.scores import DOCUMENT_SCORES, LIRA, SCORES, membership_summary
from paramscope.figures.membership_scores import BLIND, LOOKS, membership_scores
from paramscope.figures.saving import read_figure_provenance
from tests.unit.figure_checks import check_type, draw_by_commands, laid_out, said, with_gid

SHIFTS = {"loss": 1.2, "zlib": 0.7, "min_k": 1.4, "min_k_plus_plus": 1.3, "calibrated": 5, LIRA: 4}
GATE = {
    "passed": True,
    "alpha": 0.05,
    "scores": [
        {"name": "zlib_length", "auc": 0.53, "p_holm": 0.47},
        {"name": "bag_of_words", "auc": 0.46, "p_holm": 0.82},
    ],
}


def make_documents(members, nonmembers, probes=0, with_lira=True):
    """Scores that are normal, members' shifted by SHIFTS; the first of each are probes."""
    generator = np.random.default_rng(0)
    member = np.arange(members + nonmembers) < members
    place = np.where(member, np.arange(len(member)), np.arange(len(member)) - members)
    frame = pd.DataFrame(
        {
            "doc_id": [f"{i:016x}" for i in range(len(member))],
            "member": member,
            "probe": place < probes,
            "n_tokens": 64,
        }
    )
    for name in SCORES:
        frame[name] = generator.normal(size=len(member)) + SHIFTS[name] * member
    frame["loss"] = 0.4 * frame["loss"] - 5
    if not with_lira:
        frame[LIRA] = np.nan
    return frame


@cache
def small():
    documents = make_documents(60, 50, probes=20)
    return documents, membership_summary(documents, bootstrap=100, seed=0)


@cache
def large():
    documents = make_documents(300, 1000, with_lira=False)
    return documents, membership_summary(documents, bootstrap=40, seed=0)


@cache
def figures():
    failed = GATE | {"passed": False, "scores": [g | {"auc": 0.97} for g in GATE["scores"]]}
    return {
        "small": membership_scores(*small(), GATE, "tiny"),
        "large": membership_scores(*large(), failed, "tiny"),
    }


@pytest.mark.parametrize("made", [small, large])
def test_curves_bands_and_areas_are_the_records(made):
    _, summary = made()
    figure = figures()[made.__name__]
    roc, _, areas = figure.axes
    for place, (name, numbers) in enumerate(summary["scores"].items()):
        curve = summary["curves"][name]
        (line,) = with_gid(roc, f"curve {name}")
        x, y = line.get_data()
        seen = np.array(curve["tpr"]) > 0
        own = -seen.sum()  # a curve that begins with 0 rises from below the frame
        np.testing.assert_array_equal(x[own:], np.array(curve["fpr"])[seen])
        np.testing.assert_array_equal(y[own:], np.array(curve["tpr"])[seen])
        assert (y[:own] < roc.get_ylim()[0]).all()
        assert len(y[:own]) == (not seen.all())
        assert line.get_drawstyle() == "steps-post"
        (band,) = with_gid(roc, f"band {name}")
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(max(curve["high"]))
        (point,) = with_gid(areas, f"auc {name}")
        assert point.get_xydata().tolist() == [[numbers["auc"], place]]
        (interval,) = with_gid(areas, f"interval {name}")
        assert interval.get_xdata().tolist() == [numbers["auc_low"], numbers["auc_high"]]
        for text in (f"{numbers['auc']:.3f}", f"{numbers['tpr_5']:.2f}", LOOKS[name][0]):
            assert text in said(figure)
    assert (LIRA in summary["scores"]) == bool(with_gid(roc, f"curve {LIRA}"))
    assert len(with_gid(roc, "chance")) == 1
    assert roc.get_xlim()[0] == 1 / max(summary["n_nonmembers"], summary["n_members"])
    assert roc.get_xscale() == roc.get_yscale() == "log"


def test_rates_at_one_percent_are_shown_where_there_are_any():
    assert "1% FPR" not in said(figures()["small"])
    assert "1% FPR" in said(figures()["large"])


def test_losses_are_the_judges_and_their_means_stand_apart():
    documents, summary = small()
    axes = figures()["small"].axes[1]
    judging = documents[~documents["probe"]]
    for member, name in ((True, "members"), (False, "non-members")):
        losses = -judging.loc[judging["member"] == member, "loss"]
        (mean,) = with_gid(axes, f"mean {name}")
        assert mean.get_xdata()[0] == pytest.approx(losses.mean())
        (bars,) = with_gid(axes, f"losses {name}")
        values, edges, _ = bars.get_data()
        expected, _ = np.histogram(losses, edges, density=True)
        np.testing.assert_allclose(values, expected)
    gap = summary["loss_gap"]
    told = f"gap of means {gap['value']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}]"
    assert told in said(figures()["small"])


def test_the_blind_gate_stands_beside_the_scores():
    for name, verdict, auc in (("small", "passed", 0.53), ("large", "FAILED", 0.97)):
        axes = figures()[name].axes[2]
        (point,) = with_gid(axes, "blind zlib_length")
        assert point.get_xdata()[0] == auc
        assert f"blind gate {verdict}" in said(figures()[name])
        assert {"p = 0.47", "p = 0.82", *BLIND.values()} <= set(said(figures()[name]).split("\n"))


def test_type_is_at_least_seven_points_uncut_and_apart():
    for figure in laid_out(figures()).values():
        check_type(figure, least=41)


def test_what_cannot_be_drawn_is_refused():
    documents, summary = small()
    with pytest.raises(ArtifactError, match="rerun membership"):
        membership_scores(documents[1:].assign(probe=False), summary, GATE, "tiny")
    strange = summary | {"scores": {"neighbour": summary["scores"]["loss"]}}
    with pytest.raises(ArtifactError, match="neighbour"):
        membership_scores(documents, strange, GATE, "tiny")


def test_its_stage_hangs_on_no_other_figure():
    modules = imported_modules("cli.membership_scores")
    packages = {module.split(".")[1] for module in modules if "." in module}
    assert packages - {"names"} == {"artifacts", "cli", "errors", "figures"}
    drawn = {module for module in modules if module.startswith("paramscope.figures.")}
    assert drawn == {
        f"paramscope.figures.{name}" for name in ("membership_scores", "saving", "style")
    }


def test_its_command_writes_png_and_pdf_with_provenance(tmp_path):
    documents, summary = small()
    by = provenance("figures.saving", {}, synthetic=True)
    write_table(tmp_path / "scores.parquet", documents, DOCUMENT_SCORES, by)
    write_record(tmp_path / "summary.json", summary, by)
    write_record(tmp_path / "gate.json", GATE, by)
    inputs = {"--scores": "scores.parquet", "--summary": "summary.json", "--gate": "gate.json"}
    line = ["out.png", *(w for pair in inputs.items() for w in pair), "--model", "tiny"]
    draw_by_commands(tmp_path, {"membership_scores": line})
    described = read_figure_provenance(tmp_path / "out.png")
    assert described["inputs"] == {p: file_digest(tmp_path / p) for p in inputs.values()}
    assert described["synthetic"] is True
    assert described["content_digest"].encode() in (tmp_path / "out.pdf").read_bytes()
