"""`deconattn NAME`, and the files of tools/ that reach the same bodies."""

import json
import re
import runpy
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from deconattn import extras
from deconattn.cli import run
from deconattn.commands import COMMANDS, main
from deconattn.errors import UserError
from deconattn.program import installation
from tests.conftest import DEMO, ROOT, TOOLS

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


class Blocker(MetaPathFinder):
    """Makes a package look as if it were not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocker(package), *sys.meta_path])


def python(program: str, *words: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_commands_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert all(line.endswith(".") and len(line) < 80 for line in lines if line.startswith("  "))


@pytest.mark.parametrize(("word", "hint"), [("trian", " (did you mean 'train'?)"), ("zzz", ""), ("--steps", "")])
def test_an_unknown_command(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(lambda: main([word, "x"]))
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"error: there is no command {word!r}{hint}; deconattn --help lists them\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/deconattn", name, "--help"])
    with pytest.raises(SystemExit) as leaving:
        run(lambda: main([name, "--help"]))
    assert not leaving.value.code
    printed = capsys.readouterr()
    assert printed.out.startswith(f"usage: deconattn {name} ")
    assert "tools/" not in printed.out and printed.err == ""


@pytest.mark.parametrize("tool", sorted(TOOLS.glob("*.py")), ids=lambda tool: tool.stem)
def test_help_in_a_clone(tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"tools/{tool.name}", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(tool), run_name="__main__")
    assert not leaving.value.code
    assert capsys.readouterr().out.startswith(f"usage: python tools/{tool.name} ")


def test_a_command_loads_no_other() -> None:
    loaded = json.loads(
        python(
            "import json, sys\n"
            "from deconattn.commands import main\n"
            "main([])\n"
            "try: main(['pack', '--help'])\n"
            "except SystemExit: pass\n"
            "print(); print(json.dumps(list(sys.modules)))"
        ).splitlines()[-1]
    )
    assert [name for name in loaded if name.startswith("deconattn.commands.")] == ["deconattn.commands.pack"]
    assert not {"torch", "transformers", "deepspeed"} & set(loaded)


def test_nothing_below_imports_a_command() -> None:
    top = [ROOT / "deconattn" / "__main__.py", *(ROOT / "deconattn" / "commands").iterdir()]
    below = [path for path in (ROOT / "deconattn").rglob("*.py") if path not in top]
    assert len(below) > 100
    for path in below:
        assert not re.search(r"deconattn\.commands|deconattn import .*\bcommands\b", path.read_text()), path


def test_every_command_explains_itself_without_any_extra() -> None:
    names = {module for modules in extras.MODULES.values() for module in modules}
    printed = python(
        BLOCKED.format(names=names) + "from deconattn.commands import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as leaving: assert not leaving.code\n"
    )
    assert printed.count("usage: ") == len(COMMANDS)


def test_extras_are_the_packages_own() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    for extra, modules in extras.MODULES.items():
        names = [re.split("[>=<]", requirement)[0].lower() for requirement in declared[extra]]
        assert set(modules) <= set(names)
    needed = {re.split("[>=<]", requirement)[0] for requirement in project["dependencies"]}
    assert not needed & {module for modules in extras.MODULES.values() for module in modules}


@pytest.mark.usefixtures("no_rank")
@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["analyze", "nowhere"], "matplotlib", "plot"),
        (["reproduce", "--size", "tiny"], "markupsafe", "plot"),
        (["reproduce", "--size", "tiny"], "lm_eval", "eval"),
        (["evaluate", "nowhere"], "lm_eval", "eval"),
        (["evaluate", "nowhere"], "zstandard", "eval"),
        (["train", "--eval-tasks", "piqa"], "lm_eval", "eval"),
        (["train", "--tensorboard"], "tensorboard", "tensorboard"),
    ],
)
def test_a_missing_extra_is_one_line_before_the_work(
    words: list[str], package: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without(package, monkeypatch)
    out = tmp_path / "out"
    place = ["--save" if words[0] == "train" else "--out", str(out)]
    with pytest.raises(UserError) as caught:
        main([*words, *place])
    assert str(caught.value).endswith(f" needs {package}, which is not installed: {installation(extra)}")
    assert not out.exists()


def test_a_dry_run_needs_no_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("markupsafe", "lm_eval"):
        without(package, monkeypatch)
    assert main(["reproduce", "--size", "tiny", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "tiny-standard-uniform" in capsys.readouterr().out


def test_packing_without_gigatoken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def manifest(name: str) -> str:
        words = [str(DEMO), "--tokenizer", "train:byte-bpe:400", "--workers", "1", "--max-tokens", "20000"]
        assert main(["pack", *words, "--out", str(tmp_path / name)]) == 0
        return (tmp_path / name / "manifest.json").read_text()

    fast = manifest("fast")
    assert "gigatoken" not in capsys.readouterr().err
    without("gigatoken", monkeypatch)
    assert manifest("slow") == fast, "the shards' checksums among it"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gigatoken" in line]
    assert line.endswith(
        f"gigatoken is not installed ({installation('fast')}); going on with its own library, which is slower"
    )


def test_a_body_alone_is_no_program() -> None:
    command = [sys.executable, "-m", "deconattn.commands.plan", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: deconattn.commands.plan is no program: deconattn NAME is\n"
