"""A profile that needs more memory than its baseline fails, and the part that grew is named."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.dpsgd.regression import (
    TOTAL,
    MemoryGrewError,
    check,
    compare,
    text,
    tolerance_of,
)
from paramscope.errors import RequestError
from paramscope.names import DPSGD_PARTS
from tests.unit.dpsgd_records import SMALL_WORKLOAD, predicted, profile, refused


def grown(by, variant="bk", **changes):
    """A profile whose parts hold so many bytes more."""
    record = profile(variant, **changes)
    for part, n_bytes in by.items():
        record["breakdown"][part] += n_bytes
    record["peak"] = record["peak"] | {"bytes": sum(record["breakdown"].values())}
    return record


def names_grown(baseline, new, tolerance=0.02):
    return [change.part for change in compare(baseline, new, tolerance) if change.grew]


def test_changes_are_the_records_differences():
    by = {"saved activations": 5_000_000, "gradients": -1_000_000}
    changes = {change.part: change for change in compare(profile("bk"), grown(by), 0.02)}
    assert list(changes) == [*DPSGD_PARTS, TOTAL]
    for part in DPSGD_PARTS:
        change = changes[part]
        assert change.before == profile("bk")["breakdown"][part]
        assert change.now - change.before == by.get(part, 0)
    total = changes[TOTAL]
    assert total.now - total.before == 4_000_000
    assert total.percent == pytest.approx(4e8 / profile("bk")["peak"]["bytes"])
    assert [change.part for change in changes.values() if change.grew] == [
        *("saved activations", TOTAL)
    ]


def test_a_part_may_grow_by_the_tolerance_and_no_further():
    baseline = profile("bk")
    before = baseline["breakdown"]["saved activations"]
    allowed = int(0.02 * before)
    assert names_grown(baseline, grown({"saved activations": allowed})) == []
    assert names_grown(baseline, grown({"saved activations": allowed + 1})) == ["saved activations"]
    peak = baseline["peak"]["bytes"]
    assert names_grown(baseline, grown({"parameters": int(0.02 * peak) + 1}))[-1] == TOTAL
    assert names_grown(baseline, grown({"parameters": -peak // 20})) == []


def test_a_tiny_part_fails_nothing_and_a_new_one_does():
    baseline = profile("bk")
    thousandth = baseline["peak"]["bytes"] / 1000
    few = int(thousandth)
    assert few > 2 * baseline["breakdown"]["norm samples"]
    assert names_grown(baseline, grown({"norm samples": few})) == []
    assert names_grown(baseline, grown({"norm samples": few + 1})) == ["norm samples"]
    vanilla = profile("vanilla")
    assert vanilla["breakdown"]["norm samples"] == 0
    new = grown({"norm samples": 2_000_000}, "vanilla")
    assert names_grown(vanilla, new) == ["norm samples"]
    with pytest.raises(MemoryGrewError, match="norm samples new"):
        check(compare(vanilla, new, 0.02), new, 0.02)


def test_growth_in_many_small_steps_shows_in_the_total():
    baseline = profile("bk")
    by = {part: int(0.019 * n_bytes) for part, n_bytes in baseline["breakdown"].items()}
    assert names_grown(baseline, grown(by)) == []
    by = {part: int(0.021 * n_bytes) for part, n_bytes in baseline["breakdown"].items()}
    assert TOTAL in names_grown(baseline, grown(by))


@given(st.dictionaries(st.sampled_from(DPSGD_PARTS), st.integers(0, 10**9)), st.floats(0, 0.5))
def test_more_tolerance_finds_no_more(by, tolerance):
    new = grown(by)
    strict, lenient = (set(names_grown(profile("bk"), new, t)) for t in (tolerance, 0.5))
    assert lenient <= strict
    assert names_grown(new, profile("bk"), tolerance) == []  # it shrank


def test_tolerances_are_percent_or_a_fraction():
    assert tolerance_of("2%") == tolerance_of(" 2 % ") == tolerance_of("0.02") == 0.02
    assert tolerance_of("150%") == 1.5
    assert tolerance_of("0") == 0
    for wrong in ("", "two", "-1%", "nan", "inf", "%"):
        with pytest.raises(RequestError, match=r"give one like 2% or 0\.02"):
            tolerance_of(wrong)
    with pytest.raises(RequestError, match="give 2% then"):
        tolerance_of("2")


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (profile("bk", SMALL_WORKLOAD | {"length": 1024}), r"workload\.length 512.* 1024"),
        (profile("bk", SMALL_WORKLOAD | {"name": "other"}), r"workload\.name decoder-small"),
        (profile("micro"), "variant bk, the new profile micro"),
        (
            profile("bk", options=profile("bk")["options"] | {"dtype": "bfloat16"}),
            r"options\.dtype float32, the new profile bfloat16",
        ),
        (
            profile("bk", options=profile("bk")["options"] | {"fused": True}),
            r"options\.fused None, the new profile True",
        ),
        (predicted("bk"), "predicted False, the new profile True"),
        (profile("bk", device_type="cuda"), "device_type cpu, the new profile cuda"),
        (refused("bk", reason="no tied heads"), "new profile was refused.*no tied heads"),
        ({"variant": "bk"}, "new profile is no profile of DP-SGD: lacks method, device_type"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_its_field(new, field):
    with pytest.raises(RequestError, match=field):
        compare(profile("bk"), new, 0.02)


def test_another_device_of_its_type_can_be_compared():
    assert compare(profile("bk"), profile("bk", device="cpu, 8 threads"), 0.0)


def test_the_table_has_a_line_a_part():
    new = grown({"saved activations": 5_000_000})
    lines = text(compare(profile("bk"), new, 0.02)).splitlines()
    assert len(lines) == len(DPSGD_PARTS) + 2
    assert lines[0].split() == ["part", "before", "(MB)", "now", "(MB)", "change"]
    row = next(line for line in lines if line.startswith("saved activations"))
    before = profile("bk")["breakdown"]["saved activations"] / 1e6
    percent = 100 * 5 / before
    expected = [f"{before:.3f}", f"{before + 5:.3f}", f"+{percent:.1f}%", "grew"]
    assert row.split()[2:] == expected
    assert sum(line.endswith("grew") for line in lines) == 2


def run(folder, baseline, new, *options):
    made_by = provenance("dpsgd.regression", {})
    write_record(folder / "baseline.json", baseline, made_by)
    write_record(folder / "new.json", new, made_by)
    command = [sys.executable, "-m", "paramscope", "memory-regression", "baseline.json", "new.json"]
    return subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_command_exits_0_1_or_2(tmp_path):
    same = run(tmp_path, profile("bk"), profile("bk"))
    assert (same.returncode, same.stderr) == (0, "")
    assert "grew" not in same.stdout

    by = {"saved activations": 5_000_000}
    more = run(tmp_path, profile("bk"), grown(by), "--tolerance", "2%")
    assert more.returncode == 1
    assert "saved activations" in more.stdout
    assert more.stderr.startswith(
        "paramscope: BK needs more memory than 2% above the baseline: saved activations +10.4%"
    )
    assert more.stderr.count("\n") == 1
    assert run(tmp_path, profile("bk"), grown(by), "--tolerance", "0.2").returncode == 0

    other = run(tmp_path, profile("bk"), profile("micro"))
    assert other.returncode == 2
    assert "variant" in other.stderr
    assert other.stdout == ""
    assert run(tmp_path, profile("bk"), grown(by), "--tolerance", "lots").returncode == 2
