"""The text that is to be continued, and text onto standard output."""

from pathlib import Path
from typing import TextIO

from rich.console import Console

from deconattn.errors import UserError

_WAYS = "give --prompt TEXT or --file PATH, or pipe the prompt in"


def read_prompt(text: str | None, file: Path | None, stdin: TextIO) -> str:
    """`text` as it is, or what `file` holds, or what is piped into `stdin`.

    A file or a pipe loses one line end at its very end, which editors and `echo` put there.

    Raises:
        UserError: two prompts, none, an empty one, or one that is not UTF-8.
    """
    if text is not None and file is not None:
        raise UserError("--prompt and --file are both given: leave one out")
    if text is not None:
        prompt, origin = _decoded(text.encode(errors="surrogateescape"), "--prompt"), "--prompt"
    elif file is not None:
        origin = f"--file {file}"
        try:
            prompt = _without_last_line_end(_decoded(file.read_bytes(), origin))
        except OSError as error:
            raise UserError(f"{origin}: {error.strerror or error}; give a text file") from None
    elif stdin.isatty():
        raise UserError(f"there is no prompt: {_WAYS}")
    else:
        origin = "standard input"
        prompt = _without_last_line_end(_decoded(stdin.buffer.read(), origin))
    if not prompt:
        raise UserError(f"the prompt is empty ({origin}): {_WAYS}")
    return prompt


def _decoded(content: bytes, origin: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: not UTF-8 (byte {error.start}); give it as UTF-8") from None


def _without_last_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


class TextOutput:
    """Writes UTF-8 whatever the locale, each piece at once. What is written last is a line end."""

    def __init__(self, stream: TextIO) -> None:
        if hasattr(stream, "reconfigure"):
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
