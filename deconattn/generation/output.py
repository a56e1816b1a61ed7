"""Standard output: text and nothing else."""

import io
from typing import TextIO

from rich.console import Console


class TextOutput:
    """Writes UTF-8 whatever the locale, each piece at once. What is written last is a line end."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
        self._stream = stream

    def prompt(self, text: str) -> None:
        """The prompt as it is; on a terminal dimmed, to tell it from what follows."""
        if self._stream.isatty():
            Console(file=self._stream).out(text, style="dim", end="", highlight=False)
        else:
            self.write(text)

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
