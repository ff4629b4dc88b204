"""Stages with their peaks of memory on record, and under a limit: a `paramscope` before the own.

Snakemake's benchmarks sample memory, and miss peaks between two samples; the kernel's figure for
a process that has ended misses none.
"""

import json
import stat
import sys
from collections import defaultdict
from pathlib import Path

from paramscope.config.load import load, merge
from paramscope.planner.run_plan import RunPlan
from paramscope.planner.stages.table import STAGES

SCRIPT = """#!{python} -SE
import os, resource, sys

limit = {limit}
child = os.fork()
if child == 0:
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.execv({own!r}, ["paramscope", *sys.argv[1:]])
_, status, usage = os.wait4(child, 0)
with open({record!r}, "a") as file:  # a line at a time is whole
    file.write(f"{{sys.argv[1]}} {{usage.ru_maxrss * 1024}}\\n")
sys.exit(os.waitstatus_to_exitcode(status))
"""
RECORD = "peaks.txt"


def watched(folder, data_bytes=None):
    """The folder for the PATH whose `paramscope` notes each stage's peak in `folder`.

    `data_bytes` is the limit on its data (RLIMIT_DATA).
    """
    script = folder / "watched" / "paramscope"
    script.parent.mkdir(exist_ok=True)
    own = str(Path(sys.executable).parent / "paramscope")
    record = str(folder / RECORD)
    text = SCRIPT.format(python=sys.executable, limit=data_bytes, own=own, record=record)
    script.write_text(text, encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script.parent


def peaks(folder):
    """The bytes that each rule's jobs had resident at most, by the rule's name."""
    found = defaultdict(list)
    for line in (folder / RECORD).read_text(encoding="utf-8").splitlines():
        command, size = line.split()
        found[command.replace("-", "_")].append(int(size))
    return found


def sampled(folder, model, rule):
    """Snakemake's own figures of a rule's jobs, in bytes."""
    files = [*folder.glob(f"benchmarks/{model}/{rule}.tsv")]
    files += [*folder.glob(f"benchmarks/{model}/{rule}/*.tsv")]
    rows = [file.read_text(encoding="utf-8").splitlines() for file in files]
    column = rows[0][0].split("\t").index("max_rss") if rows else 0
    return [float(line.split("\t")[column]) * 1e6 for lines in rows for line in lines[1:]]


def assert_planned(folder, model, rules, changes=None):
    """Each rule's jobs took no more than the plan says, and no less than a third of it."""
    config = load([folder / "workflow/configs/micro.yaml"]).model_dump(mode="json")
    plan, measured = RunPlan(merge(config, changes or {})), peaks(folder)
    for rule in rules:
        assert rule in STAGES
        planned = plan.of(rule, model)["mem_mb"] * 1e6
        took = max([*measured[rule], *sampled(folder, model, rule)])
        told = json.dumps({"rule": rule, "planned": planned, "took": took})
        assert took <= planned, told
        assert planned <= 3 * took, told
