"""Where ranks meet."""

import os
import socket
from datetime import timedelta

import psutil
import pytest
import torch
from torch.distributed import TCPStore

from deconattn.parallel import process_group


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
def test_the_store_of_one_machine_listens_on_its_loopback_alone(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": host, "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = process_group._loopback_store(timedelta(seconds=5))
    assert store is not None
    listening = [found for found in psutil.Process().net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    (address,) = [found.laddr.ip for found in listening if found.laddr.port == store.port]
    assert address in ("::1", "127.0.0.1", "127.0.0.9")
    other = TCPStore(host, store.port, 1, is_master=False, timeout=timedelta(seconds=5))
    other.set("met", "yes")
    assert store.get("met") == b"yes"


@pytest.mark.parametrize("host", ["10.0.0.1", "gpu03", socket.gethostname(), "0.0.0.0"])
def test_other_machines_can_reach_the_store_of_several(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", "0")
    assert process_group._loopback_store(timedelta(seconds=1)) is None or host == "localhost"


def test_the_process_group_meets_there(process_group: None) -> None:
    store = torch.distributed.distributed_c10d._get_default_store()
    port = store.underlying_store.port if hasattr(store, "underlying_store") else store.port
    listening = [found for found in psutil.Process().net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {found.laddr.ip for found in listening if found.laddr.port == port} == {"127.0.0.1"}
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
