"""The command that tells what a machine has: its words and its JSON say the same."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from paramscope import machine
from paramscope.cli.device import device
from paramscope.planner.known_devices import KNOWN, margin_bytes, usable_bytes
from paramscope.units import amount
from tests.unit.test_planner_local import AVAILABLE, GIB, TOTAL, Tree, two_gpus

__all__ = ["two_gpus"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpus", lambda: [])
    made = Tree(tmp_path)
    made.v2("/job")
    return made


def run(*arguments):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(device)
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def told(tree):
    return json.loads(run("--json", "--root", tree.root))


def test_json_tells_of_this_machine_and_every_known_device(tree):
    record = told(tree)
    [memory] = record["local"]
    assert (memory["name"], memory["kind"], memory["limit"]) == ("cpu", "cpu", None)
    assert (memory["total_bytes"], memory["available_bytes"]) == (TOTAL, AVAILABLE)
    assert memory["usable_bytes"] + memory["margin_bytes"] == AVAILABLE
    assert [row["name"] for row in record["known"]] == [known.name for known in KNOWN]
    for row, known in zip(record["known"], KNOWN, strict=True):
        assert row["usable_bytes"] == usable_bytes(known)
        assert row["margin_bytes"] == margin_bytes(known)
        assert row["source"] == known.source
    assert {row["kind"] for row in record["known"]} <= set(record["margins"])


def test_words_tell_the_same(tree):
    text, record = run("--root", tree.root), told(tree)
    assert f"{amount(TOTAL)}, {amount(AVAILABLE)} free" in text
    assert "no limit of a container" in text
    for row in record["known"]:
        [line] = [line for line in text.splitlines() if line.strip().startswith(row["name"])]
        assert f"{amount(row['usable_bytes'])} usable" in line
    for margin in record["margins"].values():
        assert margin["reason"] in text


def test_a_limit_is_told_with_where_it_comes_from(tree):
    tree.write("sys/fs/cgroup/job/memory.max", 4 * GIB)
    tree.write("sys/fs/cgroup/job/memory.current", 1 * GIB)
    text = run("--root", tree.root)
    assert "limited to 4.3 GB by /sys/fs/cgroup/job/memory.max" in text  # 4 GiB
    assert "3.2 GB free" in text
    assert told(tree)["local"][0]["limit"]["room_bytes"] == 3 * GIB


def test_wsl_and_what_cant_be_read_are_told(tree):
    tree.write("proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2")
    tree.write("sys/fs/cgroup/job/memory.max", "much")
    text = run("--root", tree.root)
    assert "main memory under WSL" in text
    assert "note: what does not fit goes to WSL's swap" in text
    assert "note: /sys/fs/cgroup/job/memory.max can't be read" in text


def test_gpus_are_told_and_what_is_unknown_is_unknown(tree, two_gpus):
    text = run("--root", tree.root)
    assert "cuda:1     NVIDIA H100: 84.8 GB, 75.2 GB free" in text  # 79 and 70 GiB

    def refuse():
        raise RuntimeError("no memory for a context")

    two_gpus.nvml, two_gpus.info = None, refuse
    assert "84.8 GB, unknown free, unknown usable" in run("--root", tree.root)
    assert told(tree)["local"][1]["usable_bytes"] is None


def test_a_gpu_that_torch_cant_use_is_told(tree, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA A800-SXM4-80GB"])
    assert "NVIDIA A800-SXM4-80GB: torch can't use it" in run("--root", tree.root)
    assert told(tree)["gpus_without_cuda"] == ["NVIDIA A800-SXM4-80GB"]


def test_this_machine_can_be_asked():
    assert json.loads(run("--json"))["local"][0]["total_bytes"] > 0


def test_help_says_what_there_is():
    text = run("--help")
    assert "--json" in text
    assert "--root" not in text
