"""Profiles: parts that add up, fake tensors that count like real ones, and what is refused."""

import pytest
import torch

from paramscope.artifacts.profiles import of_workload
from paramscope.artifacts.records import read_record
from paramscope.cli.dpsgd_profile import dpsgd_profile
from paramscope.dpsgd.cases import Case
from paramscope.dpsgd.methods import Options
from paramscope.dpsgd.privacy import Privacy
from paramscope.dpsgd.profile import POINTS, measure, predict
from paramscope.dpsgd.variants import variant_of
from paramscope.dpsgd.workloads import FAMILIES, Workload
from paramscope.errors import RequestError
from paramscope.names import DPSGD_METHODS, DPSGD_PARTS

CPU = torch.device("cpu")
TINY = Workload("tiny", "llama", 16, 2, 2, 24, 40, 24, 3)
PREDICTED = [
    ("vanilla", Options()),
    ("ghost", Options()),
    ("flash", Options(checkpoint=True)),
    ("bk", Options()),
    ("bk", Options(chunk_tokens=5, checkpoint=True)),
    ("per_layer", Options()),
    ("micro", Options(chunk_tokens=5)),
]


PLAIN = Options()


def case(method="bk", options=PLAIN, workload=TINY, trainable="", dtype=torch.float32):
    return Case(workload, method, options, Privacy(1.0, 1.0, workload.batch), dtype, trainable, 0)


@pytest.fixture(scope="module")
def bk():
    return measure(case(), CPU, warmup=1, iterations=3)


def test_parts_add_up_wherever_memory_is_told(bk):
    assert tuple(bk["breakdown"]) == DPSGD_PARTS
    assert sum(bk["breakdown"].values()) == bk["peak"]["bytes"] > 0
    for snapshot in bk["snapshots"]:
        assert sum(snapshot["by_part"].values()) == snapshot["live_bytes"], snapshot["name"]
    line = bk["timeline"]
    columns = torch.tensor(list(line["by_part"].values()))
    assert columns.sum(0).tolist() == line["live_bytes"]
    assert max(line["live_bytes"]) == line["live_bytes"][line["peak_at"]] <= bk["peak"]["bytes"]
    assert len(line["live_bytes"]) <= POINTS


def test_snapshots_are_what_they_say(bk):
    found = {snapshot["name"]: snapshot["by_part"] for snapshot in bk["snapshots"]}
    assert list(found)[:4] == [
        "0_model_loaded", "1_wrapped_with_dp", "2_optimizer_created", "3_after_warmup",
    ]  # fmt: skip
    weights = 4 * bk["workload"]["parameters"]
    assert found["0_model_loaded"]["parameters"] == weights
    assert found["2_optimizer_created"]["optimizer states"] == 0  # AdamW's come with its first step
    steps = len([1 for name in found if name.endswith("_after_step")])
    assert steps >= 3
    after = found["iter2_after_backward"]
    assert after["gradients"] == weights
    # two moments a weight, and a step count of 4 bytes a tensor
    assert 0 <= after["optimizer states"] - 2 * weights < 4 * 100
    assert found["iter2_after_step"]["gradients"] == 0
    assert found["iter2_after_forward"]["saved activations"] > 0
    assert found["iter1_before_forward"] == found["iter2_before_forward"]  # nothing is left behind


@pytest.mark.parametrize(("method", "options"), PREDICTED)
def test_fake_tensors_count_as_real_ones(method, options):
    real = measure(case(method, options), CPU, warmup=1, iterations=3)
    fake = predict(case(method, options))
    # Real gradients that were made on the way are let go by a collector of cycles at times of its
    # own; norms and losses of a few samples may so live an operation longer.
    assert abs(real["peak"]["bytes"] - fake["peak"]["bytes"]) <= 64
    assert real["peak"]["operation"] == fake["peak"]["operation"]
    assert fake["predicted"]
    assert fake["timing"] is None


def test_the_breakdown_knows_what_methods_differ_in():
    long = Workload("long", "llama", 16, 2, 2, 24, 400, 64, 4)
    peaks = {
        name: predict(case(*name, workload=long))["breakdown"]
        for name in (
            ("vanilla", Options()),
            ("vanilla", Options(chunk_tokens=8)),
            ("vanilla", Options(checkpoint=True)),
            ("bk", Options()),
        )
    }
    plain, chunked, checkpointed, bk = peaks.values()
    logits = 4 * 4 * 64 * 400  # bytes of B × T × V numbers
    assert 2.9 * logits < plain["logits and loss"] < 3.1 * logits  # logits, log p and a gradient
    assert chunked["logits and loss"] < 0.1 * logits
    assert checkpointed["saved activations"] < 0.5 * plain["saved activations"]
    assert plain["temporary matrices"] == plain["norm samples"] == 0 < bk["temporary matrices"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_profiled(family):
    tied = Workload("tied", family, 16, 2, 2, 24, 40, 12, 2, tied=True)
    record = predict(case(workload=tied))
    assert record["workload"]["family"] == family
    assert record["peak"]["bytes"] > 4 * record["workload"]["parameters"]


def test_few_trained_parameters_take_few_bytes():
    some = predict(case(trainable=r"self_attn\.q_proj"))
    end = {s["name"]: s["by_part"] for s in some["snapshots"]}["iter2_after_backward"]
    assert end["gradients"] == 4 * 2 * 16 * 16  # bytes, layers, d × d
    with pytest.raises(RequestError, match="names no parameter"):
        predict(case(trainable="adapter"))
    with pytest.raises(RequestError, match="no regular expression"):
        predict(case(trainable="("))


def test_bf16_halves_the_weights():
    record = measure(case(dtype=torch.bfloat16), CPU, warmup=1, iterations=3)
    assert record["breakdown"]["parameters"] == 2 * record["workload"]["parameters"]
    assert record["options"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ghosts", "method 'ghosts' is not known"),
        ("bk+fast", "option 'fast' is not known"),
        ("bk+chunk+chunk", "comes twice"),
    ],
)
def test_a_variant_that_is_none_is_refused(name, says):
    with pytest.raises(RequestError, match=says):
        variant_of(name, 8)


def test_variants_are_read():
    assert variant_of("micro+checkpoint+chunk+bf16", 7).options == Options(7, checkpoint=True)
    assert {variant_of(name, 7).method for name in DPSGD_METHODS} == set(DPSGD_METHODS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"heads": 3}, "3 heads don't divide a width of 16"),
        ({"family": "bert"}, "family 'bert' is not known"),
        ({"length": 1}, "a token to predict takes 2"),
    ],
)
def test_a_workload_that_can_not_be_is_refused(change, says):
    from dataclasses import asdict

    with pytest.raises(RequestError, match=says):
        Workload(**asdict(TINY) | change)


def test_the_command_writes_what_the_figures_read(tmp_path):
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 24, "vocabulary": 40, "length": 12}
    paths = []
    for method in ("vanilla", "bk+chunk", "opacus_ghost"):
        paths.append(tmp_path / f"{method}.json")
        dpsgd_profile(
            paths[-1], method, "tiny", "opt", batch=2, tied=True, chunk_tokens=4, iterations=3,
            record_refusal=True, device="cpu", threads=1, **sizes,
        )  # fmt: skip
    found = of_workload(map(read_record, paths), "tiny")
    assert [record["variant"] for record in found] == ["vanilla", "opacus_ghost", "bk+chunk"]
    refused = found[1]["refused"]
    assert refused.startswith("Opacus can't do this model"), refused
    assert found[2]["timing"]["n"] == 3
    assert found[2]["timing"]["low_s"] <= found[2]["timing"]["median_s"]


def test_a_refusal_that_is_not_asked_for_ends_the_command(tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.json"
    with pytest.raises(RequestError, match="method ghost has not a chunked loss"):
        dpsgd_profile(out, "ghost+chunk", batch=2, length=12, device="cpu", threads=1)
    assert not out.exists()
