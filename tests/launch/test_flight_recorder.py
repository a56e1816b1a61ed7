"""What is set for PyTorch's flight recorder, and where its files are told to be."""

import os
from pathlib import Path

from deconattn.launch.flight_recorder import FlightRecorder, record_collectives, records_since_now


def test_what_a_user_has_set_stays_by_either_name() -> None:
    environment: dict[str, str] = {}
    record_collectives(environment)
    assert environment == {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    environment = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "10", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    record_collectives(environment)
    assert environment == {"TORCH_NCCL_TRACE_BUFFER_SIZE": "10", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}


def test_records_of_earlier_trainings_are_not_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "flight-recorder" / "from-step-5"
    folder.mkdir(parents=True)
    (folder / "rank-0.json").write_text("{}")
    os.utime(folder / "rank-0.json", (1, 1))
    told = records_since_now(tmp_path / "flight-recorder")
    recorder = FlightRecorder(tmp_path, 5, 1, {})
    assert told() == recorder.told() == ""
    (folder / "rank-1").write_text("")
    assert told() == f"; the last collectives of each rank: {tmp_path}/flight-recorder"
    assert recorder.told() == f"; the last collectives of each rank: {folder}"
    assert FlightRecorder(tmp_path, 6, 1, {}).told() == ""
