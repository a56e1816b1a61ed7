"""The corpus's ids must be the model's."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from deconattn.convert.new_run import check_vocabulary
from deconattn.errors import UserError
from deconattn.hf import tokenizer_files
from tests.convert.conftest import MakeModel


def model_tokenizer(corpus: Path, folder: Path) -> Path:
    """The corpus's SentencePiece vocabulary as the tokenizer.json of a model."""
    folder.mkdir(exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer_files.from_sentencepiece(corpus / "tokenizer.model").save(str(path))
    return path


def test_a_sentencepiece_vocabulary_and_its_tokenizer_json_are_one(corpus: Path, tmp_path: Path) -> None:
    path = model_tokenizer(corpus, tmp_path / "model")
    assert check_vocabulary(corpus / "tokenizer.model", 512, path.parent, 512) is None
    assert check_vocabulary(path, 512, path.parent, 640) is None
    document = json.loads(path.read_text())
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 512, "content": "<|chat|>"})
    path.write_text(json.dumps(document))  # the corpus need not know every token of the model
    assert check_vocabulary(corpus / "tokenizer.model", 512, path.parent, 640) is None


def test_a_token_that_means_another_is_named(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source = make_model()
    path = model_tokenizer(corpus, source)
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary[300], vocabulary[301] = vocabulary[301], vocabulary[300]
    path.write_text(json.dumps(document))
    with pytest.raises(
        UserError, match=rf"token 300 is .* in .*tokenizer.json: pack the corpus with --tokenizer {source}"
    ):
        tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus)])
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_more_ids_than_the_model(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source = make_model(vocab_size=500)
    with pytest.raises(UserError, match=f"512 token ids but the model in {source} only 500: pack"):
        tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus)])


def test_nothing_to_compare_with_is_said_and_damage_is_named(corpus: Path, tmp_path: Path) -> None:
    remark = check_vocabulary(corpus / "tokenizer.model", 512, tmp_path, 512)
    assert remark is not None and "was not checked" in remark
    shutil.copy(corpus / "tokenizer.model", tmp_path)
    assert check_vocabulary(corpus / "tokenizer.model", 512, tmp_path, 512) is None
    (tmp_path / "tokenizer.model").write_text("no model")
    with pytest.raises(UserError, match="tokenizer.model cannot be read"):
        check_vocabulary(corpus / "tokenizer.model", 512, tmp_path, 512)
