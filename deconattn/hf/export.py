"""Write a trained model as a Hugging Face folder.

    OUT/
        config.json  generation_config.json  README.md
        model.safetensors               (or model-00001-of-N.safetensors and model.safetensors.index.json)
        tokenizer.json  tokenizer_config.json
        modeling_deconattn.py           the model's own code, unless a stock architecture is what was trained
        model.gguf                      for llama.cpp, where asked for

The same weights give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.durable import check_replaceable, replaceable_folder
from deconattn.errors import UserError
from deconattn.hf.config_files import config_json, generation_config_json, longest, stock_model_type
from deconattn.hf.gguf_file import FILE_NAME as GGUF_NAME
from deconattn.hf.gguf_file import write_gguf
from deconattn.hf.gguf_tokenizer import Vocabulary
from deconattn.hf.model_card import Provenance, model_card
from deconattn.hf.source import FILE_NAME, modeling_source
from deconattn.hf.tokenizer_files import check_tokenizer, write_tokenizer
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.progress import Advance, progress_bar

MAX_SHARD_SIZE = "5GB"
COMMAND = "export"
UNKNOWN = Provenance()
NOTHING: Mapping[str, Any] = {}


def export(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    out: Path,
    *,
    dtype: torch.dtype,
    tokenizer_folder: Path | None,
    plugins: Sequence[Path] = (),
    provenance: Provenance = UNKNOWN,
    kept: Mapping[str, Any] = NOTHING,
    overwrite: bool = False,
    gguf: Vocabulary | None = None,
) -> None:
    """Write `out`, whole or not at all.

    Args:
        weights: the canonical state dict (names and shapes of `CausalLM(config).state_dict()`).
        dtype: what floating-point tensors are stored in.
        tokenizer_folder: holds a tokenizer.json or a SentencePiece tokenizer.model; None leaves it out.
        plugins: files of third-party variants; they are carried along and must be loaded in this process.
        provenance: for the model card.
        kept: what a model that the run was converted from had and training does not change
            (:mod:`deconattn.checkpoint.origin`).
        overwrite: replace an earlier export at `out`.
        gguf: what :func:`deconattn.hf.gguf_file.gguf_vocabulary` made of the tokenizer, to write `model.gguf` too.

    Raises:
        UserError: `out` is in use, the weights are not the configuration's, or the tokenizer cannot be expressed.
    """
    out = out.resolve()
    check_replaceable(out, COMMAND, overwrite)  # before the weights are looked at
    tensors = _checked(weights, config)
    stock = stock_model_type(config)
    source = "" if stock else modeling_source(config.layer_variants, plugins)
    eos = None if tokenizer_folder is None else load_tokenizer(tokenizer_folder).eos_token_id
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith("model.fixed_"))
    with replaceable_folder(out, COMMAND, overwrite) as folder:
        _write_json(folder / "config.json", config_json(config, dtype, eos, kept))
        _write_json(folder / "generation_config.json", generation_config_json(config, eos, kept))
        if tokenizer_folder is not None and "chat_template" in kept:
            (folder / "chat_template.jinja").write_text(kept["chat_template"], encoding="utf-8")
        (folder / "README.md").write_text(model_card(config, dtype, parameters, provenance), encoding="utf-8")
        if stock is None:
            (folder / FILE_NAME).write_text(source, encoding="utf-8")
        if tokenizer_folder is not None:
            model_type, length, bos = stock or "deconattn", longest(config, kept), kept.get("bos_token_id")
            write_tokenizer(tokenizer_folder, folder, model_type, length, bos)
            check_tokenizer(tokenizer_folder, folder)
        _write_weights(tensors, dtype, folder)
        if gguf is not None:
            write_gguf(folder / GGUF_NAME, tensors, config, dtype, gguf)


def _checked(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Check the weights; return them in the model's order, without the tied head."""
    with torch.device("meta"):
        expected = CausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(f"the weights lack {name}: export a checkpoint of this very configuration")
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"{name} has shape {shapes}: export a checkpoint of this very configuration")
    surplus = sorted(set(weights) - set(expected) - {"lm_head.weight"})
    if surplus:
        raise UserError(f"the configuration has no {surplus[0]}: export a checkpoint of this very configuration")
    return {name: weights[name] for name in expected}


def _write_weights(tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(stored, max_shard_size=MAX_SHARD_SIZE)
    with progress_bar("writing weights", sum(tensor.nbytes for tensor in stored.values()), "bytes") as advance:
        _write_shards(stored, split.filename_to_tensors, folder, advance)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_shards(
    stored: Mapping[str, Tensor], files: Mapping[str, Sequence[str]], folder: Path, advance: Advance
) -> None:
    for file_name, names in files.items():
        # Clones: safetensors refuses tensors that share storage, as views of one flat buffer do.
        shard = {name: stored[name].detach().clone(memory_format=torch.contiguous_format) for name in names}
        try:
            save_file(shard, folder / file_name, metadata={"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise UserError(f"the weights could not be written ({error}): free space or give another folder") from error
        (folder / file_name).chmod(0o644)
        advance(sum(tensor.nbytes for tensor in shard.values()))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
