"""The planted model: synthetic from end to end, and saying so."""

import pytest
from sklearn.metrics import adjusted_rand_score

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from tests.workflow.conftest import Workplace
from tests.workflow.watched import peaks, watched

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    workplace = Workplace.fresh(tmp_path_factory.mktemp("planted") / "checkout")
    watching = Workplace(workplace.folder, watched(workplace.folder))
    watching.run(config="workflow/configs/planted.yaml")
    return workplace


def test_half_a_gigabyte_is_enough(planted):
    """What each job ever had resident, by the kernel; UMAP's has the most, 441 MB when measured.

    A limit of that size on a job's data would count what OpenBLAS and numba only reserve.
    """
    found = {rule: max(sizes) for rule, sizes in peaks(planted.folder).items()}
    assert found.keys() > {"planted_units", "embedding", "partition", "results"}
    assert max(found.values()) < 500e6, found


def test_planted_classes_are_found_and_every_output_says_synthetic(planted):
    from PIL import Image

    results = planted.folder / "results/planted"
    units = read_table(results / "geometry/units.parquet")
    clusters = read_table(results / "geometry/embedding.parquet")["cluster"]
    assert adjusted_rand_score(units["planted_label"], clusters) >= 0.95
    origin = read_table(results / "geometry/partition/origin.parquet")["label"]
    assert (origin == units["planted_label"]).all()
    tables = list(results.rglob("*.parquet"))
    assert len(tables) == 10  # units, embedding, and eight partitions
    assert all(read_table_provenance(path)["synthetic"] for path in tables)
    for path in (results / "results.json", results / "geometry/embedding.json"):
        assert read_record(path)["synthetic"] is True
    figures = list((results / "figures").glob("*.png"))
    assert {path.stem for path in figures} == {"umap_visualization", "parameter_clustering"}
    for path in figures:
        assert '"synthetic": true' in Image.open(path).text["paramscope"]
