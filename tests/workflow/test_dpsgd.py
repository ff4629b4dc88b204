"""The DP-SGD study on the micro model: its outputs, and what reruns when something changes."""

import pytest
from transformers import AutoModelForCausalLM

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table
from paramscope.cli.memory_regression import memory_regression
from paramscope.dpsgd.regression import MemoryGrewError
from tests.workflow.conftest import copied
from tests.workflow.watched import assert_planned

pytestmark = pytest.mark.workflow

METHODS = ("vanilla", "opacus_ghost", "bk", "micro+chunk+checkpoint")
FIGURES = ("memory_breakdown_comparison", "memory_timeline", "performance_tradeoff")


@pytest.fixture(scope="session")
def study(micro, tmp_path_factory):
    """The micro study's checkout and results with the profiles and private models beside them."""
    workplace = copied(micro, tmp_path_factory, "dpsgd")
    planned = workplace.planned("dpsgd")
    assert planned["dpsgd_profile"] == len(METHODS)
    assert not {"corpus", "base", "target"} & planned.keys()
    workplace.run("dpsgd")
    return workplace


@pytest.fixture
def profiles(study):
    return study.folder / "results/dpsgd/micro"


def test_the_profiles_are_whole(profiles):
    for name in FIGURES:
        assert (profiles / f"figures/{name}.png").stat().st_size > 10_000
        assert (profiles / f"figures/{name}.pdf").is_file()
    table = read_table(profiles / "profiles.parquet").set_index("variant")
    assert set(table.index) == set(METHODS)
    refused = table.loc["opacus_ghost"]
    assert refused["refused"].startswith("Opacus can't do this model")
    done = table.drop("opacus_ghost")
    parts = [name for name in done if name.startswith("part_")]
    assert (done[parts].sum(axis=1) == done["peak_bytes"]).all()
    assert done.loc["vanilla", "memory_ratio"] == done.loc["vanilla", "time_ratio"] == 1
    assert done.loc["micro+chunk+checkpoint", "memory_ratio"] < 1
    text = (profiles / "summary.txt").read_text(encoding="utf-8")
    assert "Opacus can't do this model" in text
    assert (profiles / "table.tex").read_text(encoding="utf-8").startswith(r"\begin{tabular}")


def test_no_job_takes_more_than_planned(study):
    assert_planned(study.folder, "micro-opt", ["dpsgd_profile", "dp_finetune", "privacy_scores"])


def test_what_no_cpu_times_has_no_figure_of_times(study):
    planned = study.planned("dpsgd", "--config", "device=cpu", "dpsgd={predicted: [micro]}")
    assert planned["memory_timeline"] == planned["memory_breakdown_comparison"] == 1
    assert "performance_tradeoff" not in planned


def test_the_private_model_is_one(study):
    folder = study.folder / "results/micro-opt/dpsgd"
    budget = read_record(folder / "epsilon-8/privacy.json")
    assert 7.9 < budget["epsilon_spent"] <= 8
    assert budget["steps"] == 4  # 64 members, 16 a step, once each
    rows = {row["name"]: row for row in read_record(folder / "privacy_utility.json")["rows"]}
    assert set(rows) == {"base", "private", "target"}
    assert rows["private"]["auc"] < rows["target"]["auc"]
    private = AutoModelForCausalLM.from_pretrained(folder / "epsilon-8")
    base = AutoModelForCausalLM.from_pretrained(study.folder / "results/micro-opt/base")
    changed = [
        float((a - b).detach().abs().max())
        for a, b in zip(private.parameters(), base.parameters(), strict=True)
    ]
    assert min(changed) > 0  # it was the base, and all of it was trained
    assert (folder / "figures/privacy_utility.png").stat().st_size > 10_000


def test_a_profile_is_held_to_another(profiles, tmp_path):
    plain, lean = profiles / "vanilla.json", profiles / "micro+chunk+checkpoint.json"
    memory_regression(plain, plain, tolerance="2%")
    with pytest.raises(Exception, match="variant"):
        memory_regression(plain, lean, tolerance="2%")
    assert issubclass(MemoryGrewError, Exception)


def test_only_what_a_change_touches_reruns(study):
    assert study.planned("dpsgd") == {}
    more = study.planned("dpsgd", "--config", "dpsgd={max_norm: 2.0}")
    assert more["dpsgd_profile"] == len(METHODS)
    assert "dp_finetune" not in more
    other = study.planned("dpsgd", "--config", "dpsgd={finetuning: {max_norm: 2.0}}")
    assert other["dp_finetune"] == other["privacy_scores"] == other["privacy_utility"] == 1
    assert "dpsgd_profile" not in other
    assert study.planned("dpsgd", "--config", "dpsgd={methods: [vanilla, bk]}").keys() == {
        "dpsgd_results", "memory_breakdown_comparison", "memory_timeline",
        "performance_tradeoff", "dpsgd",
    }  # fmt: skip
