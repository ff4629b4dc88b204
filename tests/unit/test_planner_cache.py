"""Estimates kept on disk, and the plan's table that is made of them."""

import json

import pytest
from transformers import OPTConfig

from paramscope.artifacts.plans import plan_rows
from paramscope.errors import RequestError
from paramscope.planner import cache
from paramscope.planner.advice import Adviser
from paramscope.planner.cache import Store
from paramscope.planner.cache_folder import default_folder
from paramscope.planner.estimate import estimate
from paramscope.planner.known_devices import Device, known_device
from paramscope.planner.options import Options
from paramscope.planner.table import Asked, own_options, rows_of, table

CONFIG = OPTConfig(
    vocab_size=40, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=5,
    num_attention_heads=2, ffn_dim=24, max_position_embeddings=32,
)  # fmt: skip
OPTIONS = Options(batch=2, length=24)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "kept")


@pytest.fixture
def idle(monkeypatch):
    """Makes nothing any more."""

    def refuse(*args, **options):
        raise AssertionError("an estimate was made")

    return lambda: monkeypatch.setattr(cache, "estimates", refuse)


@pytest.mark.parametrize("strategy", ["training", "ggn", "full_hessian"])
@pytest.mark.parametrize(("kind", "device"), [("cpu", None), ("cuda", "a800")])
def test_a_store_tells_what_an_estimate_does_and_makes_it_once(store, idle, strategy, kind, device):
    options = own_options(strategy, OPTIONS)
    place = device and known_device(device)
    first = store.estimate(CONFIG, strategy, options, kind, place)
    assert first == estimate(CONFIG, strategy, options, kind, device=place)
    idle()
    assert Store(store.folder).estimate(CONFIG, strategy, options, kind, place) == first


def test_one_run_serves_both_kinds_where_options_are_the_same(store, idle):
    store.estimate(CONFIG, "ggn", OPTIONS, "cpu")
    store.estimate(CONFIG, "training", OPTIONS, "cpu")
    idle()
    store.estimate(CONFIG, "ggn", OPTIONS, "cuda")
    with pytest.raises(AssertionError, match="an estimate was made"):
        store.estimate(CONFIG, "training", OPTIONS, "cuda")  # all parameters at once there


def test_what_it_hangs_on_is_told_apart(store, idle):
    store.estimate(CONFIG, "inference", OPTIONS)
    wider = OPTConfig.from_dict(CONFIG.to_dict() | {"ffn_dim": 32})
    idle()
    for other in ((wider, OPTIONS), (CONFIG, Options(batch=3, length=24))):
        with pytest.raises(AssertionError, match="an estimate was made"):
            store.estimate(other[0], "inference", other[1])


def test_what_can_not_be_read_is_made_anew(store):
    first = store.estimate(CONFIG, "inference", OPTIONS)
    for file in (store.folder / "estimates").iterdir():
        file.write_text(json.dumps({"peak_bytes": 1}))
    assert store.estimate(CONFIG, "inference", OPTIONS) == first


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "kept").write_text("a file")
    found = Store(tmp_path / "kept").estimate(CONFIG, "inference", OPTIONS)
    assert found == estimate(CONFIG, "inference", OPTIONS)


def test_the_folder_is_the_users_own(tmp_path):
    assert default_folder({"PARAMSCOPE_CACHE": "/own"}).as_posix() == "/own"
    assert default_folder({"XDG_CACHE_HOME": "/home/a/c"}).as_posix() == "/home/a/c/paramscope"


def test_the_table_has_what_an_adviser_tells(store):
    need = estimate(CONFIG, "training", OPTIONS).peak_bytes
    small = Device("small", "cpu", need, "", "")
    devices = (small, known_device("a800"))
    asked = Asked(OPTIONS, devices, process_bytes=0)
    rows = table([CONFIG], ["training", "inference", "full_hessian"], asked, store, workers=2)
    assert rows == table([CONFIG], ["training", "inference", "full_hessian"], asked, store, 1)
    assert [(row["strategy"], row["device"]) for row in rows] == [
        (strategy, device.name)
        for strategy in ("training", "inference", "full_hessian")
        for device in devices
    ]
    frame = plan_rows(rows)
    assert list(frame["state"]) == ["mended", "fits", "fits", "fits", "no", "fits"]
    change = Adviser(CONFIG, small).mend("training", OPTIONS)
    assert frame["mend"][0] == " ".join(change.words)
    assert frame["mended_bytes"][0] == change.verdict.total_bytes


def test_what_fits_within_the_margin_alone_is_tight(store):
    options = Options(batch=1, length=24, dtype="bfloat16")  # nothing is left to change
    total = Adviser(CONFIG, known_device("laptop-8gb")).verdict("inference", options).total_bytes
    for spare, state in ((-1, "no"), (0, "tight"), (total, "fits")):
        device = Device("test", "cpu", total + spare, "", "")
        (row,) = rows_of(CONFIG, "inference", Asked(options, (device,), 0), store)
        assert row["state"] == state
        assert row["mend"] == ("" if state == "tight" else None)


def test_a_wrong_request_ends_all(store):
    asked = Asked(OPTIONS, (known_device("a800"),), 0)
    with pytest.raises(RequestError, match="trainig of opt-125m: strategy 'trainig' is not known"):
        table(["opt-125m"], ["trainig"], asked, store, workers=2)
