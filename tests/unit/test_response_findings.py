"""Words and tables say what the statistics hold, and no more."""

import math
import re

import numpy as np
import pytest

from paramscope.errors import ArtifactError
from paramscope.figures.separation import BEYOND, WITHIN, separation
from paramscope.response.findings import findings, findings_record, latex, paragraph
from paramscope.response.responses import merge
from paramscope.response.statistics import statistics
from tests.unit.figure_checks import check_type, laid_out
from tests.unit.response_sweeps import noisy_sweep
from tests.unit.test_response_null import random_sweep


@pytest.fixture(scope="module")
def records():
    """A rule that separates threefold, one that is the control itself, and the control."""
    random = statistics(merge([random_sweep()]), "random", seed=0)
    strong = statistics(merge([noisy_sweep()]), "curvature", 0, random.record())
    alike = statistics(merge([random_sweep(seed=4)]), "gate", 0, random.record())
    return [strong.record(), alike.record(), random.record()]


def test_verdicts_need_the_interval_and_the_null(records):
    found = {(one.rule, one.measure): one for one in findings(records)}
    assert set(found) == {(rule, kind) for rule in ("curvature", "gate") for kind in ("gap", "auc")}
    strong = found["curvature", "gap"]
    assert strong.verdict == "separates"
    assert strong.value > strong.null_high
    assert strong.low > 0
    assert found["gate", "gap"].verdict == "not shown"
    # An interval above 0 is not enough where random partitions reach as far.
    wide = [dict(records[0]), records[1]]
    wide[0]["separation"] = {
        "gap": records[0]["separation"]["gap"] | {"null_low": -9.0, "null_high": 9.0, "p_null": 0.9}
    }
    assert findings(wide)[0].verdict == "not shown"
    flipped = [dict(records[0])]
    flipped[0]["separation"] = {
        "gap": records[0]["separation"]["gap"] | {"value": -3.0, "low": -4.0, "high": -2.0}
    }
    assert findings(flipped)[0].verdict == "reversed"


def test_a_score_that_is_undefined_says_why(records):
    lost = dict(records[0])
    lost["separation"] = {"gap": dict.fromkeys(records[0]["separation"]["gap"])}
    lost["notes"] = ["separation of gap: undefined, the mean η is not positive in W_func (-1)"]
    (found,) = findings([lost])
    assert found.verdict == "undefined"
    assert "undefined, the mean η is not positive in W_func (-1)" in found.sentence
    assert math.isnan(found.value)


def test_words_carry_the_numbers(records):
    found = findings(records)
    text = paragraph(found, "tiny")
    assert text.startswith("In tiny, memory is told from function by `curvature`.")
    strong = found[0]
    times = 2**strong.value
    assert f"takes {times:.2g} times" in text
    assert f"S = {strong.value:.2f} [{strong.low:.2f}, {strong.high:.2f}], 8 seeds" in text
    assert "No separation is shown" in text
    none = paragraph([one for one in found if one.rule == "gate"], "tiny")
    assert none.startswith("In tiny, no partition that was tried tells memory from function.")
    assert findings_record(found)[0]["sentence"] == strong.sentence


def test_the_table_is_latex_with_a_row_a_rule(records):
    table = latex(findings(records), records)
    rows = [line for line in table.splitlines() if line.startswith(r"\texttt")]
    assert [re.match(r"\\texttt{(\w+)}", row)[1] for row in rows] == ["curvature", "gate"]
    assert all(row.count("&") == 6 for row in rows)
    assert f"${findings(records)[0].value:.2f}$" in rows[0]


def drawn(figure, gid):
    (artist,) = [a for axes in figure.axes for a in axes.lines if a.get_gid() == gid]
    return artist


def test_the_figure_shows_scores_intervals_and_the_null(records):
    figure = separation(records, "tiny")
    check_type(laid_out({"separation": figure})["separation"], least=11)
    for row, record in enumerate(records[:2]):
        for kind in ("gap", "auc"):
            score = record["separation"][kind]
            point = drawn(figure, f"score {kind} {record['rule']}")
            assert point.get_xydata().tolist() == [[score["value"], row]]
            line = drawn(figure, f"interval {kind} {record['rule']}")
            np.testing.assert_allclose(line.get_xdata(), [score["low"], score["high"]])
    assert drawn(figure, "score gap curvature").get_color() == BEYOND
    assert drawn(figure, "score gap gate").get_color() == WITHIN
    null = drawn(figure, "null gap random")
    np.testing.assert_allclose(null.get_xdata(), records[2]["null"]["gap"]["values"])
    for row, rule in enumerate(("curvature", "gate", "random")):
        (band,) = [c for c in figure.axes[0].collections if c.get_gid() == f"band gap {rule}"]
        outline = band.get_paths()[0].vertices
        assert outline[:, 0].min() == pytest.approx(records[2]["null"]["gap"]["low"])
        assert outline[:, 0].max() == pytest.approx(records[2]["null"]["gap"]["high"])
        assert outline[:, 1].mean() == pytest.approx(row, abs=0.2)


def test_a_figure_of_the_control_alone_is_refused(records):
    with pytest.raises(ArtifactError, match="one rule or more"):
        separation(records[2:], "tiny")
    with pytest.raises(ArtifactError, match="each once"):
        separation([records[0], records[0]], "tiny")
