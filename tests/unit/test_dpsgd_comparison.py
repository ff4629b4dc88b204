"""All profiles of a workload as a table, as text and for a paper."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
from paramscope.dpsgd.comparison import PART_COLUMNS, PROFILES, latex, summary, table
from paramscope.errors import ArtifactError
from tests.unit.dpsgd_records import (
    COSTS,
    LARGE_WORKLOAD,
    REFUSAL,
    SMALL_WORKLOAD,
    predicted,
    profile,
    refused,
    study,
)

NAME = "decoder-small"


def expected_ratio(variant):
    """Of the peaks, straight from the shares that the records were made of."""
    return sum(COSTS[variant][0]) / sum(COSTS["vanilla"][0])


def test_a_row_is_its_record_and_ratios_are_to_vanilla():
    rows = table(study()[::-1], NAME).set_index("variant")
    assert list(rows.index) == list(COSTS)
    for record in study():
        row = rows.loc[record["variant"]]
        if record["refused"]:
            assert row["refused"] == REFUSAL
            assert row[["peak_bytes", "memory_ratio", "time_ratio", "median_s"]].isna().all()
            continue
        assert pd.isna(row["refused"])
        assert row["peak_bytes"] == record["peak"]["bytes"]
        assert row[list(PART_COLUMNS.values())].sum() == row["peak_bytes"]
        assert row["part_saved_activations"] == record["breakdown"]["saved activations"]
        assert row["memory_ratio"] == pytest.approx(expected_ratio(record["variant"]), rel=1e-6)
        assert row["checkpoint"] == ("checkpoint" in record["variant"])
        if record["timing"]:
            walls = [one["wall_s"] for one in record["iterations"]]
            assert row["median_s"] == np.median(walls)
            assert (row["low_s"], row["high_s"]) == (min(walls), max(walls))
            assert row["time_ratio"] == pytest.approx(COSTS[record["variant"]][1])
            assert row["iterations"] == 3
    assert rows.loc["flash", "predicted"]
    assert rows.loc["flash", ["median_s", "time_ratio"]].isna().all()
    assert rows.loc["flash", "memory_ratio"] > 1


def test_the_table_keeps_whole_bytes_and_nulls_in_its_file(tmp_path):
    made_by = provenance("dpsgd.comparison", {})
    for profiles, workload in ((study(LARGE_WORKLOAD), "decoder-16k"), ([refused("bk")], NAME)):
        rows = table(profiles, workload)
        write_table(tmp_path / "profiles.parquet", rows, PROFILES, made_by)
        again = read_table(tmp_path / "profiles.parquet", PROFILES.names)
        shown = [record for record in profiles if not record["refused"]]
        assert again["peak_bytes"].notna().sum() == len(shown)
        assert again["peak_bytes"].sum() == sum(record["peak"]["bytes"] for record in shown)
        assert again["refused"].notna().sum() == len(profiles) - len(shown)


def test_without_vanilla_or_on_other_devices_there_are_no_ratios():
    elsewhere = profile("bk", device="cpu, 8 threads")
    on_gpu = profile("micro", device="NVIDIA H100", device_type="cuda")
    rows = table([profile("vanilla"), elsewhere, on_gpu], NAME).set_index("variant")
    assert rows.loc["bk", "memory_ratio"] == pytest.approx(expected_ratio("bk"), rel=1e-6)
    assert pd.isna(rows.loc["bk", "time_ratio"])
    assert rows.loc["micro", ["memory_ratio", "time_ratio"]].isna().all()
    for vanilla in ([], [refused("vanilla")]):
        rows = table([*vanilla, profile("bk"), profile("micro")], NAME)
        assert rows[["memory_ratio", "time_ratio"]].isna().all(axis=None)
        assert "which has no profile here" in summary([*vanilla, profile("bk")], NAME)
    rows = table([predicted("vanilla"), profile("bk")], NAME).set_index("variant")
    assert rows.loc["bk", "memory_ratio"] > 1
    assert pd.isna(rows.loc["bk", "time_ratio"])


def test_the_text_is_aligned_and_says_what_is_a_ratio():
    told = summary(study(), NAME)
    lines = told.splitlines()
    assert lines[0] == "decoder-small: DP-SGD's cost by variant"
    assert lines[1] == (
        "llama, 4 layers × 256, 5.22 M parameters; batch 2 × 512 tokens; cpu, 2 threads"
    )
    head = lines.index(next(line for line in lines if "peak (MB)" in line))
    costs = lines[head : head + 12]
    for name in ("peak (MB)", "time (ms)", "least", "greatest"):
        end = costs[0].index(name) + len(name)
        assert all(line[end] == " " and line[end - 1] != " " for line in costs)
    millions = SMALL_WORKLOAD["parameters"] / 1e6
    for line in costs[1:]:
        variant, peak, ratio, time, *_, slower, place = re.split(r"\s{2,}", line.strip())
        variant = variant.removesuffix(" (predicted)").lower().replace(" hooks", "_hooks")
        variant = variant.replace(" + ", "+").replace("-", "_")
        shares, slowness = COSTS[variant]
        # Printed with one decimal (0.05 off at most), ratios with two (0.005), and a fifth more.
        assert float(peak) == pytest.approx(sum(shares) * 4 * millions, abs=0.06)
        assert float(ratio) == pytest.approx(expected_ratio(variant), abs=0.006)
        assert place.startswith("aten._log_softmax_backward_data.default, past iter0_after")
        if variant == "flash":
            assert (time, slower) == ("-", "-")
        else:
            assert float(time) == pytest.approx(310 * slowness, abs=0.06)
            assert float(slower) == pytest.approx(slowness, abs=0.006)
    parts = lines[lines.index("Parts of the peak (MB)") + 2 :][:11]
    for line, cost in zip(parts, costs[1:], strict=True):
        values = [0.0 if v == "<0.01" else float(v) for v in re.split(r"\s{2,}", line.strip())[1:]]
        peak = float(re.split(r"\s{2,}", cost.strip())[1])
        assert sum(values) == pytest.approx(peak, abs=0.1)  # 0.05 of its own, 8 parts' 0.005 each
    assert "x vanilla: ratio to vanilla's, which is training without privacy" in lines
    assert "1 MB = 1,000,000 bytes; time: median, least and greatest iteration" in lines
    assert "predicted: computed on tensors without data, nothing was timed" in lines
    assert lines[lines.index("Refused") + 1] == f"  Opacus ghost: {REFUSAL}"
    assert all(line == line.rstrip() for line in lines)


def test_units_follow_the_size():
    told = summary(study(LARGE_WORKLOAD), "decoder-16k")
    assert "peak (GB)" in told
    assert "time (s)" in told
    assert "1 GB = 1,000,000,000 bytes" in told
    assert "Refused" not in summary([profile("vanilla")], NAME)
    told = summary([refused("bk", reason="two\n  lines")], NAME)
    assert told.endswith("\nRefused\n  BK: two lines\n")


def test_the_paper_table_is_whole_escaped_and_bold_where_least():
    records = [
        *(record for record in study() if record["variant"] != "flash"),
        predicted("flash"),
        refused("per_layer", reason=r"100% of a_b & {c} #1 ~ \x^2 $"),
    ]
    records = [r for r in records if r["variant"] != "per_layer" or r["refused"]]
    text = latex(table(records, NAME))
    assert text.startswith("\\begin{tabular}{lrrrrr}\n\\toprule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    body = [line for line in text.splitlines() if "&" in line]
    for line in body:
        assert line.endswith(r"\\")
        columns = len(re.findall(r"(?<!\\)&", line)) + 1
        assert columns == (2 if "multicolumn" in line else 6)
    bold = re.findall(r"^(.*?) & .*?textbf\{(.*?)\}", text, re.MULTILINE)
    assert bold == [("BK + chunk + checkpoint", "110.5"), ("micro", "322.4")]
    assert (
        r"refused: 100\% of a\_b \& \{c\} \#1 \textasciitilde{} \textbackslash{}x"
        r"\textasciicircum{}2 \$}"
    ) in text
    assert "flash (predicted) & 172.1 & 1.02 & -- & -- & -- \\\\" in text
    assert "vanilla & 168.9 & 1.00 & 310.0 & 300.7--328.6 & 1.00 \\\\" in text


def test_what_is_predicted_alone_has_no_times():
    rows = table([predicted("vanilla"), predicted("bk"), refused("opacus_hooks")], NAME)
    assert rows[["median_s", "low_s", "high_s", "time_ratio"]].isna().all(axis=None)
    text = latex(rows)
    assert "vanilla (predicted) & 168.9 & 1.00 & -- & -- & -- \\\\" in text
    assert "refused" in text


def test_names_that_no_one_knows_are_escaped():
    record = profile("bk") | {"variant": "new_one+chunk", "method": "new_one"}
    text = latex(table([profile("vanilla"), record], NAME))
    assert r"new\_one + chunk & \textbf{171.1}" in text
    assert latex(table([refused("bk")], NAME)).count("refused") == 1


def test_profiles_that_do_not_belong_together_are_refused():
    with pytest.raises(ArtifactError, match="no profiles of decoder-small"):
        table([], NAME)
    with pytest.raises(ArtifactError, match="not on decoder-16k"):
        summary(study(), "decoder-16k")


def write(folder, records):
    made_by = provenance("dpsgd.comparison", {})
    options = []
    for record in records:
        write_record(folder / f"{record['variant']}.json", record, made_by)
        options += ["--profile", f"{record['variant']}.json"]
    return options


def test_the_command_writes_three_files_beside_the_profiles(tmp_path):
    options = write(tmp_path, study())
    command = [sys.executable, "-m", "paramscope", "dpsgd-results", "."]
    line = [*command, *options, "--workload", NAME]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = (tmp_path / "summary.txt").read_text(encoding="utf-8")
    assert result.stdout == told == summary(study(), NAME)
    rows = read_table(tmp_path / "profiles.parquet", PROFILES.names)
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == latex(table(study(), NAME))
    assert list(rows["variant"]) == list(table(study(), NAME)["variant"])
    assert len(read_table_provenance(tmp_path / "profiles.parquet")["inputs"]) == len(study())
    made = {"profiles.parquet", "summary.txt", "table.tex"}
    assert {p.name for p in tmp_path.iterdir()} == made | {f"{v}.json" for v in COSTS}

    line[-1] = "other"
    failed = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("paramscope: vanilla was profiled on decoder-small")
    assert (tmp_path / "summary.txt").read_text(encoding="utf-8") == told


def test_reading_profiles_loads_no_torch():
    script = (
        "import sys; import paramscope.dpsgd.comparison, paramscope.dpsgd.regression;"
        "print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
