"""Whether a library has the memory to tokenize a long text: some end the process where they have not."""

import resource
from collections.abc import Sequence

import psutil

from deconattn.errors import UserError

_LONG = 4 << 20  # characters; what less takes is not worth a look


def check_memory(origin: str, texts: Sequence[str], bytes_each: int) -> None:
    """Raise :class:`UserError` if there is not enough memory for these texts.

    Args:
        origin: the tokenizer's name in the message.
        texts: what is to be tokenized at once.
        bytes_each: memory that the library takes for a byte of text.
    """
    if sum(map(len, texts)) < _LONG:
        return
    size = sum(len(text.encode()) for text in texts)
    free, needed = _free(), size * bytes_each
    if needed > free:
        raise UserError(
            f"{origin}: texts of {size / 2**20:.0f} MiB, tokenized at once, take its library some "
            f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free; cut long documents up, or lower "
            "--workers"
        )


def _free() -> int:
    free = int(psutil.virtual_memory().available)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)
