"""A plan's table is whole or refused, and what it recommends is the best by its own order."""

import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramscope.artifacts.digest import imported_modules
from paramscope.artifacts.plans import (
    PART_COLUMNS,
    PLAN,
    STATES,
    TASKS,
    checked,
    plan_rows,
    read_plan,
    recommended,
    taken_bytes,
)
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import write_table
from paramscope.errors import ArtifactError
from paramscope.names import DPSGD_METHODS, DPSGD_PARTS
from paramscope.planner.strategies import CLOSED_FORMS, NAMES
from tests.unit.plan_records import DEVICES, MODELS, plan, record

MADE_BY = provenance("artifacts.plans", {})


def row(state):
    """A row of a plan that has that state."""
    rows = plan(("opt-125m", "opt-350m", "opt-1.3b"))
    return rows[rows["state"] == state].iloc[0].to_dict()


def test_a_plan_is_read_as_it_was_written(tmp_path):
    rows = plan()
    assert set(rows["state"]) == set(STATES)
    assert len(rows) == len(MODELS) * 15 * len(DEVICES)
    write_table(tmp_path / "plan.parquet", rows, PLAN, MADE_BY)
    read = read_plan(tmp_path / "plan.parquet")
    pd.testing.assert_frame_equal(read, rows[PLAN.names], check_dtype=False)
    # What int64 can't hold: 3.6e21 bytes, to a float's 53 bits.
    hessian = read[(read["model"] == "opt-30b") & (read["strategy"] == "full_hessian")].iloc[0]
    assert hessian["total_bytes"] > 2**63
    assert abs(int(hessian["peak_bytes"]) - 4 * MODELS["opt-30b"] ** 2) < 4e21 * 2**-53


def test_columns_are_the_parts_and_bytes_of_runs_are_exact():
    assert tuple(PART_COLUMNS) == DPSGD_PARTS
    assert PART_COLUMNS["logits and loss"] == "logits_and_loss_bytes"
    odd = record("opt-13b", "training", "h200")  # mended, so that no column is null
    (read,) = plan_rows([odd]).to_dict("records")
    assert {name: read[name] for name in PLAN.names} == odd


def broken(state, /, **changed):
    return pd.DataFrame([row(state) | changed])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame(), "not a plan: lacks the column"),
        (broken("fits").drop(columns="norm_samples_bytes"), "lacks the column.* norm_samples"),
        (broken("fits").iloc[:0], "the plan has no rows"),
        (pd.concat([broken("fits")] * 2), "two rows of opt-125m, inference, laptop-8gb"),
        (broken("fits", other_bytes=1.0), "its parts don't add up to its peak"),
        (broken("fits", total_bytes=1.0), "its total is not peak and extra"),
        (broken("fits", state="maybe"), "a state is one of fits, mended, tight, no"),
        (broken("fits", mend="", mended_bytes=1.0), "a mend and its bytes are of states"),
        (broken("fits", usable_bytes=1), "it fits where its total is within"),
        (broken("fits", usable_bytes=5e9), "more is usable than its memory"),
        (broken("no", state="fits"), "it fits where its total is within"),
        (broken("no", mended_bytes=1.0), "a mend and its bytes are of states"),
        (broken("mended", mend=None), "a mend and its bytes are of states"),
        (broken("mended", mended_bytes=float("nan")), "a mend and its bytes are of states"),
        (broken("mended", mended_bytes=row("mended")["usable_bytes"] + 1.0), "it is mended where"),
        (broken("tight", mend=None), "a mend and its bytes are of states"),
        (broken("tight", mended_bytes=row("tight")["usable_bytes"] * 1.0), "it is tight between"),
        (broken("tight", mended_bytes=9e9), "it is tight between"),
    ],
)
def test_rows_at_odds_with_themselves_are_refused(rows, message):
    with pytest.raises(ArtifactError, match=message):
        checked(rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 256}, r"differ in length: 512, 256"),
        ({"dtype": "bfloat16"}, r"differ in dtype: float32, bfloat16"),
        ({"parameters": 1}, "differ in what model opt-125m is"),
        ({"memory_bytes": 2**40}, "differ in what device a800 is"),
    ],
)
def test_rows_at_odds_with_each_other_are_refused(changed, message):
    rows = [record("opt-125m", "training", "a800"), record("opt-125m", "ggn", "a800", **changed)]
    with pytest.raises(ArtifactError, match=message):
        plan_rows(rows)


def test_a_plan_of_the_margins_very_edges_is_whole():
    """Within what is usable it fits, a byte more is tight, and a byte above all memory is not."""
    one = record("opt-125m", "training", "a800")
    total, memory = one["total_bytes"], one["memory_bytes"]
    assert checked(plan_rows([one | {"usable_bytes": total}])) is not None
    tight = {"usable_bytes": total - 1, "state": "tight", "mend": "", "mended_bytes": total}
    assert checked(plan_rows([one | tight])) is not None
    assert taken_bytes(plan_rows([one | tight]).iloc[0]) == total
    for wrong in (tight | {"usable_bytes": total}, tight | {"held_bytes": memory - total + 1}):
        with pytest.raises(ArtifactError):
            plan_rows([one | wrong])


def test_every_strategy_but_closed_forms_and_plain_gradients_is_of_one_task():
    """The planner's names, so that none is misspelt; each strategy has one task at most."""
    known = [strategy for task in TASKS.values() for strategy in task]
    assert len(known) == len(set(known))
    assert set(known) <= set(NAMES) - set(CLOSED_FORMS)
    private = {f"dpsgd-{m}" for m in DPSGD_METHODS if not m.startswith("opacus")}
    assert set(TASKS["private training"]) == private - {"dpsgd-vanilla"}
    assert set(TASKS["pruning"]) == {name for name in NAMES if name.startswith("prune-")}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(TASKS)), st.data())
def test_the_best_state_comes_first_then_the_tasks_order(task, data):
    """`recommended` against sorting all rows by state, then by place."""
    states = {
        strategy: data.draw(st.sampled_from((*STATES, None)), label=strategy)
        for strategy in TASKS[task]
    }
    rows = pd.DataFrame(
        [
            {"model": "m", "device": "d", "strategy": strategy, "state": state}
            for strategy, state in reversed(states.items())
            if state
        ],
        columns=["model", "device", "strategy", "state"],
    )
    best = sorted(
        (STATES.index(state), place, strategy)
        for place, (strategy, state) in enumerate(states.items())
        if state not in (None, "no")
    )
    found = recommended(rows, task)
    assert (None if found is None else found["strategy"]) == (best[0][2] if best else None)


def test_what_is_taken_is_the_change_where_there_is_one():
    for state, column in (
        *(("fits", "total_bytes"), ("no", "total_bytes")),
        *(("mended", "mended_bytes"), ("tight", "mended_bytes")),
    ):
        one = pd.Series(row(state))
        assert taken_bytes(one) == one[column]
    with pytest.raises(ArtifactError, match="one model on one device"):
        recommended(plan(("opt-125m",)), "training")


def test_reading_a_plan_needs_neither_torch_nor_the_planner():
    packages = {name.split(".")[1] for name in imported_modules("artifacts.plans") if "." in name}
    assert packages == {"artifacts", "errors", "names"}
    script = "import sys, paramscope.artifacts.plans; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
