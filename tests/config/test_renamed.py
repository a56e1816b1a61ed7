"""Flags of older versions: the same run as by today's names."""

import json
from pathlib import Path

import pytest

from deconattn.config.command_line import parse_training_flags, to_json
from deconattn.config.run_config import RUN_CONFIG, read_run_config
from deconattn.errors import UserError
from deconattn.train.run_folder import resolved_config
from tests.hf.models import small_config


@pytest.mark.parametrize(("old", "new"), [("", "layer"), ("no-", "none")])
def test_on_the_command_line(old: str, new: str) -> None:
    for word in (f"--{old}activation-checkpointing", f"--{old}activation_checkpointing"):
        assert parse_training_flags([word]).engine.recompute == new
    assert parse_training_flags([]).engine.recompute == "none"


@pytest.mark.parametrize("text", ["activation-checkpointing: true", "engine: {activation_checkpointing: true}"])
def test_in_a_file_of_flags(text: str, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(text)
    assert parse_training_flags(["--config", str(tmp_path / "flags.yaml")]).engine.recompute == "layer"


def older_run(folder: Path, value: object) -> None:
    content = resolved_config(parse_training_flags([]), small_config("standard"), ())
    engine = json.loads(json.dumps(content))["flags"]["engine"]
    del engine["recompute"]
    content["flags"]["engine"] = {**engine, "activation_checkpointing": value}
    (folder / RUN_CONFIG).write_text(json.dumps(content))


def test_in_an_older_run(tmp_path: Path) -> None:
    older_run(tmp_path, True)
    flags = read_run_config(tmp_path, "restore it").flags
    assert flags.engine.recompute == "layer" and "activation_checkpointing" not in to_json(flags)["engine"]
    resumed = parse_training_flags(["--save", str(tmp_path), "--resume"])
    assert resumed.engine.recompute == "layer"
    again = parse_training_flags(["--config", str(tmp_path / RUN_CONFIG)])
    assert again.engine.recompute == "layer"


def test_what_was_never_right_is_refused(tmp_path: Path) -> None:
    older_run(tmp_path, "yes")
    with pytest.raises(UserError, match="activation_checkpointing is not known"):
        read_run_config(tmp_path, "restore it")
