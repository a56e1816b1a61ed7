"""GGUF files, of llama.cpp and what is built on it, as Hugging Face folders: transformers' loader dequantizes them.

OUT/
    config.json  generation_config.json  model.safetensors (fp32)
    tokenizer.json  tokenizer_config.json  and a chat template, where the file has one
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from deconattn.checkpoint.hf_weights import EMBEDDING, HEAD, WEIGHTS
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.progress import Advance, progress_bar

SUFFIX = ".gguf"
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose tensors transformers reads and our model has; Mistral's files say llama."""


def is_gguf(path: Path) -> bool:
    """Whether this is a file that is called .gguf."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def write_folder(source: Path, out: Path) -> tuple[str, int]:
    """Write the model and the tokenizer of a GGUF file into an existing folder.

    Returns:
        The model type, and the number of parameters.

    Raises:
        UserError: the gguf package is missing, or the file is damaged, or holds what transformers would not read.
    """
    require("gguf", str(source))
    tensors = _check(source)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _our_bar(tensors):
        try:
            model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except Exception as error:  # whatever its reader comes up with
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source} cannot be read by transformers ({reason}): give another file") from error
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state[HEAD]
    if len(state) != tensors:
        raise UserError(
            f"{source} has {tensors} tensors, of which transformers reads {len(state)}: give the model as a Hugging "
            "Face folder"
        )
    fields = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(name, None)
    _as_written(fields)
    if len(tokenizer) > state[EMBEDDING].shape[0]:
        raise UserError(f"{source}: its tokenizer has {len(tokenizer)} ids, beyond its embedding: give another file")
    config = type(model.config)(**fields | {"architectures": [type(model).__name__]})
    config.save_pretrained(out)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return config.model_type, sum(tensor.numel() for tensor in state.values())


def _check(source: Path) -> int:
    """Refuse what transformers would pass over; return the number of tensors."""
    import gguf

    try:
        reader = gguf.GGUFReader(source)
        keys: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of a damaged file: what a wrong offset leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} cannot be read ({reason}): restore it") from error
    kind = keys.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{source}: a {kind} cannot be converted: give one of {', '.join(ARCHITECTURES)}")
    scaling, names = keys.get(f"{kind}.rope.scaling.type", "none"), {tensor.name for tensor in reader.tensors}
    lost = {
        f"rope scaling ({kind}.rope.scaling.type {scaling})": scaling != "none",
        "rope scaling (rope_freqs.weight)": "rope_freqs.weight" in names,
        f"experts ({kind}.expert_count)": keys.get(f"{kind}.expert_count", 0) > 0,
        "a sliding window": keys.get(f"{kind}.attention.sliding_window", 0) > 0,
    }
    for feature, present in lost.items():
        if present:
            raise UserError(
                f"{source} has {feature}, which transformers does not read of a GGUF file: give the model as a Hugging "
                "Face folder"
            )
    width = keys.get(f"{kind}.attention.key_length")
    if kind == "qwen3" and width not in (None, 128):
        raise UserError(f"{source} has heads of {width}, and transformers reads 128 of a {kind}: give another file")
    return len(names)


def _as_written(fields: dict[str, Any]) -> None:
    """Turn numbers of float32 back into what was meant: 9.999999747378752e-06 into 1e-05, which is the same to it."""

    def shortest(value: float) -> float:
        return float(str(np.float32(value)))

    fields["rms_norm_eps"] = shortest(fields["rms_norm_eps"])
    fields["rope_parameters"]["rope_theta"] = shortest(fields["rope_parameters"]["rope_theta"])


@contextmanager
def _our_bar(tensors: int) -> Iterator[None]:
    """Show our progress bar in the place of transformers', one of which does not ask whether it is wanted."""
    import transformers.modeling_gguf_pytorch_utils as reading

    from deconattn.checkpoint.silence import silent_transformers

    bar = reading.tqdm
    with silent_transformers(), progress_bar("reading tensors", tensors, "tensors") as advance:
        reading.tqdm = partial(_counted, advance)
        try:
            yield
        finally:
            reading.tqdm = bar


def _counted(advance: Advance, items: Iterable[Any], **_: Any) -> Iterator[Any]:
    """Yield what is read, as tqdm would."""
    for item in items:
        yield item
        advance(1)
