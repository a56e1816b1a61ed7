"""The token that ends a document is the one that its model's files name, or a usual one that is special."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing.tokenizer import find_bos
from deconattn.errors import UserError
from tests.data.tokenizing.kinds import write_json

Kind = Callable[[str], Path]


@pytest.fixture
def gemma(kind: Kind, tmp_path: Path) -> Path:
    """A folder to write other files into; `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3 are special."""
    return shutil.copytree(kind("gemma"), tmp_path / "gemma")


def test_an_html_tag_is_no_separator(gemma: Path) -> None:
    tokenizer = load_tokenizer(gemma)
    assert tokenizer.find("</s>") not in (None, 1)
    assert (tokenizer.eos_token_id, tokenizer.separator, tokenizer.named_by) == (1, "<eos>", "the list of usual ones")


@pytest.mark.parametrize(
    ("files", "expected", "named_by"),
    [
        ({"generation_config": {"eos_token_id": 2}}, 2, "generation_config.json"),
        ({"generation_config": {"eos_token_id": [3, 1]}}, 3, "generation_config.json (the first of 2)"),
        ({"generation_config": {"eos_token_id": [3]}}, 3, "generation_config.json"),
        ({"generation_config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "<unk>"}}, 2, "generation_con"),
        ({"generation_config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": "<unk>"}}, 3, "tokenizer_c"),
        ({"generation_config": {"eos_token_id": []}, "config": {"eos_token_id": 0}}, 0, "config.json"),
        ({"generation_config": {}, "tokenizer_config": {"eos_token": None}}, 1, "the list"),
        ({"tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": "<bos>"}}}, 2, "tokenizer_config.json"),
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "<bos>"}}}, 2, "special_tokens_map"),
        ({"tokenizer_config": {"eos_token": "</s>"}}, 450, "tokenizer_config.json"),
        ({"config": {"eos_token_id": [2, 1]}}, 2, "config.json (the first of 2)"),
        ({"config": {"text_config": {"eos_token_id": 3}}}, 3, "config.json"),
        ({"config": {"model_type": "other"}}, 1, "the list"),
        ({"tokenizer_config": {"added_tokens_decoder": {"450": {"content": "</s>", "special": True}}}}, 450, "the li"),
        ({"tokenizer_config": {"added_tokens_decoder": {"450": {"content": "</s>", "special": False}}}}, 1, "the li"),
    ],
)
def test_the_files_beside_it_name_it(gemma: Path, files: dict[str, Any], expected: int, named_by: str) -> None:
    write_json(gemma, **files)
    for spec in (gemma, gemma / "tokenizer.json"):
        tokenizer = load_tokenizer(spec)
        assert tokenizer.eos_token_id == expected
        assert tokenizer.find(tokenizer.separator) == expected
        assert named_by in tokenizer.named_by


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"generation_config": {"eos_token_id": 4000}}, "generation_config.json: .* has no token of the id 4000"),
        ({"generation_config": {"eos_token_id": -1}}, "has no token of the id -1"),
        ({"generation_config": {"eos_token_id": "1"}}, "its eos_token_id is '1', which is no token"),
        ({"generation_config": {"eos_token_id": True}}, "its eos_token_id is True"),
        ({"generation_config": {"eos_token_id": [[1]]}}, "its eos_token_id is"),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, "tokenizer_config.json: .* has no token '<|im_end|>'"),
        ({"tokenizer_config": {"eos_token": 1}}, "its eos_token is 1"),
        ({"tokenizer_config": {"eos_token": {"id": 1}}}, "its eos_token is {'id': 1}"),
        ({"config": ["eos_token_id"]}, "config.json is not a JSON object"),
    ],
)
def test_files_that_name_what_is_no_token(gemma: Path, files: dict[str, Any], message: str) -> None:
    write_json(gemma, **files)
    with pytest.raises(UserError, match=message.replace("|", r"\|")) as caught:
        load_tokenizer(gemma)
    assert "\n" not in str(caught.value)
    if "config" not in files:
        assert "--eos" in str(caught.value)
        assert load_tokenizer(gemma, "<pad>").eos_token_id == 0


def test_a_file_that_is_cut_off(gemma: Path) -> None:
    (gemma / "generation_config.json").write_text('{"eos_token_id": 1')
    with pytest.raises(UserError, match="generation_config.json is not a JSON object"):
        load_tokenizer(gemma)


def test_what_the_user_names_goes_first(gemma: Path) -> None:
    write_json(gemma, generation_config={"eos_token_id": 2})
    tokenizer = load_tokenizer(gemma, "</s>")
    assert (tokenizer.eos_token_id, tokenizer.named_by) == (450, "--eos")
    with pytest.raises(UserError, match=r"--eos: .* no token '\[SEP\]' .* \(<bos>, <eos>, <pad>, <unk>\)"):
        load_tokenizer(gemma, "[SEP]")


def test_the_token_that_begins_a_document(gemma: Path) -> None:
    tokenizer = load_tokenizer(gemma)
    assert find_bos(tokenizer, "<bos>") == 2
    with pytest.raises(UserError, match=r"--bos: .* has no token '\[CLS\]' .*<bos>"):
        find_bos(tokenizer, "[CLS]")


def test_none_at_all(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "b": 1}, unk_token="b")).save(str(path))
    with pytest.raises(UserError, match="no document separator.*give --eos TOKEN"):
        load_tokenizer(path)
    assert load_tokenizer(path, "</s>").eos_token_id == 0


def test_sentencepiece_has_its_own(sp_model: Path, tmp_path: Path) -> None:
    shutil.copy(sp_model, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.separator, tokenizer.named_by) == (2, "</s>", "the tokenizer")
    assert load_tokenizer(tmp_path, "<s>").eos_token_id == 1
    assert (tokenizer.find("<s>"), tokenizer.find("no such piece")) == (1, None)
    write_json(tmp_path, tokenizer_config={"eos_token": "<s>"})
    assert load_tokenizer(tmp_path).eos_token_id == 1


def test_a_tiktoken_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    path.with_name("qwen.tiktoken").write_bytes(path.read_bytes())
    for spec in (tmp_path, path, path.with_name("qwen.tiktoken")):
        with pytest.raises(UserError, match=r"is a tiktoken file.*give the tokenizer.json of the same model"):
            load_tokenizer(spec)


def test_what_is_no_file_does_not_hang(tmp_path: Path, kind: Kind) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is not a regular file"):
        load_tokenizer(tmp_path / "pipe.json")
    shutil.copy(kind("gemma") / "tokenizer.json", tmp_path)
    os.mkfifo(tmp_path / "generation_config.json")
    assert load_tokenizer(tmp_path).eos_token_id == 1


def test_a_number_that_only_one_reader_takes(tmp_path: Path, kind: Kind) -> None:
    content = (kind("gemma") / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content.replace("{", '{"surplus": ' + "9" * 5000 + ",", 1))
    with pytest.raises(UserError, match="tokenizer.json is not "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["gemma", "sentencepiece_unigram"])
def test_a_saved_one_is_the_same(kind: Kind, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(kind(name), "<unk>")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.eos_token_id, again.special_tokens, again.fingerprint) == (
        tokenizer.eos_token_id,
        tokenizer.special_tokens,
        tokenizer.fingerprint,
    )
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "eos_token": "<unk>",
        "split_special_tokens": tokenizer.special_tokens == "text",
    }
