"""Every block of code in the docs is run, or says why not; and no command there has a flag that does not exist."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro

from deconattn.cli import parse
from deconattn.commands import COMMANDS, convert, main
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags
from deconattn.config.presets import size_defaults
from deconattn.config.renamed import renamed_words
from deconattn.errors import UserError
from tests.conftest import ROOT
from tests.docs.blocks import PAGES, Block, blocks_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS_SHOWN = [
    pytest.param(words, id=f"{block}: {' '.join(words)[:60]}")
    for block in BLOCKS
    if block.language in ("bash", "console")
    for words in block.commands
]
MODULES = {"export_hf": "export"}


class Parsed(Exception):
    """A command line was understood, and its command need not begin."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_fence_is_a_block(page: Path) -> None:
    assert len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)) == 2 * len(blocks_of(page))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.language in ("bash", "python", "console", "text")
    kinds = {re.match(r"not run: (\S+ ){3}|run with \S+ \S|", mark)[0].partition(" ")[0] for mark in block.marks}  # type: ignore[index]
    if block.language == "text":
        assert not kinds
    elif block.language == "console":
        assert kinds == {"not"}
    else:
        assert kinds in (set(), {"not"}, {"run"})
        tools = {Path(word).name for words in block.commands for word in words} if block.added else set()
        assert set(block.added) <= tools


def test_a_flag_that_does_not_exist_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("python tools/pack.py corpus --tokeniser x", "./launch.sh --vriant mlp", "python tools/none.py"):
        with pytest.raises((UserError, AssertionError)):
            understand(words.split(), monkeypatch)


@pytest.mark.parametrize("words", COMMANDS_SHOWN)
def test_flags_exist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    understand(words, monkeypatch)


def understand(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command of ours as it would parse itself, and go no further; of others' commands nothing is known."""
    program, *others = words
    names = [Path(word).name for word in words]
    if "launch.sh" in names:
        flags = [word for word in words[names.index("launch.sh") + 1 :] if word != "FLAGS"]
        parse(TrainingFlags, renamed_words(flags), default=size_defaults("tiny"))
        if "--size" in flags and "--resume" not in flags:  # what the flags alone can tell
            assert parse_training_flags(flags).total_steps > 0
    elif program == "python" and others[0] == "-m":
        assert importlib.util.find_spec(others[1]) is not None
    elif program == "python" and others[0].startswith("tools/"):
        assert (ROOT / others[0]).is_file(), others[0]
        stem = Path(others[0]).stem
        if stem == "convert":
            _, rest = tyro.cli(convert.Arguments, args=others[1:], return_unknown_args=True)
            parse(TrainingFlags, rest, default=size_defaults("tiny"))
            return
        _until_parsed([MODULES.get(stem, stem.replace("_", "-")), *others[1:]], monkeypatch)
    elif program == "deconattn":
        _until_parsed(others, monkeypatch)
    elif program == "python":
        assert (ROOT / others[0]).is_file(), others[0]


def _until_parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] in COMMANDS
    understood = tyro.cli

    def cli(*arguments: Any, **keywords: Any) -> Any:
        found = understood(*arguments, **keywords)
        if not keywords.get("return_unknown_args"):
            raise Parsed
        return found

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(tyro, "cli", cli)
        main(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_said_of_a_block_stands_right_above_it(page: Path) -> None:
    said = re.findall(r"^<!-- (?:not run: |run with )", page.read_text(encoding="utf-8"), re.MULTILINE)
    heard = [mark for block in blocks_of(page) for mark in block.marks if mark.startswith(("not run: ", "run with "))]
    assert len(said) == len(heard)
