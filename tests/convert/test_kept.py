"""Qwen2 -> run -> export: what training does not change comes back."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.stored_model import open_model
from deconattn.commands import export
from deconattn.convert.new_run import write_run
from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError
from tests.convert.conftest import MakeModel, edit

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "max_new_tokens": 99}
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("variant", "length", "longest", "new"),
    [
        ("standard", 24, 64, {"max_new_tokens": 99}),
        ("standard", 100, 100, {"max_new_tokens": 99}),
        ("approximate", 24, 64, {"max_new_tokens": 99}),
        ("fixedseq", 24, 24, {}),
    ],
)
def test_what_an_export_keeps(
    variant: str, length: int, longest: int, new: dict[str, int], make_model: MakeModel, corpus: Path, tmp_path: Path
) -> None:
    source = edit(make_model(), eos_token_id=7, bos_token_id=5, pad_token_id=9)
    GenerationConfig(**SAMPLING, eos_token_id=[7, 8], pad_token_id=9).save_pretrained(source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    run, out = tmp_path / "run", tmp_path / "out"
    flags = ["--data", str(corpus), "--seq-len", str(length), "--variant", variant, "--precision", "fp32"]
    write_run(source, run, flags)
    export.main([str(run), str(out)])
    config, generation = AutoConfig.from_pretrained(out), GenerationConfig.from_pretrained(out)
    assert (config.max_position_embeddings, config.eos_token_id) == (longest, 7)
    assert (config.bos_token_id, config.pad_token_id) == (5, 9)
    end = load_tokenizer(open_checkpoint(run).tokenizer_folder).eos_token_id  # the texts of training end with it
    assert generation.eos_token_id == [7, 8, end]
    kept = {name: value for name, value in SAMPLING.items() if name != "max_new_tokens"} | new
    assert kept.items() <= generation.to_diff_dict().items()
    assert generation.max_new_tokens == new.get("max_new_tokens")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == longest
    assert tokenizer.bos_token_id == open_model(run).tokenizer.bos_token_id == 5


def test_a_run_of_its_own_says_what_it_said(make_model: MakeModel, corpus: Path, tmp_path: Path) -> None:
    """A model without such files leaves greedy decoding to the separator."""
    source = make_model()
    (source / "generation_config.json").unlink()
    write_run(source, tmp_path / "run", ["--data", str(corpus), "--seq-len", "24", "--precision", "fp32"])
    export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    end = load_tokenizer(open_checkpoint(tmp_path / "run").tokenizer_folder).eos_token_id
    assert generation == {"do_sample": False, "eos_token_id": end, "pad_token_id": end}


@pytest.mark.parametrize("value", ["7", [7, "8"], -1, 3.5, True])
def test_an_end_token_that_is_none(value: object, make_model: MakeModel, corpus: Path, tmp_path: Path) -> None:
    source = edit(make_model(), eos_token_id=value)
    with pytest.raises(UserError, match=r"config\.json"):
        write_run(source, tmp_path / "run", ["--data", str(corpus), "--seq-len", "24"])
    assert not (tmp_path / "run").exists()
