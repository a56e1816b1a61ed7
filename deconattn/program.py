"""Names of our commands as typed: a clone's files, or `deconattn NAME` where the package is installed.

Whatever tells a user what to type next asks here.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "deconattn"
_FOLDER = Path(__file__).resolve().parent
_CLONE = _FOLDER.parent if (_FOLDER.parent / "launch.sh").is_file() else None
_FILES = {"train": "launch.sh", "export": "tools/export_hf.py", "check-variant": "tools/check_variant.py"}


def command(name: str) -> str:
    """Return a command as it can be typed in the current directory, in the form in which this process was called.

    `deconattn pack`, `python -m deconattn pack`, or in a clone `python tools/pack.py`.
    """
    if _CLONE is None or _is_called_by_name():
        return f"{program()} {name}"
    path = quoted(_file(_CLONE, name))
    if name != "train":
        return f"python {path}"
    return path if "/" in path else f"./{path}"


def program() -> str:
    """Return the program that has all commands: `deconattn`, or `python -m deconattn` if it was called so."""
    return f"python -m {PACKAGE}" if Path(sys.argv[0]).resolve() == _FOLDER / "__main__.py" else PACKAGE


def process(name: str) -> list[str]:
    """Return the beginning of a command line that starts a command from any directory."""
    if _CLONE is None:
        return [sys.executable, "-m", PACKAGE, name]
    return ["bash" if name == "train" else sys.executable, str(_file(_CLONE, name))]


def installation(extra: str) -> str:
    """Return the command that installs one of the package's extras."""
    if _CLONE is None:
        return f"pip install {shlex.quote(f'{PACKAGE}[{extra}]')}"
    return f"pip install -e {shlex.quote(f'{_shown(_CLONE)}[{extra}]')}"


def quoted(path: Path) -> str:
    """Quote a path for a shell, relative to the current directory if it lies there."""
    return shlex.quote(str(_shown(path)))


def plugin_flag(files: Sequence[Path]) -> str:
    """Return ` --plugin FILE...` for the end of a command line, nothing without files."""
    return " ".join([" --plugin", *map(quoted, files)]) if files else ""


def _is_called_by_name() -> bool:
    called = Path(sys.argv[0])
    # The worker's file runs in the ranks that `deconattn train` starts; launch.sh's ranks run launch.sh.
    ours = (_FOLDER / "__main__.py", _FOLDER / "launch" / "worker.py")
    return called.name == PACKAGE or called.resolve() in ours


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _file(clone: Path, name: str) -> Path:
    return clone / _FILES.get(name, f"tools/{name}.py")
