"""tools/analyze.py: from folders of models to a folder of pictures and numbers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.testing import assert_close

from deconattn.analysis.collect import collect
from deconattn.analysis.indicators import NAMES
from deconattn.analysis.models import open_models
from deconattn.analysis.sample import Sample
from deconattn.analysis.tokens import read_sample
from deconattn.data import PackConfig, TokenCorpus
from deconattn.data.packing.pack import pack
from tests.analysis.conftest import Call
from tests.conftest import DEMO, TOOLS
from tests.generation.conftest import write_run
from tests.hf.models import LONGEST, exported, load_plugin, small_config, tokens, trained

VARIANTS = ("fixedseq", "mlp", "nonapproximate")
PICTURES = ("radar-layers", "radar", "activations", "induction", "position")


@pytest.fixture(scope="module")
def run(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of steps 7 and 12, whose weights differ."""
    out = tmp_path_factory.mktemp("analysis") / "run"
    model = trained(small_config(*VARIANTS, num_key_value_heads=2))
    write_run(model, byte_level, out)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 3
    later = write_run(model, byte_level, out.with_name("later"), number=12)
    (later / "checkpoints" / "step-12").rename(out / "checkpoints" / "step-12")
    return out


@pytest.fixture(scope="module")
def stock(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Qwen2."""
    model = trained(small_config("standard", "standard", num_key_value_heads=2))
    out = exported(model, tmp_path_factory.mktemp("analysis") / "stock", tokenizer_folder=byte_level)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen2"
    return out


def read(out: Path, name: str) -> list[dict[str, object]]:
    """The rows of a table, which are the same in both files."""
    table = pq.read_table(out / f"{name}.parquet")
    assert json.loads((out / f"{name}.json").read_text()) == table.to_pydict()
    return table.to_pylist()


def assert_drawn(path: Path) -> None:
    """There are both pictures, and neither is blank."""
    opacity = matplotlib.image.imread(path.with_name(f"{path.name}.png"))[..., 3]
    assert 0.001 < (opacity > 0.5).mean() < 0.999
    svg = path.with_name(f"{path.name}.svg").read_text()
    assert svg.count("<path") > 10


def test_models_become_pictures_and_numbers(run: Path, stock: Path, call: Call, tmp_path: Path):
    out = tmp_path / "new" / "out"
    code, printed, err = call(run, stock, "--out", out, "--sequences", 5, "--maps", 1, 2)
    assert (code, err) == (0, "")
    assert f"5 sequences of {LONGEST} tokens of the bundled demo corpus; written: {out}" in printed
    assert "2 of 3" in printed and "2 of 2" in printed and "…" not in printed

    maps = ["map-run-layer-1", "map-stock-layer-1", "map-stock-layer-2"]
    stems = {path.name.rpartition(".")[0] for path in out.iterdir()}
    assert stems == {"analysis", "indicators", *PICTURES, *maps}
    tables = (out / "analysis.md").read_text()
    assert "| run | " in tables and "2 of 3" in tables and "80 less 8" in tables
    for name in (*PICTURES, *maps):
        assert_drawn(out / name)
        assert read(out, name)

    told = json.loads((out / "analysis.json").read_text())
    assert told["sample"] == {"source": "the bundled demo corpus", "sequences": 5, "seq_len": LONGEST}
    assert [model["layers"] for model in told["models"]] == [list(VARIANTS), ["standard"] * 2]
    assert [model["in_context_learning"]["tokens"] for model in told["models"]] == [[8, LONGEST]] * 2
    assert [model["repeated_tokens"]["period"] for model in told["models"]] == [LONGEST // 2] * 2
    without = [row for row in read(out, "induction") if row["value"] is None]
    assert {(row["model"], row["layer"], row["variant"]) for row in without} == {("run", 2, "mlp")}
    assert all("no map" in row["note"] for row in without)

    rows = read(out, "indicators")
    for subject in open_models([run / "checkpoints" / "step-12", stock]):
        (ids,) = read_sample(Sample(sequences=5), [subject])
        label = "run" if subject.checkpoint else "stock"
        found = collect(subject.decoder(), ids, label)
        here = {(r["layer"], r["indicator"], r["head"]): r["value"] for r in rows if r["model"] == label}
        assert {number for number, _, _ in here} == ({1, 3} if subject.checkpoint else {1, 2})
        for number, layer in enumerate(found, start=1):
            for name, tensor in layer.indicators.by_name().items() if layer.indicators else ():
                heads = [None] if tensor.ndim == 0 else range(1, 5)
                assert [here[number, name, head] for head in heads] == pytest.approx(tensor.flatten().tolist())
    means = {
        name: np.mean([r["value"] for r in rows if (r["model"], r["indicator"]) == ("stock", name)]) for name in NAMES
    }
    line = next(line for line in printed.splitlines() if "stock" in line)
    assert all(f"{value:.4g}" in line for value in means.values())


def test_what_each_mixer_and_head_is_worth_and_how_maps_agree(run: Path, stock: Path, call: Call, tmp_path: Path):
    out = tmp_path / "out"
    words = ("--sequences", 2, "--seq-len", 12, "--measure", "ablation", "heads", "agreement")
    code, printed, err = call(run, stock, "--out", out, *words)
    assert (code, err) == (0, "")
    assert "Loss gained without a mixer" in printed and "indicators" not in printed.partition("Loss")[0]
    pictures = ("ablation", "head-ablation", "agreement")
    assert {path.name.rpartition(".")[0] for path in out.iterdir()} == {"analysis", *pictures}
    for name in pictures:
        assert_drawn(out / name)
    ablated = read(out, "ablation")
    assert len(ablated) == 5 * 3 and {row["sequences"] for row in ablated} == {2}
    heads = read(out, "head-ablation")
    assert [(row["model"], row["layer"]) for row in heads if row["note"]] == [("run", 2)]
    assert len(heads) == 4 * 4 * 2 + 1
    agreed = read(out, "agreement")
    assert len(agreed) == 4 * 5 // 2 + 1
    own = [row["cka"] for row in agreed if (row["model"], row["layer"]) == (row["other model"], row["other layer"])]
    assert own == pytest.approx([1] * 4)


@pytest.mark.slow
def test_all_steps_and_steps_by_name(run: Path, call: Call, tmp_path: Path):
    steps = [run / "checkpoints" / f"step-{n}" for n in (12, 7)]
    for number, words in enumerate(([run, "--all-steps"], steps)):
        out = tmp_path / str(number)
        words = (*words, "--measure", "indicators")
        assert call(*words, "--out", out, "--sequences", 1, "--seq-len", 20)[::2] == (0, "")
        rows = read(out, "entropy-over-steps")
        assert_drawn(out / "entropy-over-steps")
        entropies = {(row["step"], row["layer"]): row["entropy"] for row in rows}
        assert set(entropies) == {(7, 1), (7, 3), (12, 1), (12, 3)}
        assert entropies[7, 1] != pytest.approx(entropies[12, 1], rel=0.01)
        assert {row["model"] for row in read(out, "radar")} == {"run/step-12"}
        assert {row["model"] for row in read(out, "indicators")} == {"run/step-7", "run/step-12"}


@pytest.mark.slow
def test_the_same_twice_is_the_same_bytes(run: Path, call: Call, tmp_path: Path):
    for name in ("a", "b"):
        assert call(run, "--out", tmp_path / name, "--sequences", 1, "--seq-len", 8)[0] == 0
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert written[0] == written[1]


def test_a_stock_model_is_looked_into_as_it_runs(stock: Path):
    (subject,) = open_models([stock])
    model, ids = subject.load("fp32"), tokens(2, 30)
    decoder = subject.decoder()
    with torch.no_grad():
        expected = model.model(ids.to(model.device)).last_hidden_state
        assert_close(decoder(ids.to(model.device)), expected, rtol=1e-4, atol=1e-5)


def test_third_parties_maps_are_drawn_without_activations(byte_level: Path, tmp_path: Path, call: Call):
    plugin = load_plugin(tmp_path)
    model = exported(
        trained(small_config("runningmean")), tmp_path / "mine", tokenizer_folder=byte_level, plugins=[plugin]
    )
    out = tmp_path / "out"
    assert call(model, "--plugin", plugin, "--out", out, "--sequences", 1)[0] == 0
    assert not list(out.glob("activations*"))
    sink = [row["value"] for row in read(out, "indicators") if row["indicator"] == "sink"]
    assert sink == pytest.approx([sum(1 / i for i in range(1, LONGEST + 1)) / LONGEST] * 4, rel=1e-6)


def test_text_and_corpus_give_the_tokens_that_they_hold(run: Path, stock: Path, byte_level: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("abcd")
    (tmp_path / "b.txt").write_text("efghij")
    subjects = open_models([run, stock])
    tokenizer = subjects[0].tokenizer
    ids = read_sample(Sample(text=(str(tmp_path),), sequences=2, seq_len=5), subjects)
    expected = [*tokenizer("abcd").input_ids, 0, *tokenizer("efghij").input_ids][:10]
    assert len(expected) == 10 and ids[0].tolist() == ids[1].tolist() == [expected[:5], expected[5:]]

    (tmp_path / "text.jsonl").write_text("".join(DEMO.read_text().splitlines(keepends=True)[:2]))
    folder = tmp_path / "packed"
    pack(
        PackConfig(
            inputs=(str(tmp_path / "text.jsonl"),), tokenizer=str(byte_level), out=folder, workers=1, val_fraction=0.5
        )
    )
    ids = read_sample(Sample(data=folder, sequences=3, seq_len=16), subjects)
    assert torch.equal(ids[0], ids[1]) and len(ids[0].unique(dim=0)) == 3
    held_out = TokenCorpus(folder, "val")
    text = held_out.read(0, held_out.num_tokens).tolist()
    windows = [text[start : start + 16] for start in range(0, len(text) - 16, 16)]
    assert all(row in windows for row in ids[0].tolist())


def test_what_was_packed_with_another_tokenizer(run: Path, corpus: Path, refused: Callable[..., str]):
    assert f"--data {corpus} was packed with another tokenizer than that of {run}" in refused(run, "--data", corpus)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sequences 0", "--sequences 0: give 1 or more"),
        ("--seq-len 3", "--seq-len 3: give 4 or more, which local focus needs"),
        (f"--seq-len {LONGEST + 1}", f"beyond the fixed stream of RUN, {LONGEST} tokens: give less"),
        ("--maps 0", "--maps 0: there are layers 1 to 3"),
        ("--maps 1 --measure induction", "--maps are drawn along with the indicators: add indicators to --measure"),
        ("--maps 1 4", "--maps 4: there are layers 1 to 3"),
        ("--data a --text b", "--data and --text are both given"),
        ("--data /nowhere", "/nowhere: no such folder"),
        ("--text /nowhere.txt", "/nowhere.txt: no such file"),
        ("--text SHORT", "has 3 tokens in the tokenizer of RUN, fewer than 16 sequences of 80: give more text"),
        ("--plugin /nowhere.py", "--plugin /nowhere.py"),
        ("--out RUN", "--out RUN exists and is not an empty folder: give another"),
        ("--out SHORT", "exists and is not an empty folder"),
        ("RUN", "is given 2 times: give it once"),
        ("RUN/checkpoints/step-7 --all-steps", "step-7 is no run folder"),
        ("--map 1", "--map"),
    ],
)
def test_wrong_flags(flags: str, message: str, run: Path, tmp_path: Path, refused: Callable[..., str]):
    (tmp_path / "short.txt").write_text("ab")
    for name, path in (("RUN", run), ("SHORT", tmp_path / "short.txt")):
        flags, message = flags.replace(name, str(path)), message.replace(name, str(path))
    assert message in refused(run, *flags.split())


def test_what_is_no_model(stock: Path, tmp_path: Path, refused: Callable[..., str]):
    assert f"{tmp_path} is neither a run folder" in refused(tmp_path)
    assert f"--all-steps: {stock} is no run folder" in refused(stock, "--all-steps")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert "empty has no checkpoint yet" in refused(tmp_path / "empty", "--all-steps")
    assert "there is no model: give the folders" in refused()


def test_a_model_whose_layers_are_not_ours(stock: Path, tmp_path: Path, refused: Callable[..., str]):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "pythia")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "pythia" / name).write_bytes((stock / name).read_bytes())
    assert "pythia is a gpt_neox, whose layers are not ours to look into" in refused(tmp_path / "pythia")


def test_runs_of_one_name_are_told_apart_by_their_folders(run: Path, byte_level: Path, tmp_path: Path):
    other = write_run(trained(small_config("standard")), byte_level, tmp_path / "run")
    steps = [run / "checkpoints" / "step-12", other / "checkpoints" / "step-7"]
    assert [one.label for one in open_models(steps)] == [f"{run}/step-12", f"{other}/step-7"]
    assert [one.label for one in open_models([run, other / "checkpoints" / "step-7"])] == [
        str(run),
        f"{other}/step-7",
    ]


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, TOOLS / "analyze.py", "nowhere", "--out", "x", "--sequences", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --sequences 0: give 1 or more\n"
