"""Damages to a Hugging Face folder, made from a seed: each is one that a checksum of ours would not tell."""

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
VALUES: list[Any] = [
    None,
    -1,
    0,
    3.5,
    10**9,
    10**30,
    math.nan,
    math.inf,
    "wide",
    "",
    True,
    [],
    {},
    [1],
    {"a": {}},
    "[]",
]
SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings model_type rms_norm_eps hidden_act layer_types rope_parameters"
).split()
"""Fields without which, or with another value in which, a model is another one or none."""
FILES = ("config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")


def damaged(folder: Path, seed: int) -> str:
    """Damage a whole folder, in one of its ways; returns which."""
    draw = random.Random(seed)
    kind: Callable[[Path, random.Random], str] = draw.choice(
        (_value, _value, _value, _no_key, _cut, _garbage, _not_a_file, _not_a_file, _deep, _tensors, _tensors, _index)
    )
    return f"{seed}: {kind.__name__}: {kind(folder, draw)}"


def _value(folder: Path, draw: random.Random) -> str:
    content = json.loads((folder / "config.json").read_text())
    name = draw.choice([one for one in SIZES if one in content])
    value = draw.choice([one for one in VALUES if one != content[name]])
    (folder / "config.json").write_text(json.dumps(content | {name: value}))
    return f"{name} = {value}"


def _no_key(folder: Path, draw: random.Random) -> str:
    content = json.loads((folder / "config.json").read_text())
    name = draw.choice(["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "model_type"])
    del content[name]
    (folder / "config.json").write_text(json.dumps(content))
    return name


def _cut(folder: Path, draw: random.Random) -> str:
    path = folder / draw.choice(["config.json", "generation_config.json", WEIGHTS])
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size - 2)])
    return path.name


def _garbage(folder: Path, draw: random.Random) -> str:
    path = folder / draw.choice(["config.json", "generation_config.json", WEIGHTS])
    path.write_bytes(draw.choice([b"", b"[]", b"null", b"\xff\xfe\x00", b"{", b"\x00" * 64, draw.randbytes(99)]))
    return path.name


def _not_a_file(folder: Path, draw: random.Random) -> str:
    path = folder / draw.choice(FILES)
    path.unlink(missing_ok=True)
    way = draw.choice(["folder", "pipe", "loop", "broken link"])
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if way == "loop" else "nowhere")
    return f"{path.name} is a {way}"


def _deep(folder: Path, draw: random.Random) -> str:
    path = folder / draw.choice(["config.json", "generation_config.json"])
    path.write_text('{"model_type":' + '{"a":' * 100_000 + "1" + "}" * 100_001)
    return path.name


def _tensors(folder: Path, draw: random.Random) -> str:
    tensors = load_file(folder / WEIGHTS)
    name = draw.choice(sorted(tensors))
    way = draw.choice(["missing", "surplus", "longer", "flat", "integers", "scalar"])
    if way == "missing":
        del tensors[name]
    elif way == "surplus":
        tensors[draw.choice(["model.layers.7.mlp.up_proj.weight", "model.layers.99999999.x", "x", f"{name}.x"])] = (
            torch.zeros(2)
        )
    else:
        old = tensors[name]
        tensors[name] = {
            "longer": torch.cat([old, old]),
            "flat": old.reshape(1, -1),
            "integers": torch.zeros(old.shape, dtype=torch.int8),
            "scalar": torch.tensor(1.0),
        }[way]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return f"{name} {way}"


def _index(folder: Path, draw: random.Random) -> str:
    names = sorted(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    whole: Any = dict.fromkeys(names, "part.safetensors")
    content: Any = draw.choice(
        [
            {},
            [],
            {"weight_map": {}},
            {"weight_map": []},
            {"weight_map": 3},
            {"weight_map": whole | {names[0]: "gone.safetensors"}},
            {"weight_map": whole | {names[0]: 3}},
            {"weight_map": whole | {names[0]: ["part.safetensors"]}},
            {"weight_map": whole | {names[0]: "../part.safetensors"}},
            {"weight_map": whole | {names[0]: "/dev/zero"}},
            {"weight_map": whole | {names[0]: ""}},
        ]
    )
    (folder / INDEX).write_text(json.dumps(content))
    return json.dumps(content)[:60]
