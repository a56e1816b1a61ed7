"""Conversations packed through a chat template: answers have labels, and nothing else has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from deconattn.data import PackConfig, SampleStream, TokenCorpus
from deconattn.data.answers import MARK
from deconattn.data.corpus_tools.decode import decode
from deconattn.data.corpus_tools.rewrite import merge, recut
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.manifest import read_manifest
from deconattn.data.packing.pack import pack
from deconattn.data.reading.chat import ChatTemplate
from deconattn.data.shards import open_shard
from deconattn.data.tokenizing.training import Training, train_tokenizer
from deconattn.errors import UserError

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def says(*turns: str) -> dict[str, Any]:
    """A conversation: the user begins, or a system's message that ends in !."""
    roles = ("system", "user", "assistant") if turns[0].endswith("!") else ("user", "assistant")
    first = roles[:-2]
    named = [(role, text) for role, text in zip(first, turns, strict=False)]
    named += [(roles[-2:][place % 2], text) for place, text in enumerate(turns[len(first) :])]
    return {"messages": [{"role": role, "content": text} for role, text in named]}


CONVERSATIONS = [
    says("Who goes there?", "Nay, answer me."),
    says("Be brief!", "What is honour?", "A word.", "What is in that word?", "Air."),
    says("Speak, speak.", "You are all resolved rather to die than to famish?", "Resolved. Resolved."),
    *(says(f"Question {number}", f"Answer {number} and no more") for number in range(40)),
]


@pytest.fixture(scope="module")
def tokenizer(demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-tokenizer")
    library = Library.from_file(str(train_tokenizer(demo_texts[:20], Training("byte-bpe", 600), folder)))
    library.add_special_tokens([AddedToken(word, special=True) for word in ("<|im_start|>", "<|im_end|>", "<|end|>")])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))
    return folder


def written(folder: Path, conversations: list[Any]) -> Path:
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in conversations), encoding="utf-8")
    return path


def packed(tokenizer: Path, folder: Path, conversations: list[Any] = CONVERSATIONS, **flags: Any) -> Path:
    given = {"workers": 1, "val_fraction": 0.0, "chat": True, "max_bad": 0} | flags
    out = folder / "packed"
    pack(PackConfig(inputs=(str(written(folder, conversations)),), tokenizer=str(tokenizer), out=out, **given))
    return out


def answers_of(conversation: dict[str, Any]) -> str:
    """What is to be learnt of it: the separator too, unless the user has the last word."""
    turns = conversation["messages"]
    answers = "".join(f"{one['content']}<|im_end|>\n" for one in turns if one["role"] == "assistant")
    return answers + ("<|end|>" if turns[-1]["role"] == "assistant" else "")


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_labels_are_the_answers(tokenizer: Path, tmp_path: Path, packing: Any) -> None:
    out = packed(tokenizer, tmp_path)
    corpus = TokenCorpus(out)
    library = Library.from_file(str(tokenizer / "tokenizer.json"))
    stream = SampleStream([(corpus, 1.0)], 16, seed=0, shuffle=False, packing=packing)
    inputs, labels = stream.arrays(range(stream.num_samples), doc_mask=packing == "best-fit")[:2]
    assert inputs.min() >= 0 and max(inputs.max(), labels.max()) < corpus.manifest.vocab_size
    learnt = library.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
    whole = "".join(map(answers_of, CONVERSATIONS))
    if packing == "concat":
        assert whole.startswith(learnt) and len(whole) - len(learnt) < 60  # the last sample is short
        tokens = library.decode(inputs.flatten().tolist(), skip_special_tokens=False)
        assert tokens.startswith("<|im_start|>user\nWho goes there?<|im_end|>\n<|im_start|>assistant\nNay, answer me.")
    else:
        plain = int((np.concatenate(corpus.pieces(0, corpus.num_tokens)) < MARK).sum())
        assert plain / 2 < (labels >= 0).sum() <= plain
    assert "Question" not in learnt and "honour?" not in learnt and "<|im_start|>" not in learnt


def test_marks_lie_in_the_shards_and_go_along(tokenizer: Path, tmp_path: Path) -> None:
    out = packed(tokenizer, tmp_path, val_fraction=0.2)
    manifest = read_manifest(out)
    assert manifest.answers and manifest.dtype == "uint32"
    (entry,) = manifest.of_split("train")
    values = np.concatenate(open_shard(out / entry.name, entry, manifest).values)
    assert 0 < int((values >= MARK).sum()) < len(values)
    assert entry.max_token_id == int((values & (MARK - 1)).max())
    assert not verify(out, 10).faults
    first = next(decode(out, "train", 0))
    assert first.text.startswith("<|im_start|>system\nBe brief!<|im_end|>\n<|im_start|>user\nWhat is honour?")
    recut(out, tmp_path / "split", 200)
    corpus, copied = TokenCorpus(out), TokenCorpus(tmp_path / "split")
    raw = [np.concatenate(one.pieces(0, one.num_tokens)) for one in (corpus, copied)]
    assert np.array_equal(*raw) and copied.manifest.answers


def test_the_same_bytes_by_any_number_of_workers(tokenizer: Path, tmp_path: Path) -> None:
    sums = []
    for workers in (1, 2):
        (folder := tmp_path / str(workers)).mkdir()
        out = packed(tokenizer, folder, workers=workers, val_fraction=0.2, shuffle=3)
        sums.append([entry.sha256 for entry in read_manifest(out).shards])
    assert sums[0] == sums[1]


def test_a_single_conversation_stays_whole(tokenizer: Path, tmp_path: Path) -> None:
    out = packed(tokenizer, tmp_path, CONVERSATIONS[1:2], val_fraction=0.2)
    assert [(entry.split, entry.documents) for entry in read_manifest(out).shards] == [("train", 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"messages": [{"role": "user", "content": "?"}]}, "no answer of an assistant"),
        ({"text": "?"}, "no field 'messages'"),
        ({"messages": [{"role": "judge", "content": "?"}, {"role": "assistant", "content": "!"}]}, "no such role"),
        (says("?", "\ufdd0"), "a noncharacter"),
        ("words", "no field 'messages'"),
    ],
)
def test_a_bad_line_is_named(tokenizer: Path, tmp_path: Path, line: Any, reason: str) -> None:
    with pytest.raises(UserError, match=rf"chat\.jsonl:2: .*{reason}") as told:
        packed(tokenizer, tmp_path, [CONVERSATIONS[0], line])
    assert "\n" not in str(told.value)
    assert not (tmp_path / "packed").exists()


def test_a_template_that_rewrites_what_was_said_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    with pytest.raises(UserError, match=r"--chat: .* has no chat_template\.jinja"):
        packed(folder, tmp_path)
    last = "{% for m in messages %}{{ m['role'] if loop.last else '' }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(last)
    with pytest.raises(UserError, match=r"chat\.jsonl:1: the chat template does not write message 2 after"):
        packed(folder, tmp_path)
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="is none"):
        packed(folder, tmp_path)


def test_templates_are_written_as_transformers_writes_them(tokenizer: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    sources = [
        TEMPLATE,
        "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'assistant' %}\n{% generation %}A: {{ m.content }}"
        "{% endgeneration %}\n{% else %}U: {{ m | tojson }}{% endif %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{% endfor %}{{ eos_token }}",
    ]
    for source in sources:
        template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
        for conversation in CONVERSATIONS[:3]:
            messages = conversation["messages"]
            theirs, _ = render_jinja_template(
                [messages], chat_template=source, bos_token="<s>", eos_token="</s>", add_generation_prompt=False
            )
            assert template._render(messages, False) == theirs[0]


def test_flags_that_do_not_go_together(tokenizer: Path, sp_model: Path, tmp_path: Path) -> None:
    for flags, named in (
        ({"bos": "<|im_start|>"}, "--bos"),
        ({"tokenizer": "train:512"}, "--tokenizer train:"),
        ({"special_tokens": "text"}, "--special-tokens text"),
    ):
        with pytest.raises(UserError, match=named):
            PackConfig(**{"inputs": ("x",), "tokenizer": str(tokenizer), "out": tmp_path, "chat": True} | flags)
    with pytest.raises(UserError, match="reads no special token from a text"):
        packed(sp_model, tmp_path)


def test_conversations_and_texts_are_blended_not_merged(tokenizer: Path, tmp_path: Path) -> None:
    chat = packed(tokenizer, tmp_path)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Plain words {n} of a text"}) + "\n" for n in range(60)))
    out = tmp_path / "text"
    pack(PackConfig(inputs=(str(text),), tokenizer=str(tokenizer), out=out, workers=1, val_fraction=0.0))
    with pytest.raises(UserError, match="one holds conversations and the other texts"):
        merge(tmp_path / "merged", [chat, out])
    stream = SampleStream([(TokenCorpus(chat), 1.0), (TokenCorpus(out), 1.0)], 16, seed=0)
    _, labels = stream.arrays(range(20), doc_mask=False)
    assert (labels >= 0).all(1).any() and not (labels >= 0).all()
