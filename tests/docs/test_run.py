"""What README and docs tell to type, typed: page by page, in a folder that has what the pages speak of, but small."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO, ROOT, SMALL
from tests.docs.blocks import PAGES, blocks_of
from tests.generation.conftest import byte_level

__all__ = ["byte_level"]  # a fixture that is shared
RUNNING = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]
RUNS = {
    "standard": "",
    "fixedseq": "--variant fixedseq --pattern 1:3",
    "nonapprox-1to1": "--variant nonapproximate --pattern 1:1",
}
MADE_ANEW = {
    "README.md": ("data/web", "runs"),
    "docs/data.md": ("data/web",),
    "docs/first-hour.md": ("runs",),
    "docs/training.md": ("runs",),
}
"""What a page makes itself, and so must not find."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpora, runs and models that the pages name."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("tools", "launch.sh", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "corpus").mkdir()
    shutil.copy(DEMO, folder / "corpus")
    shutil.copy(byte_level / "tokenizer.json", folder)
    for name in ("web", "books"):
        shell(f"python tools/pack.py corpus/ --tokenizer tokenizer.json --out data/{name}", folder)
    small = " ".join(SMALL).replace("--num-hidden-layers 2", "--num-hidden-layers 4")
    for name, flags in RUNS.items():
        shell(f"./launch.sh {small} {flags} --data data/web --save runs/{name}", folder)
    for name in ("standard-1", "fixedseq-1", "fixedseq-1to3"):
        shutil.copytree(folder / "runs" / name.partition("-")[0], folder / "runs" / name)
    shell("python tools/export_hf.py runs/standard Qwen2-0.5B", folder)
    return folder


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_page_runs(page: Path, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(world, folder, symlinks=True)
    name = page.relative_to(ROOT).as_posix()
    for made in MADE_ANEW.get(name, ()):
        shutil.rmtree(folder / made)
    for block in blocks_of(page):
        if not block.is_run:
            continue
        if block.language == "python":
            done = run([sys.executable, "-c", block.text], folder)
        else:
            done = run(["bash", "-euo", "pipefail", "-c", block.script()], folder)
        assert done.returncode == 0, f"{block}\n{block.script()}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def shell(line: str, folder: Path) -> None:
    done = run(["bash", "-euo", "pipefail", "-c", line], folder)
    assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with this interpreter as `python`, and no network: what pages need is there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
