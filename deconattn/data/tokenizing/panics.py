"""What a library in Rust raises and prints when it gives up, as one line."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from deconattn.errors import UserError

_STDERR = 2
_lock = RLock()
"""The standard error belongs to the process: one at a time."""


@contextmanager
def panics_told(origin: str) -> Iterator[None]:
    """Turn a panic of the tokenizers library into a :class:`UserError`, without the report that Rust prints.

    The regular expressions of a tokenizer.json give up so on a text that they would take for ever to match. Whatever
    else is written to the standard error meanwhile comes out afterwards.

    Args:
        origin: the tokenizer's name in the message.
    """
    with _lock, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        try:
            stderr = os.dup(_STDERR)
        except OSError:  # closed: nothing to keep clean
            stderr = None
        if stderr is not None:
            os.dup2(held.fileno(), _STDERR)
        told: UserError | None = None
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            reason = next(iter(str(error).splitlines()), "no reason")
            told = UserError(
                f"{origin}: the tokenizers library gives up on a text ({reason}); mend the regular expressions of its "
                "pre_tokenizer and normalizer, or leave that text out"
            )
        finally:
            if stderr is not None:
                sys.stderr.flush()
                os.dup2(stderr, _STDERR)
                os.close(stderr)
                if told is None:
                    held.seek(0)
                    with os.fdopen(_STDERR, "wb", closefd=False) as out:
                        shutil.copyfileobj(held, out)
        if told is not None:
            raise told
