"""Directions of curvature on the micro model: their responses, and taking them out."""

import pytest

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table
from tests.workflow.conftest import copied
from tests.workflow.watched import assert_planned

pytestmark = pytest.mark.workflow

KFAC = ("--config", "prm={rules: [curvature, random, kfac]}", "kfac={removal_draws: 2}")


@pytest.fixture(scope="session")
def study(micro, tmp_path_factory):
    """The micro study's checkout and results, with the rule kfac measured beside them."""
    workplace = copied(micro, tmp_path_factory, "directions")
    planned = workplace.planned(*KFAC)
    assert {"kfac", "directions", "removal"} < planned.keys()
    assert not {"corpus", "base", "target", "curvature_draws"} & planned.keys()
    workplace.run(*KFAC)
    return workplace


def test_removal_is_measured_and_told(study):
    folder = study.folder / "results/micro-opt"
    removal = read_record(folder / "prm/removal.json")
    told = read_record(folder / "results.json")["removal"]
    assert told == {key: value for key, value in removal.items() if key != "provenance"}
    assert set(told["gap"]["eta"]) == {"low_curvature", "random", "uniform_noise"}


def test_no_job_takes_more_than_planned(study):
    changes = {"prm": {"rules": ["curvature", "random", "kfac"]}, "kfac": {"removal_draws": 2}}
    assert_planned(study.folder, "micro-opt", ["kfac", "directions", "removal", "prm"], changes)


def test_directions_respond(study):
    rows = read_table(study.folder / "results/micro-opt/prm/kfac.parquet")
    assert set(rows["class"]) >= {"W_func", "W_sens"}
    assert rows["ppl"].gt(1).all()
    assert rows.loc[rows["sigma"] > 0, "delta_log_ppl"].abs().max() > 0


def test_nothing_is_left_to_do(study):
    assert study.planned(*KFAC) == {}
