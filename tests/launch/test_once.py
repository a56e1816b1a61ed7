"""What all ranks would warn of is said by one of them."""

import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from deconattn.launch.once import Once
from tests.ranks import Ranks


def lines_of_all_ranks() -> list[list[str]]:
    """What each rank writes of a warning and a log line that all have, and of one that the last alone has."""
    import torch.distributed as dist

    shown, handler = warnings.showwarning, logging.StreamHandler(written := StringIO())
    logger = logging.getLogger("DeepSpeed")
    handlers, logger.handlers = logger.handlers, [handler]
    try:
        with redirect_stderr(written), warnings.catch_warnings():
            warnings.simplefilter("always")
            Once().install()
            for _ in range(2):
                warnings.warn("all of us\nsee this", UserWarning, stacklevel=1)
                logger.warning("all ranks log this")
            if dist.get_rank() == dist.get_world_size() - 1:
                warnings.warn("I alone", UserWarning, stacklevel=1)
    finally:
        warnings.showwarning, logger.handlers = shown, handlers
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, written.getvalue().splitlines())
    return everyone


def test_a_warning_of_all_ranks_is_said_once_and_that_of_one_is_kept(ranks: Callable[[int], Ranks]) -> None:
    every = ranks(2)(lines_of_all_ranks)
    said = [line for lines in every for line in lines]
    assert sum("all ranks log this" in line for line in said) == 1
    [shared] = [line for line in said if "all of us" in line]
    assert (
        shared.startswith("warning: rank ") and "UserWarning: all of us see this (tests/launch/test_once.py:" in shared
    )
    [own] = [line for line in every[1] if "I alone" in line]
    assert own.startswith("warning: rank 1: UserWarning: I alone")
    assert len(said) == 3


def test_information_passes_as_it_is() -> None:
    once = Once(is_first=lambda text: True)
    record = logging.LogRecord("DeepSpeed", logging.INFO, "", 0, "the same", None, None)
    assert once.passes(record) and once.passes(record)
    record.levelno = logging.WARNING
    assert once.passes(record) and not once.passes(record)
