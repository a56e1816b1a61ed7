"""Blocks of code in README, CONTRIBUTING and docs/: what each is, and the commands in it.

A block of `bash` or `python` is run by test_run.py, unless a comment above it says why not. Comments stand on the lines
right above the fence:

    <!-- not run: needs eight GPUs -->
    <!-- run with launch.sh --steps 4 -->

The second has the test, and the test alone, add flags to a command; there may be one a command. A `console` block shows
a session and is never run. A block of `text` is what something prints.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^((?:<!--(?:(?!-->).)*-->\n)*)```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of one page."""

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether test_run.py runs it."""
        return self.language in ("bash", "python") and self.why_not is None

    @property
    def why_not(self) -> str | None:
        """What is said of why it is not run."""
        return next((mark.partition(": ")[2] for mark in self.marks if mark.startswith("not run: ")), None)

    @cached_property
    def added(self) -> dict[str, str]:
        """Flags that the test adds, by the file that is run."""
        words = (mark.removeprefix("run with ").partition(" ") for mark in self.marks if mark.startswith("run with "))
        return {tool: flags for tool, _, flags in words}

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without comments, prompts and the variables set before it."""
        for line in self._lines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("&;|"):
                    if words:
                        yield words
                    words = []
                elif words or not re.match(r"\w+=", word):
                    words.append(word)

    def script(self) -> str:
        """What a shell is given: flags added, and without installations, which the test's environment has."""
        lines = []
        for line in self._lines():
            if line.startswith("pip install "):
                continue
            for tool, flags in self.added.items():
                if re.search(rf"(^|[ /]){re.escape(tool)}( |$)", line):
                    line = f"{line.split(' #')[0].rstrip()} {flags}"
            lines.append(line)
        return "\n".join(lines) + "\n"

    def _lines(self) -> Iterator[str]:
        """Lines of a shell, continuations joined; of a console those after a prompt alone."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return (line for line in lines if line.strip() and not line.startswith("#"))


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start(2)].count("\n") + 1, found[2], found[3], tuple(COMMENT.findall(found[1])))
        for found in FENCE.finditer(text)
    ]
