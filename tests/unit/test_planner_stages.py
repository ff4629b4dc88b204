"""The table of stages beside the rules, the planner and real models, and what is made of it.

Oracles: the rules' own text; full estimates; torch's own sizes; and a training step that is
counted tensor by tensor.
"""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from paramscope.config.load import load, merge, validate
from paramscope.config.memory import Device as PlannedDevice
from paramscope.config.model import Config
from paramscope.errors import RequestError
from paramscope.models.load import Architecture, opt_config, random_model
from paramscope.models.losses import mean_loss
from paramscope.names import GpuDevice, MemoryDevice, Strategy
from paramscope.planner.estimate import estimate
from paramscope.planner.known_devices import KNOWN, Device, known_device
from paramscope.planner.needs import CUDA_HOST_BYTES, Need, Planner, source_of
from paramscope.planner.options import Options
from paramscope.planner.runs import whole_text
from paramscope.planner.sizes import sizes
from paramscope.planner.stage_advice import Room, StageAdviser, lower_values
from paramscope.planner.stages.phases import Held, Phase, Stage
from paramscope.planner.stages.table import STAGES, stages_of
from paramscope.planner.strategies import NAMES
from paramscope.tracker import MemoryTracker

ROOT = Path(__file__).parents[2]
MICRO = load([ROOT / "workflow/configs/micro.yaml"])
CPU = Device("test", "cpu", 10**12, "", "")
H100 = known_device("h100-80gb")
GB = 10**9


def rules():
    """The text of each rule, by its name."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    parts = re.split(r"(?m)^rule (\w+):\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def with_values(config, values):
    return validate(merge(config.model_dump(mode="json"), values))


class Made:
    """Estimates that are quick: a thousand bytes a sequence, halved in 16 bit; told of each."""

    def __init__(self, terms=0):
        self.asked = []
        self.terms = terms

    def __call__(self, source, strategy, options, kind, device):
        self.asked.append((strategy, options))
        size = {"float32": 1000, "bfloat16": 500}[options.dtype] * options.batch
        rows = [{"bytes": self.terms}, {"bytes": None}]
        return type("Estimate", (), {"peak_bytes": size * 10**6, "terms": rows})


def test_every_rule_that_takes_a_model_is_planned_under_its_own_name():
    named = {rule: re.findall(r'mem_mb=stage_memory\("(\w+)"', text)
             for rule, text in rules().items()}  # fmt: skip
    assert {rule: names[0] for rule, names in named.items() if names} == {r: r for r in STAGES}
    computing = {rule for rule, text in rules().items() if "gpu=stage_gpus" in text}
    assert computing == {r for r, stage in stages_of(Config()).items() if stage.computes}


def test_names_are_the_planners():
    assert get_args(Strategy) == NAMES
    kinds = {device.name: device.kind for device in KNOWN}
    assert set(get_args(PlannedDevice)) == kinds.keys()
    assert {n for n, kind in kinds.items() if kind == "cuda"} == set(get_args(GpuDevice))
    assert {n for n, kind in kinds.items() if kind != "cuda"} == set(get_args(MemoryDevice))


def test_a_planted_model_has_only_the_profiles_of_other_models():
    planted = with_values(MICRO, {"model": "planted"})
    assert stages_of(planted).keys() == {"dpsgd_profile"}


def test_keys_that_lower_memory_are_keys():
    for rule, stage in stages_of(MICRO).items():
        for key in stage.lowered_by:
            lower_values(MICRO, key)  # an AttributeError says which is none
        assert stage.computes is False or stage.lowered_by or rule == "dpsgd_profile"


def test_sizes_are_a_real_models():
    config = opt_config(Architecture(12, 3, 2, 20, 16), 40)
    model = random_model(config, torch.bfloat16, torch.device("cpu"))
    parameters = [p.numel() for p in model.parameters()]
    of = sizes(config, torch.bfloat16)
    assert of.weights == sum(p.nbytes for p in model.parameters()) == 2 * of.parameters
    assert of.vectors == of.singles == 4 * sum(parameters)
    assert of.entries == max(parameters) == of.largest // 2
    layers = [m.weight.shape for n, m in model.named_modules()
              if isinstance(m, torch.nn.Linear) and "layers" in n]  # fmt: skip
    assert of.inside == sum(p * d for p, d in layers)
    assert of.factors == 8 * sum(p * p + d * d for p, d in layers)
    assert of.units == of.outputs // 2 == sum(p for p, _ in layers)
    assert of.blocks == 4 * 21**2
    assert (of.hidden, of.logits, of.cache) == (24, 160, 2 * 3 * 24)
    assert of.of(Held("", "weights", 2.5)) == round(2.5 * of.weights)


@pytest.mark.parametrize(("dropout", "attention"), [(0.1, 0.0), (0.1, 0.2), (0.0, 0.0)])
def test_what_dropout_keeps_is_counted(dropout, attention):
    """A training step with dropout on, counted, takes at most what the plan adds to one without."""
    sizes_of = Architecture(32, 2, 4, 64, 64)
    config = opt_config(sizes_of, 64, dropout=dropout, attention_dropout=attention)
    text = whole_text(Options(batch=4, length=48), 64)

    def peak(training):
        torch.manual_seed(0)
        model = random_model(config, torch.float32, torch.device("cpu")).train(training)
        tracker = MemoryTracker(timeline=True)
        with tracker:
            mean_loss(model, text).backward()
        return int(tracker.timeline().live_bytes.max())

    of, tokens = sizes(config, torch.float32), 4 * 48
    planned = tokens * (of.dropout + 48 * of.attention)
    seen = peak(training=True) - peak(training=False)
    assert seen <= planned <= 2 * seen
    assert (planned > 0) == (dropout > 0)


@pytest.mark.parametrize("strategy", ["ggn", "hutchinson"])
def test_further_draws_are_bounded_by_what_each_adds(strategy):
    """The bound stands in for an estimate of all draws: it is held to one."""
    config = with_values(
        MICRO, {"curvature": {"method": strategy, "draws": 6, "draws_per_shard": 6}}
    )
    options = Options(batch=16, length=32, draws=6)
    full = estimate(source_of(config), strategy, options).peak_bytes
    stage = stages_of(config, ["curvature_draws"])["curvature_draws"]
    phase = next(phase for phase in stage.phases if phase.strategy == strategy)
    planner = Planner(config, CPU, 0)
    bound = planner.need(Stage((phase,))).memory_bytes
    exact = planner.need(Stage((Phase(strategy, vars(options)),))).memory_bytes
    assert full <= exact <= bound
    assert bound - exact < 0.3 * full


STAGE = Stage(
    (
        Phase("inference", {"dtype": "float32", "batch": 2}, (Held("", "bytes", 10),)),
        Phase(None, held=(Held("", "bytes", 7, "memory"), Held("", "bytes", 5, "file"))),
        Phase("training", {"dtype": "float32", "batch": 1}, (Held("", "bytes", 3, "copy"),)),
    ),
    documents=1000,
    windows=100,
)
TEXT = 64 * 1000 + 192 * 100


def test_memory_is_where_it_is_held():
    made = Made(terms=4)
    on_gpu = Planner(MICRO, H100, 100, made).need(STAGE)
    assert on_gpu.device_bytes == 2 * GB + 4 + 10
    assert on_gpu.memory_bytes == 100 + CUDA_HOST_BYTES + TEXT + 7
    assert on_gpu.resident_bytes == on_gpu.memory_bytes + 5
    assert (on_gpu.doing, on_gpu.mem_mb) == ("inference", 2001)
    here = Planner(MICRO, CPU, 100, made).need(STAGE)
    assert here.device_bytes is None
    live = 2 * GB + 10
    assert here.memory_bytes - 100 - TEXT - live == 2**26 + round(0.25 * live)
    merged = Planner(MICRO, H100, 100, made).need(Stage(STAGE.phases[1:2], computes=False))
    assert merged.device_bytes is None
    assert merged.memory_bytes < 2**27


def test_a_stage_takes_no_more_than_the_limit_it_keeps_to():
    stage = Stage(STAGE.phases, memory_gb=1.0)
    assert Planner(MICRO, H100, 0, Made()).need(stage).device_bytes == GB
    assert Planner(MICRO, CPU, 0, Made()).need(stage).memory_bytes == 1.2 * GB
    roomy = Stage(STAGE.phases, memory_gb=9.0)
    assert Planner(MICRO, H100, 0, Made()).need(roomy).device_bytes == 2 * GB + 10


def test_a_profile_that_cant_be_is_no_failure():
    phase = Phase("inference", {"draws": 3})  # refused by the planner
    unable = Stage((phase,), binding=False)
    assert Planner(MICRO, CPU, 9).need(unable).memory_bytes == 9
    with pytest.raises(RequestError, match="draws"):
        Planner(MICRO, CPU, 9).need(Stage((phase,)))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("curvature.batch", [8, 4, 2, 1]),
        ("curvature.graph", ["checkpointed", "layerwise"]),
        ("curvature.draws", [2]),
        ("dtype", ["bfloat16"]),
        ("compression.finetune.accumulation", [2, 4, 8, 16]),
        ("compression.finetune.checkpoint_activations", [True]),
        ("compression.samples", [16, 8, 4, 2, 1]),
        ("eigenspace.basis", ["cpu"]),
    ],
)
def test_values_that_take_less_are_named_from_the_mildest(key, values):
    assert lower_values(MICRO, key) == values


def adviser(room_bytes, config=MICRO):
    made = Made()
    return StageAdviser(config, Room(room_bytes), lambda c: Planner(c, H100, 0, made)), made


@pytest.mark.parametrize(
    ("room", "values"),
    [
        (5 * GB, {"dpsgd.finetuning.physical_batch": 4}),
        (4.1 * GB, {"dpsgd.finetuning.physical_batch": 4}),
        (1.1 * GB, {"dpsgd.finetuning.physical_batch": 1}),
        (0.6 * GB, {"dpsgd.finetuning.physical_batch": 1, "dtype": "bfloat16"}),
    ],
)
def test_the_mildest_change_that_fits_is_advised(room, values):
    own, made = adviser(room)
    change = own.change("dp_finetune")
    assert change.values == values
    assert change.need.device_bytes <= room
    batch = values["dpsgd.finetuning.physical_batch"]
    assert made.asked[-1][1].batch <= 8
    if len(values) == 1 and batch < 8:  # the next milder one would not do
        milder = with_values(MICRO, {"dpsgd": {"finetuning": {"physical_batch": 2 * batch}}})
        need = Planner(milder, H100, 0, Made()).need(STAGES["dp_finetune"](milder))
        assert not Room(room).holds(need)


def test_where_nothing_helps_nothing_is_advised():
    assert adviser(0.1 * GB)[0].change("dp_finetune") is None


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        (Need("", None, 10, 99), True),
        (Need("", None, 11, 11), False),
        (Need("", 20, 10, 99), True),
        (Need("", 21, 10, 10), False),
        (Need("", 20, 11, 11), False),
    ],
)
def test_room_is_of_the_gpu_and_of_main_memory(need, fits):
    assert Room(20, 10).holds(need) is fits


def test_main_memory_of_another_machine_is_not_known():
    assert Room(20).holds(Need("", 20, 10**15, 10**15))
    assert not Room(20).holds(Need("", None, 21, 21))


def test_the_command_tells_what_fits_and_what_would(tmp_path, capsys, monkeypatch):
    from paramscope.cli.stage_memory import stage_memory

    made = Made()
    monkeypatch.setattr("paramscope.planner.cache.Store.estimate", lambda self, *a: made(*a))
    monkeypatch.setattr("paramscope.planner.needs.measured_process_bytes", lambda modules: 1)
    monkeypatch.setenv("PARAMSCOPE_CACHE", str(tmp_path))
    run = tmp_path / "run.yaml"
    run.write_text("memory: {device: laptop-8gb}\ndevice: cpu\nprm: {batch: 4}\n", encoding="utf-8")
    stage_memory(run, ["membership", "privacy_scores", "dpsgd_profile"])
    told = json.loads(capsys.readouterr().out)
    assert told["room"]["device_bytes"] == 3.6 * GB
    stages = told["stages"]
    assert not stages["membership"]["fits"]
    assert stages["membership"]["change"] == {"prm.batch": 2}
    assert re.fullmatch(
        r"membership \(inference\) takes 5\.\d GB, and laptop-8gb has 3\.6 GB to use; "
        r"prm\.batch: 2 would fit, at 2\.\d GB",
        stages["membership"]["advice"],
    )
    assert stages["privacy_scores"]["advice"].endswith("; no value of dtype makes it fit")
    assert stages["dpsgd_profile"]["fits"]  # whatever it takes: it says so itself
    assert stages["dpsgd_profile"]["advice"] is None
    with pytest.raises(RequestError, match=r"rule 'figure' takes no model; planned are base,"):
        stage_memory(run, ["figure"])
