"""GGUF export, `model.gguf`: an all-standard model in one file for llama.cpp and what is built on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.hf.config_files import stock_model_type
from deconattn.hf.gguf_tokenizer import Vocabulary, read_vocabulary
from deconattn.layers.config import ModelConfig
from deconattn.progress import progress_bar

FILE_NAME = "model.gguf"


def gguf_vocabulary(config: ModelConfig, tokenizer_folder: Path | None) -> Vocabulary:
    """Return the tokenizer as :func:`write_gguf` takes it.

    Raises:
        UserError: llama.cpp cannot run this model, or would read other tokens, or the gguf package is missing.
    """
    require("gguf", "--gguf")
    others = sorted(set(config.layer_variants) - {"standard"})
    if others:
        raise UserError(
            f"--gguf: llama.cpp cannot run {others[0]} layers, only models that are standard throughout: "
            "leave out --gguf"
        )
    if stock_model_type(config) is None:
        raise UserError(
            "--gguf: llama.cpp would have to know this as Qwen2 (attention_bias without qk_norm, and heads as wide as "
            "hidden_size together), as Qwen3 (qk_norm without attention_bias) or as Llama (neither), but it is none "
            "of them: leave out --gguf"
        )
    if config.rope_scaling is not None:
        raise UserError(
            f"--gguf: rope scaling ({config.rope_scaling.rope_type}) is not written to the file: leave out --gguf, and "
            "let llama.cpp's own converter read the export"
        )
    if tokenizer_folder is None:
        raise UserError("--gguf: the file has to hold the tokenizer: export with it, or leave out --gguf")
    return read_vocabulary(tokenizer_folder, config.vocab_size)


def write_gguf(
    path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype, vocabulary: Vocabulary
) -> None:
    """Write the weights, without a tied head, and all that llama.cpp must know of the model.

    Matrices are stored in `dtype`. llama.cpp wants vectors in float32: they have the values of `dtype` all the same.
    """
    import gguf

    architecture = gguf.MODEL_ARCH[str(stock_model_type(config)).upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    vector = gguf.GGMLQuantizationType.F32
    matrix, file_type = {
        torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    }[dtype]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name("A language model trained with DeconAttn")
        writer.add_file_type(file_type)
        _add_dimensions(writer, config)
        _add_vocabulary(writer, vocabulary)
        for name, tensor in tensors.items():
            own_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            kind = matrix if tensor.dim() > 1 else vector
            size = tensor.numel() * gguf.GGML_QUANT_SIZES[kind][1]
            writer.add_tensor_info(own_name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress_bar(f"writing {FILE_NAME}", len(tensors), "tensors") as advance:
            for name, tensor in tensors.items():  # one after the other: no second copy of the model is in memory
                writer.write_tensor_data(_stored(_interleaved(name, tensor, config), dtype))
                advance(1)
    finally:
        writer.close()


def _interleaved(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Order a Llama's query and key channels as llama.cpp rotates them: neighbours together, not the halves."""
    if stock_model_type(config) != "llama" or not name.endswith((".q_proj.weight", ".k_proj.weight")):
        return tensor
    return tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _add_dimensions(writer: Any, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    # Documents are packed with the separator between them: it begins one as it ends one, and it pads.
    writer.add_bos_token_id(vocabulary.eos_token_id)
    writer.add_eos_token_id(vocabulary.eos_token_id)
    writer.add_pad_token_id(vocabulary.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _stored(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """Convert to `dtype`; vectors to float32, and bfloat16, which NumPy lacks, to its bits."""
    tensor = tensor.detach().cpu().to(dtype).contiguous()
    if tensor.dim() == 1:
        tensor = tensor.float()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
