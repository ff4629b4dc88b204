"""The planted model: synthetic from end to end, and saying so."""

import pytest
from sklearn.metrics import adjusted_rand_score

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from tests.workflow.conftest import Workplace

pytestmark = pytest.mark.workflow


def test_planted_classes_are_found_and_every_output_says_synthetic(tmp_path):
    from PIL import Image

    workplace = Workplace.fresh(tmp_path / "checkout")
    workplace.run(config="workflow/configs/planted.yaml")
    results = workplace.folder / "results/planted"
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
