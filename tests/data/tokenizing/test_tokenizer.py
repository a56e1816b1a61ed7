import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from deconattn.data import load_tokenizer
from deconattn.errors import UserError


def test_hugging_face_ids_are_the_library_s(hf_tokenizer: Path, texts: list[str]) -> None:
    ours = load_tokenizer(hf_tokenizer)
    theirs = tokenizers.Tokenizer.from_file(str(hf_tokenizer))
    encoded = ours.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [theirs.encode(t, add_special_tokens=False).ids for t in texts]
    assert [ours.decode(ids) for ids in encoded] == texts
    assert ours.vocab_size == max(theirs.get_vocab(with_added_tokens=True).values()) + 1
    assert ours.eos_token_id == theirs.token_to_id("<|endoftext|>")


def test_sentencepiece_ids_are_the_library_s(sp_model: Path, texts: list[str]) -> None:
    ours = load_tokenizer(sp_model)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    encoded = ours.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [theirs.encode(text) for text in texts]
    assert [ours.decode(ids) for ids in encoded] == texts
    assert (ours.vocab_size, ours.eos_token_id) == (512, theirs.piece_to_id("</s>"))
    assert theirs.unk_id() not in np.concatenate(encoded)


def test_truncation_and_special_tokens_in_the_file_are_ignored(hf_tokenizer: Path, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(hf_tokenizer))
    library.enable_truncation(4)
    library.enable_padding(length=50)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", library.token_to_id("<|endoftext|>"))]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    plain, altered = load_tokenizer(hf_tokenizer), load_tokenizer(tmp_path)
    text = "one two three four five six seven"
    assert altered.encode_batch([text])[0].tolist() == plain.encode_batch([text])[0].tolist()
    assert altered.fingerprint != plain.fingerprint  # the whole file counts, whatever it may change


def test_fingerprint_follows_what_determines_ids(hf_tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads(hf_tokenizer.read_text())
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    spellings = {"old.json": [" ".join(merge) for merge in merges], "new.json": merges}
    for name, spelling in spellings.items():
        (tmp_path / name).write_text(json.dumps({**content, "model": {**content["model"], "merges": spelling}}))
    content["model"]["merges"] = merges[:-1]
    (tmp_path / "other.json").write_text(json.dumps(content))
    original = load_tokenizer(hf_tokenizer).fingerprint
    assert load_tokenizer(tmp_path / "old.json").fingerprint == original
    assert load_tokenizer(tmp_path / "new.json").fingerprint == original
    assert load_tokenizer(tmp_path / "other.json").fingerprint != original


def test_save_and_load_again(hf_tokenizer: Path, sp_model: Path, tmp_path: Path) -> None:
    for number, path in enumerate((hf_tokenizer, sp_model)):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = load_tokenizer(path)
        tokenizer.save(folder)
        again = load_tokenizer(folder)
        assert (again.fingerprint, again.vocab_size, again.eos_token_id) == (
            tokenizer.fingerprint,
            tokenizer.vocab_size,
            tokenizer.eos_token_id,
        )


def test_a_tokenizer_pickles(hf_tokenizer: Path, sp_model: Path) -> None:
    for path in (hf_tokenizer, sp_model):
        tokenizer = load_tokenizer(path)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode_batch(["a word"])[0].tolist() == tokenizer.encode_batch(["a word"])[0].tolist()


def test_no_separator_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1})).save(str(path))
    with pytest.raises(UserError, match="no document separator"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "no such file"),
        ("broken.json", b"{", "not a tokenizer.json"),
        ("config.json", b'{"model_type": "llama"}', "not a tokenizer.json"),
        ("broken.model", b"nonsense", "not a SentencePiece model"),
        ("empty.model", b"", "not a SentencePiece model"),
        ("vocab.txt", b"a", "give a tokenizer.json"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_flat_ids_are_the_texts_with_separators(hf_tokenizer: Path, sp_model: Path, texts: list[str]) -> None:
    for path in (hf_tokenizer, sp_model):
        tokenizer = load_tokenizer(path)
        ids, counts = tokenizer.encode_flat([*texts, ""])
        parts = [[*part.tolist(), tokenizer.eos_token_id] for part in tokenizer.encode_batch([*texts, ""])]
        assert ids.tolist() == [token for part in parts for token in part]
        assert counts.tolist() == [len(part) for part in parts]
        assert ids.dtype == np.uint32 and counts.dtype == np.int64
        nothing, none = tokenizer.encode_flat([])
        assert (len(nothing), nothing.dtype, len(none), none.dtype) == (0, np.uint32, 0, np.int64)


def test_large_gaps_between_ids_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {"</s>": 0, "a": 1, "b": 4_000_000_000}
    content = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0}, unk_token="</s>")).to_str()
    document = json.loads(content)
    document["model"]["vocab"] = vocabulary
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="3 entries but the id 4,000,000,000") as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    document["model"]["vocab"] = vocabulary | {"b": 2**32}
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_tokenizer(path)
