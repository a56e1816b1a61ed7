"""What a user can get wrong: one line that names it, before anything is trained or written."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deconattn.checkpoint.format import open_checkpoint
from deconattn.data import PackConfig
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError
from tests.conftest import DEMO
from tests.train.conftest import losses
from tests.train.jobs import run_job


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--variant fixdseq", "did you mean 'fixedseq'"),
        ("--pattern bilaterl", "did you mean 'bilateral'"),
        ("--pattern 5*mlp", "names 5 layers but the model has 2"),
        ("--size 80m", "unknown size '80m'"),
        ("--precision bf16 --zero 0", "needs --zero 1"),
        ("--global-batch-size 3", "--global-batch-size 3 is not a multiple of --micro-batch-size 2 x 1 ranks"),
        ("--seq-len 0", "--seq-len is 0"),
        ("--seq-len 10000000", "shorten the sequence"),
        ("--num-attention-heads 3", "not a multiple of --num-attention-heads 3"),
        ("--num-key-value-heads 4", "num_key_value_heads 4 does not divide"),
        ("--vocab-size 100", "--vocab-size 100 is less than the tokenizer's 512"),
        ("--data /nowhere", "/nowhere: no such folder"),
        ("--data {corpus}:0", "weight a number above 0"),
        ("--fixed-text /nowhere.txt", "no such file: /nowhere.txt"),
        ("--variant fixedseq --fixed-text {short}", "fewer than the 32 of a sequence"),
        ("--variant fixedseq --fixed-text {binary}", "UTF-8"),
        ("--plugin {broken}", "ZeroDivisionError"),
        ("--deepspeed-config /nowhere.json", "no such file"),
        ("--deepspeed-config {broken}", "give JSON"),
        ("--deepspeed-config {batch}", "sets train_batch_size: remove it there and use --global-batch-size"),
        ("--deepspeed-config {stage0} --precision bf16", "needs ZeRO stage 1"),
        ("--save {short}", "is not a folder"),
        ("--resume", "holds no run"),
        ("--steps 0", "--steps is 0"),
        ("--lr 0", "--lr is 0"),
    ],
)
def test_one_line_that_names_the_offender(
    small: list[str], corpus: Path, tmp_path: Path, flags: str, message: str
) -> None:
    files = {name: tmp_path / name for name in ("short", "binary", "broken", "batch", "stage0")}
    files["short"].write_text("Too short.")
    files["binary"].write_bytes(b"\xff\xfe\x00")
    files["broken"] = tmp_path / "broken.py"
    files["broken"].write_text("1 / 0")
    files["batch"].write_text(json.dumps({"train_batch_size": 4}))
    files["stage0"].write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    save = tmp_path / "run"
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        run_job([*small, "--save", str(save), *flags.format(corpus=corpus, **files).split()])
    assert "\n" not in str(caught.value)
    assert not (save / "checkpoints").exists()


def test_resume_needs_a_folder() -> None:
    with pytest.raises(UserError, match="--resume needs --save"):
        run_job(["--resume"])


def test_corpora_of_different_tokenizers_are_refused(small: list[str], corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(PackConfig(inputs=(str(DEMO),), tokenizer="train:400", out=other, workers=1))
    with pytest.raises(UserError, match="different tokenizers"):
        run_job([*small, "--data", str(corpus), str(other), "--save", str(tmp_path / "run")])


def test_a_damaged_shard_is_named(small: list[str], corpus: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(corpus, damaged)
    shard = damaged / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="train-00000.arrow"):
        run_job([*small, "--data", str(damaged), "--save", str(tmp_path / "run")])


def test_an_explicit_deepspeed_file_is_used(small: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}))
    run_job([*small, "--save", str(tmp_path / "mine"), "--deepspeed-config", str(file)])
    run_job([*small, "--save", str(tmp_path / "zero2"), "--zero", "2"])
    assert losses(tmp_path / "mine") == pytest.approx(losses(tmp_path / "zero2"), rel=1e-6)


def test_a_plugin_trains_and_resumes(small: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "uniform_mean.py"
    plugin.write_text(
        "from deconattn.mixers import Decoding, NonApproximate, register\n"
        "from deconattn.ops.prefix_average import prefix_average\n"
        "@register('uniform_mean')\n"
        "class UniformMean(NonApproximate):\n"
        "    decoding, map_blocks = Decoding(), NonApproximate.map_blocks\n"
        "    def forward(self, hidden, static, context):\n"
        "        values = self.per_query_head(self.values(hidden))\n"
        "        scores = values.new_zeros(values.shape[:-1])\n"
        "        return self.output(prefix_average(scores, values, context.document_ids))\n"
    )
    run = tmp_path / "run"
    flags = [*small, "--plugin", str(plugin), "--variant", "uniform_mean", "--pattern", "1:1", "--save", str(run)]
    run_job(["stop=3", *flags])
    run_job(["--save", str(run), "--resume"])
    assert open_checkpoint(run).model_config.layer_variants == ("uniform_mean", "standard")
    assert len(losses(run)) == 6


def test_no_pickle_is_written(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path)])
    suffixes = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".model"}
    assert load_file(tmp_path / "checkpoints/step-6/slices-00000.safetensors")
