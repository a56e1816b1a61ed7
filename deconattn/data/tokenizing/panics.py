"""What a library in Rust prints and raises when it gives up, or does not come back, as one line."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, Timer

from deconattn.errors import UserError

_STDERR = 2
_PATIENCE = 600.0
"""Seconds that any texts may take."""
_SECONDS_A_CHARACTER = 60e-6
"""What they may take more: a hundred times as long as a slow tokenizer needs."""
_REMEDY = "mend the regular expressions of its pre_tokenizer and normalizer, or leave that text out"
_lock = RLock()
"""The standard error belongs to the process: one at a time."""


@contextmanager
def panics_told(origin: str, characters: int = 0) -> Iterator[None]:
    """Turn a panic of the tokenizers library into a :class:`UserError`, without the report that Rust prints.

    The regular expressions of a tokenizer.json give up so on a text that they would take for ever to match. Where they
    do not give up, the process ends after hours with a line and the exit code 2, since nothing else stops them. What is
    written to the standard error meanwhile comes out afterwards.

    Args:
        origin: the tokenizer's name in the message.
        characters: length of the texts.
    """
    with _lock, tempfile.TemporaryFile() as held, _copy_of_stderr() as stderr:
        patience = _PATIENCE + characters * _SECONDS_A_CHARACTER
        watch = Timer(patience, _end, [stderr, f"{origin} has been at a text for {patience:.0f} s; {_REMEDY}"])
        watch.daemon = True
        told: UserError | None = None
        os.dup2(held.fileno(), _STDERR)
        watch.start()
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            reason = next(iter(str(error).splitlines()), "no reason")
            told = UserError(f"{origin}: the tokenizers library gives up on a text ({reason}); {_REMEDY}")
        finally:
            watch.cancel()
            _flush()
            os.dup2(stderr, _STDERR)
            if told is None:
                held.seek(0)
                with os.fdopen(_STDERR, "wb", closefd=False) as out:
                    shutil.copyfileobj(held, out)
        if told is not None:
            raise told


@contextmanager
def _copy_of_stderr() -> Iterator[int]:
    _flush()
    try:
        stderr = os.dup(_STDERR)
    except OSError:  # it is closed
        stderr = os.open(os.devnull, os.O_WRONLY)
    try:
        yield stderr
    finally:
        os.close(stderr)


def _flush() -> None:
    if sys.stderr is not None:  # the process was started without one
        sys.stderr.flush()


def _end(stderr: int, message: str) -> None:
    os.write(stderr, f"error: {message}\n".encode())
    os._exit(2)
