"""The benchmarks of sequences that ranks share, at toy dimensions."""

from pathlib import Path

from benchmarks.context import memory, sent
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job

TOY = sent.Arguments(size="tiny", cp=2, lengths=(64, 128), counted=())


def test_bytes_of_a_token_and_layer():
    """Queries, keys, values and what is mixed, in bf16 and both passes; of each a rank of two sends half."""
    found = sent.of_variant("standard", TOY)
    width = sent.flags_of("standard", 64, TOY).model.hidden_size
    assert found["sent"] == {64: 2 * 2 * 4 * width / 2, 128: 2 * 2 * 4 * width / 2}
    assert found["exchange"].startswith("Exchange of tokens for heads")
    assert sent.of_variant("mlp", TOY)["sent"] == {64: 0, 128: 0}


def test_the_table_and_the_picture(tmp_path: Path):
    rows = [
        {"variant": name, "exchange": "some", "sent": {64: size, 128: size}, "counted": {64: size}}
        for name, size in (("standard", 1234.0), ("staticemb", 1234.0), ("mlp", 0.0))
    ]
    assert sent.table(rows, (64,)).splitlines()[2] == "| `standard` | 1,234 | 1,234 | some |"
    picture = tmp_path / "a.svg"
    sent.draw(rows, sent.Arguments(lengths=(64, 128), picture=picture))
    assert "standard, staticemb" in picture.read_text(encoding="utf-8")  # one line for both


def test_every_layout_of_the_memory_benchmark_is_one_sequence():
    for layout, ranks in memory.SHARED.items():
        flags = parse_training_flags(memory.flags_of(memory.Arguments(), layout))
        job = Job.of(model_config(flags.model, 1, flags.data.seq_len), flags, ranks, gpu=False)
        assert (job.cp, job.dp, job.accumulation) == (ranks, 1, 1)
        assert (stage_traffic(job, 0).context > 0) == (ranks > 1)


def test_a_run_that_failed_says_so():
    rows = [
        {"layout": "1 rank", "limit": 2**30, "predicted": 2**31, "activations": 2**30, "failure": "no memory"},
        {"layout": "cp 4", "limit": 2**30, "predicted": 2**29, "activations": 2**28, "measured": 2**29},
    ]
    assert memory.summary(rows).splitlines()[2:] == [
        "| 1 rank | 1,024 | failed | 2,048 | 1,024 |", "| cp 4 | 1,024 | 512 | 512 | 256 |"
    ]  # fmt: skip
