"""The roll in worlds larger than this machine: many ranks' views of it in one process, over a real store."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count

import pytest
import torch.distributed as dist

from deconattn.launch import roll
from deconattn.launch.peers import Peer
from deconattn.launch.roll import Roll

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each rank has a connection")
_pids = count(10_000_000)


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


@pytest.fixture
def connections() -> list[int]:
    return []


@pytest.fixture
def connect(store: dist.TCPStore, connections: list[int]) -> Callable[[], dist.TCPStore]:
    def counted() -> dist.TCPStore:
        connections.append(1)
        return dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)

    return counted


def peers(machines: int, each: int) -> list[list[Peer]]:
    return [
        [Peer(machine * each + rank, next(_pids), f"m{machine}", f"m{machine}") for rank in range(each)]
        for machine in range(machines)
    ]


def test_a_machine_has_one_connection_and_all_its_ranks_hear(
    connect: Callable[[], dist.TCPStore], connections: list[int]
) -> None:
    rolls = [Roll(peer, ours[0], connect) for ours in peers(16, 8) for peer in ours]
    assert not any(each.is_called() for each in rolls)
    rolls[77].add("rank 77's line")
    rolls[3].add("rank 3's: é")
    assert all(each.is_called() for each in rolls)
    assert all(each.lines() == ["rank 77's line", "rank 3's: é"] for each in rolls)
    assert [each.is_first("word") for each in rolls].count(True) == 1
    assert len(connections) == 16


def test_without_its_leader_a_rank_connects_by_itself(
    connect: Callable[[], dist.TCPStore], connections: list[int]
) -> None:
    [[leader, other]] = peers(1, 2)
    runs = [True]
    first, second = Roll(leader, leader, connect), Roll(other, leader, connect, lambda: runs[0])
    first.add("a line")
    assert second.is_called() and len(connections) == 1
    runs[0] = False
    assert second.lines() == ["a line"] and len(connections) == 2
    assert second.is_first("word") and not first.is_first("word")


def test_a_leader_that_does_not_answer_is_not_waited_for(
    connect: Callable[[], dist.TCPStore], connections: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "RELAY_SECONDS", 0.1)
    [[leader, other, late]] = peers(1, 3)
    first, second = Roll(leader, leader, connect), Roll(other, leader, connect)
    monkeypatch.setattr(first.desk._store, "is_called", lambda: time.sleep(0.5))
    assert not second.is_called() and len(connections) == 2
    first.desk.close()
    assert not Roll(late, leader, connect).is_called() and len(connections) == 3


def test_a_store_that_is_gone_is_told_by_the_leader(
    connect: Callable[[], dist.TCPStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    [[leader, other]] = peers(1, 2)
    first, second = Roll(leader, leader, connect), Roll(other, leader, connect)

    def gone() -> bool:
        raise dist.DistNetworkError("closed")

    monkeypatch.setattr(first.desk._store, "is_called", gone)
    begun = time.monotonic()
    with pytest.raises(dist.DistError, match="closed"):
        second.is_called()
    assert time.monotonic() - begun < 1
