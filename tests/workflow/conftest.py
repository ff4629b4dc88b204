"""A copy of the checkout in a folder of its own, and Snakemake run there as a user would."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflow.watched import watched

CHECKOUT = Path(__file__).parents[2]
MICRO = "workflow/configs/micro.yaml"
COPIED = ("Snakefile", "config.yaml", "rules", "workflow", "profiles", "envs", "src")


@dataclass(frozen=True)
class Workplace:
    """A checkout's copy to run Snakemake in; its own `src` is what the stages import.

    What is in `first` comes first on the PATH.
    """

    folder: Path
    first: Path | None = None

    @classmethod
    def fresh(cls, folder):
        folder.mkdir(parents=True)
        for name in COPIED:
            source = CHECKOUT / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / name)
        return cls(folder)

    def command(self, *arguments):
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]

    @property
    def environment(self):
        binaries = str(Path(sys.executable).parent)
        folders = [str(self.first)] if self.first else []
        path = os.pathsep.join([*folders, binaries, os.environ["PATH"]])
        return os.environ | {"PYTHONPATH": str(self.folder / "src"), "PATH": path}

    def snakemake(self, *arguments, config=MICRO):
        files = ["--configfile", config] if config else []
        return subprocess.run(
            self.command(*arguments, *files), cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip

    def run(self, *arguments, config=MICRO):
        result = self.snakemake(*arguments, config=config)
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def planned(self, *arguments, config=MICRO):
        """The rules that a dry run would run, with how often."""
        result = self.run("--dry-run", *arguments, config=config)
        lines = (result.stdout + result.stderr).splitlines()
        if "Nothing to be done (all requested files are present and up to date)." in lines:
            return {}
        start = lines.index("Job stats:") + 3
        end = next(i for i in range(start, len(lines)) if lines[i].startswith("total"))
        counts = {name: int(n) for name, n in map(str.split, lines[start:end])}
        counts.pop("all", None)
        return counts


def copied(workplace, tmp_path_factory, name):
    """A workplace's copy with its results, in a folder of its own, to make more in."""
    folder = tmp_path_factory.mktemp(name) / "checkout"
    shutil.copytree(workplace.folder, folder, symlinks=True)
    return Workplace(folder, watched(folder))


@pytest.fixture(scope="session", autouse=True)
def plans(tmp_path_factory):
    """Plans are kept in a folder of this session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARAMSCOPE_CACHE", str(tmp_path_factory.mktemp("plans")))
        yield


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """The whole study on the micro model, made once; tests leave it as they found it."""
    workplace = Workplace.fresh(tmp_path_factory.mktemp("micro") / "checkout")
    Workplace(workplace.folder, watched(workplace.folder)).run()
    return workplace
