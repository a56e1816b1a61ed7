"""`--data probe:TASK`: a synthetic task through the trainer, on any topology."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.stored_model import open_model
from deconattn.commands.export import main as export
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.launch.preflight import check_flags
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.ops.cross_entropy import IGNORED
from deconattn.probes import parse_task, stream
from deconattn.train.probe_data import ProbeStream
from tests.conftest import SMALL
from tests.ranks import Ranks
from tests.train.conftest import losses, rows, validation_losses
from tests.train.jobs import run_job, train

TASK = "mqar?pairs=2&context=16&alphabet=8"
LENGTH = SMALL.index("--seq-len")
FLAGS = ["--data", f"probe:{TASK}", *SMALL[:LENGTH], *SMALL[LENGTH + 2 :], "--variant", "fixedseq", "--pattern", "1:1"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("probe")
    run_job([*FLAGS, "--save", str(run)])
    return run


def test_the_loss_is_that_of_what_is_asked(single: Path) -> None:
    flags = parse_training_flags(FLAGS)
    task, seed = parse_task(TASK), flags.optimization.seed
    assert flags.data.seq_len == task.length
    model = CausalLM(model_config(flags.model, task.vocab_size, task.length))
    initialize(model, seed, torch.from_numpy(task.sample(stream(seed, "train"), 0)[0]))
    tokens, labels = (torch.from_numpy(part) for part in task.batch(stream(seed, "train"), range(4)))
    with torch.no_grad():
        logits = model.logits(tokens)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert losses(single)[1] == pytest.approx(expected.item(), rel=1e-5)
    assert rows(single)[0]["tokens"] == 4 * task.length
    assert len(validation_losses(single)) == 1


@pytest.mark.parametrize("words", [TASK, "previous-token?gap=3", "s5?steps=4", "needle?context=32"])
def test_right_answers_have_no_loss(words: str) -> None:
    """A head that says at each position what its hidden state names; labels one later would be others'."""
    batch = ProbeStream(parse_task(words), 1, "held-out").batch([0, 5], doc_mask=False)
    size = parse_task(words).vocab_size
    model = CausalLM(ModelConfig(size, size, 8, 1, 1, 1, 2, 64, ("standard",)))
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(size))
    answers = batch.labels.clamp_min(0)

    def loss(said: torch.Tensor) -> float:
        hidden = 100 * torch.nn.functional.one_hot(said, size).float()
        return model(batch.input_ids, batch.labels, run=lambda *_: hidden).total.item()

    assert loss(answers) == 0
    assert loss(answers.roll(1, dims=1)) > 10


@pytest.mark.slow
def test_ranks_that_share_layers_train_alike(single: Path, tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    for name, flags in (("tp", ["--tp", "2"]), ("dp", [])):
        assert ranks(2)(train, arguments=[*FLAGS, *flags, "--save", str(tmp_path / name)]) is None
        assert losses(tmp_path / name) == pytest.approx(losses(single), rel=1e-4)
        assert validation_losses(tmp_path / name) == pytest.approx(validation_losses(single), rel=1e-4)


def test_a_resumed_run_is_the_same_and_asks_for_its_task(single: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    run_job(["stop=3", *FLAGS, "--loader-workers", "1", "--save", str(cut)])
    with pytest.raises(UserError, match="pairs=3"):
        run_job(["--save", str(cut), "--resume", "--data", f"probe:{TASK.replace('pairs=2', 'pairs=3')}"])
    run_job(["--save", str(cut), "--resume"])
    assert losses(cut) == losses(single)
    assert validation_losses(cut) == validation_losses(single)
    ours, theirs = (open_checkpoint(run).weights() for run in (cut, single))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_tokenizer(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no tokenizer") as error:
        open_model(single)
    assert "probe:" in str(error.value)
    export([str(single), str(tmp_path / "hf")])
    assert "has no tokenizer" in capsys.readouterr().err
    assert (tmp_path / "hf" / RUN_CONFIG).is_file()
    assert not list((tmp_path / "hf").glob("tokenizer*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "probe:mqr"], "'mqr'"),
        (["--data", f"probe:{TASK}", "runs/corpus"], "stands alone"),
        (["--data", f"probe:{TASK}", "--seq-len", "32"], "--seq-len 32"),
        (["--data", f"probe:{TASK}", "--doc-mask"], "--doc-mask"),
        (["--data", f"probe:{TASK}", "--packing", "best-fit"], "--packing"),
        (["--data", f"probe:{TASK}", "--eval-tasks", "piqa"], "--eval-tasks"),
        (["--data", f"probe:{TASK}", "--phase", "3", "seq_len=8"], "--phase 3"),
        (["--phase", "3", f"data=probe:{TASK}"], "--phase 3"),
        (["--data", f"probe:{TASK}", "--vocab-size", "8"], "--vocab-size 8"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        check_flags(parse_training_flags(words))
    assert "\n" not in str(error.value)
