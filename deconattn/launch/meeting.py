"""The time before the watch: the ranks meet at the store, and one that dies on the way is named by those it leaves.

Until the process group is there a rank that has died is one that does not come, for which the others would wait as long
as for a slow one. So each rank goes to the store first of all, before what takes long to import, and a thread looks
every second after the processes that its launcher started beside it, and at the store for what others have told.

What nobody can tell is a machine all of whose ranks have died before they reached the store: rank 0 then says whom it
waits for.
"""

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import psutil
import torch.distributed as dist

from deconattn.errors import UserError
from deconattn.launch import ranks
from deconattn.launch.faults import (
    ANSWER_SECONDS,
    LINGER_SECONDS,
    LOOK_SECONDS,
    end_process,
    first_sentence,
    speak,
    state_of,
)
from deconattn.launch.peers import this_machine
from deconattn.launch.siblings import siblings
from deconattn.parallel.process_group import is_torchrun, open_store
from deconattn.shown import one_line

WAITING_SECONDS = 30.0
"""So long a rank waits before it says, and says again, for whom."""
TELLING_SECONDS = 15.0
"""So long a rank that has seen another die waits for the store to tell it there; launchers kill it after 30."""
NAMED = 8
_NAME = f"meeting {os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"


class Meeting:
    """The ranks of a run on their way to each other; made first of all, and closed when the watch has begun.

    Args:
        seen: the ranks that were beside this one at the very beginning, see :func:`siblings`.
    """

    def __init__(self, seen: Mapping[psutil.Process, int]) -> None:
        self._rank, self._size = ranks.rank(), ranks.world_size()
        self._me = f"rank {self._rank} (pid {os.getpid()} on {socket.gethostname()})"
        self._siblings = dict(seen)
        self._whole_store: dist.TCPStore | None = None
        # A part of it, and a connection of the other thread's. Any: torch's stub lacks half of the methods.
        self._store: Any = None
        self._news: Any = None
        self._refusal: Exception | None = None
        self._opened, self._over = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        if self._size > 1:
            threading.Thread(target=self._open, daemon=True).start()
            threading.Thread(target=self._look_out, daemon=True).start()

    def wait(self, timeout: timedelta) -> dist.Store | None:
        """Wait until all ranks are here; return the store that they met at, None where torch finds it by itself.

        Raises:
            RuntimeError: they did not come in time, or rank 0 cannot keep the store.
        """
        begun = said = time.monotonic()
        seconds = timeout.total_seconds() + (LINGER_SECONDS if self._rank else 0.0)  # rank 0 can say who is missing
        present, pause = 0, 0.05
        while self._size > 1 and present < self._size:
            now = time.monotonic()
            if self._refusal is not None:
                raise self._refusal
            if now - begun > seconds:
                raise RuntimeError(f"timed out after {seconds:.0f} s: {self._absent(present)}")
            if now - said > WAITING_SECONDS and (self._rank == 0 or (not present and self._leads())):
                speak(f"note: {self._me} waits: {self._absent(present)}")
                said = now
            try:
                if not present and self._opened.wait(pause):
                    self._store.set(f"here {self._rank}", "")
                    present = self._store.add("here", 1)
                elif present:
                    time.sleep(pause)
                    present, pause = self._store.add("here", 0), min(2 * pause, 1.0)
            except dist.DistError:  # rank 0 is gone; the thread that looks out knows more, and ends this process
                time.sleep(2 * ANSWER_SECONDS)
                raise RuntimeError("rank 0 does not answer") from None
        return None if is_torchrun() else self._whole_store

    def close(self) -> None:
        """Leave looking out to the watch."""
        self._over.set()

    def end(self, error: Exception) -> NoReturn:
        """End this process after an exception, and all others: exit code 2 for what the user can mend, else 1."""
        if isinstance(error, UserError):
            self.give_up(f"error: {one_line(error)}", str(error), 2)
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        text = "".join(traceback.format_exception(error)) + f"error: {self._me}: {reason}"
        self.give_up(text, f"{self._me} failed: {reason}", 1)

    def give_up(self, text: str, reason: str, code: int) -> NoReturn:
        """Say a text, unless a rank has that had the same reason, tell the others, and end all."""
        self._over.set()
        with self._ending:
            first = self._size == 1 or self._leads()
            store = self._fresh_store(ANSWER_SECONDS) if self._size > 1 else None
            if store is not None:
                with suppress(dist.DistError):
                    first = store.add(f"said {reason}", 1) == 1
                    self._tell(store, reason, code)
            if first:
                speak(text)
            self._linger(store)
            end_process(code)

    def _tell(self, store: Any, reason: str, code: int) -> None:
        if store.add("failures", 1) == 1:
            store.set("failure", json.dumps([this_machine(), reason, code]))

    def _open(self) -> None:
        try:
            self._whole_store = open_store(timedelta(days=1))
            self._store = dist.PrefixStore(_NAME, self._whole_store)
            self._news = self._store.clone()  # now: where rank 0 is gone, cloning takes as long as it may
        except (RuntimeError, OSError, ValueError) as error:
            self._refusal = error
        else:
            self._opened.set()

    def _fresh_store(self, seconds: float) -> Any:
        """A connection of the caller's own to the store; None where there is none to be had in time."""
        found = []

        def connect() -> None:
            with suppress(dist.DistError):
                if self._opened.wait(seconds):
                    found.append(self._store.clone())

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(seconds)
        return found[0] if found else None

    def _look_out(self) -> None:
        lost = False
        while not self._over.wait(LOOK_SECONDS):
            self._siblings = self._siblings | siblings()
            if self._opened.is_set():
                try:
                    if self._news.check(["failure"]):
                        self._conclude(self._news, None)
                except dist.DistError:
                    lost = True
            died = {rank: process for process, rank in self._siblings.items() if state_of(process) == "died"}
            if died:
                rank = min(died)
                reason = f"rank {rank} (pid {died[rank].pid} on {socket.gethostname()}) died"
                if rank:
                    self._conclude(self._news or self._fresh_store(TELLING_SECONDS), reason)
                else:
                    self._conclude(self._in_place_of_rank_0(), reason)
            elif lost:
                self._conclude(None, "rank 0 does not answer")

    def _leads(self) -> bool:
        """Whether this is the first of the ranks that run on this machine, as far as it sees."""
        return all(rank > self._rank for process, rank in self._siblings.items() if state_of(process) != "died")

    def _conclude(self, store: Any, reason: str | None) -> None:
        """End this process for what was seen here, or, without a reason, for what the store tells.

        Args:
            store: to tell the others; None where there is none.
        """
        with self._ending:
            if self._over.is_set():
                return
            code = 1
            with suppress(dist.DistError):
                if store is not None and store.check(["failure"]):
                    reason = None  # whoever died has spoken, or another has
            if reason is not None and self._leads():
                self._say(reason)
            if store is not None:
                with suppress(dist.DistError):
                    if reason is not None:
                        self._tell(store, reason, code)
                    else:
                        machine, reason, code = json.loads(store.get("failure"))
                        here = this_machine()
                        if code == 1 and machine != here and store.add(f"said on {here}", 1) == 1:
                            self._say(reason)
            self._linger(store, missing=int(code == 1))
            end_process(code)

    def _linger(self, store: Any, missing: int = 0) -> None:
        """Stay until others have learnt of the end; who keeps the store waits for those that are late, for seconds.

        Args:
            missing: ranks that will not come.
        """
        if self._size == 1:
            return
        with suppress(dist.DistError):
            ended = store.add("ended", 1) if store is not None else 0
            deadline = time.monotonic() + 2 * ANSWER_SECONDS
            keeps = os.environ["RANK"] == "0"  # or in place of rank 0
            while keeps and 0 < ended < self._size - missing and time.monotonic() < deadline:
                time.sleep(0.1)
                ended = store.add("ended", 0)
        time.sleep(LINGER_SECONDS)

    def _say(self, reason: str) -> None:
        speak(f"error: {reason} before all ranks had met; rank {self._rank} ends")

    def _in_place_of_rank_0(self) -> Any:
        """A store for ranks that still wait for rank 0's, to tell them that it is dead.

        One of the ranks beside it keeps it, the first that can listen there; None for the others.
        """
        rank, os.environ["RANK"] = os.environ["RANK"], "0"
        try:
            return dist.PrefixStore(_NAME, open_store(timedelta(seconds=ANSWER_SECONDS)))
        except (RuntimeError, OSError):
            os.environ["RANK"] = rank
            return None

    def _absent(self, present: int) -> str:
        if not present:
            return f"rank 0 does not answer at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if self._rank:
            return f"{present} of {self._size} ranks are there"
        absent = [str(rank) for rank in range(self._size) if not self._store.check([f"here {rank}"])]
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        return f"rank {', '.join(absent[:NAMED])}{more} of {self._size} did not come"
