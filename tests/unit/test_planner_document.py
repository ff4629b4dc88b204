"""A plan's document tells what the planner finds, and the right figures beside older ones."""

import re
from functools import cache

import pytest
from transformers import OPTConfig

from paramscope.artifacts.plans import PART_COLUMNS, plan_rows
from paramscope.errors import ArtifactError
from paramscope.planner.advice import Adviser
from paramscope.planner.document import document
from paramscope.planner.estimate import estimate
from paramscope.planner.known_devices import MARGINS, Device, usable_bytes
from paramscope.planner.models import parameters
from paramscope.planner.options import Options
from paramscope.units import amount
from tests.unit.plan_records import MODELS, plan
from tests.unit.test_planner_models import closed_form

ASKED = Options(batch=2, length=32)
STRATEGIES = ("inference", "training", "prune-magnitude", "block_hessian")
DEVICES = (  # of which some hold nothing, some what is changed, some all
    Device("desk", "cpu", 1_500_000, "", "", held_bytes=500_000),
    Device("window", "wsl", 340_000, "", ""),
    Device("card", "cuda", 18_500_000, "", "", capability=8),
    Device("large", "cuda", 10**9, "", "", capability=9),
)
PROCESS = 1_000  # bytes of Python in this test


def config(hidden):
    return OPTConfig(
        vocab_size=64, hidden_size=hidden, word_embed_proj_dim=hidden, num_hidden_layers=1,
        num_attention_heads=2, ffn_dim=64, max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip


SOURCES = {"narrow": config(32), "wide": config(96)}


@cache
def adviser(name, device):
    return Adviser(SOURCES[name], device, PROCESS)


def planned(name, device):
    """A plan's rows of one model and device, from the planner's own verdicts."""
    own = adviser(name, device)
    for strategy in STRATEGIES:
        verdict = own.verdict(strategy, ASKED)
        found = verdict.estimate
        change = None if verdict.fits else own.mend(strategy, ASKED)
        free = device.memory_bytes - device.held_bytes
        state, mend, size = "no", None, None
        if verdict.fits:
            state = "fits"
        elif change:
            state, mend, size = "mended", " ".join(change.words), change.verdict.total_bytes
        elif verdict.total_bytes <= free:
            state, mend, size = "tight", "", verdict.total_bytes
        yield {
            "model": name,
            "parameters": found.parameters,
            "strategy": strategy,
            "dtype": ASKED.dtype,
            "batch": ASKED.batch,
            "length": ASKED.length,
            "device": device.name,
            "device_kind": device.kind,
            "memory_bytes": device.memory_bytes,
            "held_bytes": device.held_bytes,
            "usable_bytes": usable_bytes(device),
            "peak_bytes": found.peak_bytes,
            "extra_bytes": verdict.extra_bytes,
            "total_bytes": verdict.total_bytes,
            **{PART_COLUMNS[part]: size for part, size in found.breakdown.items()},
            "operation": found.operation,
            "phase": found.phase,
            "how": found.how,
            "state": state,
            "mend": mend,
            "mended_bytes": size,
        }


@cache
def rows():
    return plan_rows(row for name in SOURCES for device in DEVICES for row in planned(name, device))


@cache
def told():
    return document(rows())


def tables(text):
    """Of each heading or introducing line the table below it: heads, and rows of cells."""
    found, last = {}, ""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = [line.strip("| ").split(" | ") for line in block.splitlines()]
            assert len({len(line) for line in lines}) == 1, block
            found[last] = (lines[0], lines[2:])
        last = block.splitlines()[-1].strip("# :")
    return found


def test_a_plan_of_the_planner_is_whole_and_of_all_states():
    assert set(rows()["state"]) == {"fits", "mended", "tight", "no"}
    assert {"full", "extrapolated", "closed form"} >= set(rows()["how"]) >= {"closed form"}


def test_totals_are_the_planners():
    for heading, kind, device in (
        ("On a CPU", "cpu", DEVICES[0]),
        ("On a GPU", "cuda", DEVICES[3]),  # its cuBLAS takes more than the other's
    ):
        heads, lines = tables(told())[heading]
        assert heads == ["strategy", *SOURCES]
        assert [line[0] for line in lines] == list(STRATEGIES[:-1])
        for strategy, *cells in lines:
            for cell, source in zip(cells, SOURCES.values(), strict=True):
                found = estimate(source, strategy, ASKED, kind, device=device)
                extra = sum(row["bytes"] or 0 for row in found.terms)
                extra += 0 if kind == "cuda" else PROCESS
                assert cell == amount(found.peak_bytes + extra)
    _, lines = tables(told())["Matrices that nothing holds, 4 bytes an entry"]
    sizes = [estimate(source, "block_hessian", ASKED).peak_bytes for source in SOURCES.values()]
    assert lines == [["block_hessian", *map(amount, sizes)]]


def test_what_to_take_is_what_the_adviser_tells():
    seen = set()
    for device in DEVICES:
        heads, lines = tables(told())[f"{device.name}: {amount(usable_bytes(device))}"]
        assert heads == ["model", "evaluation", "pruning", "training"]
        for name, *cells in lines:
            own = adviser(name, device)
            strategies = ("inference", "prune-magnitude", "training")
            for cell, strategy in zip(cells, strategies, strict=True):
                verdict = own.verdict(strategy, ASKED)
                change = None if verdict.fits else own.mend(strategy, ASKED)
                best = change.verdict if change else verdict
                share = f"({best.total_bytes / verdict.usable_bytes:.0%})"
                if verdict.fits:
                    expected = f"{strategy} {share}"
                elif change:
                    expected = f"{strategy} with `{' '.join(change.words)}` {share}"
                else:
                    tight = verdict.total_bytes <= device.memory_bytes - device.held_bytes
                    expected = f"{strategy} {share}" if tight else "no"
                assert cell == expected
                seen.add("with" if change else expected.partition(" ")[0])
    assert seen == {"no", "with", *strategies}


def test_devices_and_margins_are_those_of_the_planner():
    heads, lines = tables(told())["Devices"]
    assert heads[2:] == ["memory", "held by the system", "margin", "usable"]
    for line, device in zip(lines, DEVICES, strict=True):
        margin = round((device.memory_bytes - device.held_bytes) * MARGINS[device.kind].fraction)
        assert line[:2] == [device.name, device.kind]
        assert line[4:] == [amount(margin), amount(usable_bytes(device))]
    assert [line[3] for line in lines] == ["500.0 kB", "0", "0", "0"]
    for margin in MARGINS.values():
        assert f"{margin.fraction:.0%} of what is free; {margin.reason}" in told()
    only = document(rows()[rows()["device_kind"] == "cuda"])
    assert MARGINS["cuda"].reason in only
    assert MARGINS["wsl"].reason not in only
    assert "On a CPU" not in tables(only)


def test_what_was_asked_is_told():
    assert "float32, batches of 2 × 32 tokens" in told()
    _, lines = next(iter(tables(told()).values()))
    N = {name: parameters(source) for name, source in SOURCES.items()}
    assert lines == [[name, f"{N[name]:,}", amount(4 * N[name])] for name in SOURCES]


# Those of METHODS, section 8; how many times too small it says they are: some 1,000.
OLDER = {"opt-125m": 62e12, "opt-350m": 490e12, "opt-1.3b": 6.8e15, "opt-2.7b": 29e15}


def test_older_figures_stand_beside_right_ones_that_are_counted():
    """The right ones from OPT's sizes by a closed form of its own."""
    _, lines = tables(told())["Figures of older documents beside the right ones"]
    by_name = {line[0]: line[1:] for line in lines}
    for model, older in OLDER.items():
        N = closed_form(model)
        as_told, right, ratio = by_name[f"full Hessian of {model}"]
        assert as_told == amount(older).replace(".0", "")
        power, unit = (1e18, "EB") if 4 * N * N >= 1e18 else (1e15, "PB")
        assert right == f"{4 * N * N / power:,.1f} {unit}"
        times = float(re.match(r"([0-9,]+) times", ratio)[1].replace(",", ""))
        assert times == pytest.approx(4 * N * N / older, rel=1e-3)
        assert 850 < times < 1050
        assert f"N = {N:,}" in ratio
    as_told, right, fewer = by_name["parameters of opt-350m"]
    assert (as_told, right) == ("350,000,000", f"{closed_form('opt-350m'):,}")
    assert fewer.startswith("5.4% fewer")
    as_told, right, share = by_name["weights of opt-6.7b in FP16"]
    assert (as_told, right) == ("26.8 GB", amount(2 * closed_form("opt-6.7b")))
    assert right == "13.3 GB"
    assert share.startswith("0.50 of it")


def test_four_times_the_parameters_stands_beside_training():
    heading = next(name for name in tables(told()) if "Live tensors at the peak, beside" in name)
    _, lines = tables(told())[heading]
    for name, rule, *trained in lines:
        N = parameters(SOURCES[name])
        assert rule == amount(16 * N)
        for cell, kind in zip(trained, ("cuda", "cpu"), strict=True):
            peak = estimate(SOURCES[name], "training", ASKED, kind).peak_bytes
            assert cell == f"{amount(peak)} ({peak / (16 * N):.2f}×)"
            assert peak > 16 * N  # what the rule leaves out
    without = document(rows()[rows()["strategy"] != "training"])
    assert "parameters × 4" not in without


def test_a_plan_of_all_presets_is_told():
    text = document(plan())
    for name, N in MODELS.items():
        assert f"| {name} | {N:,} |" in text
    assert "dpsgd-per_layer with `--chunk-tokens 512 --dtype bfloat16 --checkpointing`" in text
    assert tables(text)["laptop-8gb: 3.6 GB"][1][-1] == ["opt-30b", *["no"] * 6]


def test_formulas_alone_have_nothing_to_take_and_odd_rows_are_refused():
    text = document(plan(("opt-125m",), ("full_hessian",)))
    assert "What to take" not in text
    assert "| full_hessian | 62.7 PB |" in text
    with pytest.raises(ArtifactError, match="a state is one of"):
        document(rows().assign(state="maybe"))
