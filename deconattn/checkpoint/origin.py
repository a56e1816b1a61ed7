"""What a run that began as a Hugging Face model keeps of it for its export: what training does not change."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from deconattn.checkpoint.kinds import HF_CONFIG, read_config, read_object
from deconattn.errors import UserError
from deconattn.json_files import reason

GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_OF_A_FILE = ("transformers_version", "_from_model_config", "_commit_hash", "max_length")


def origin_of(folder: Path) -> dict[str, Any]:
    """Return fields of a run's configuration: the model's name, and what its exports carry on.

    Raises:
        UserError: a damaged file.
    """
    config = read_config(folder)
    generation = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    try:
        GenerationConfig(**generation)
    except Exception as error:  # whatever a wrong type meets
        raise UserError(f"{folder / GENERATION} cannot be read ({reason(error)}): correct it") from error
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for path, values in ((HF_CONFIG, config), (GENERATION, generation)):
            if values.get(name) is not None:
                _check_ids(folder / path, name, values[name], name == "eos_token_id")
        ids[name] = config.get(name)
    kept = {
        **ids,
        "max_position_embeddings": config.get("max_position_embeddings"),
        "generation_config": {name: value for name, value in generation.items() if name not in _OF_A_FILE},
        "chat_template": _chat_template(folder),
    }
    return {
        "base_model": folder.resolve().name,
        "kept": {name: value for name, value in kept.items() if value is not None},
    }


def _check_ids(path: Path, name: str, value: Any, may_be_several: bool) -> None:
    ids = value if isinstance(value, list) and may_be_several else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise UserError(f"{path}: {name} is {json.dumps(value)[:80]}, no token id: correct it")


def _chat_template(folder: Path) -> str | None:
    path = folder / TEMPLATE
    if path.exists():
        try:
            if not path.is_file():
                raise ValueError("not a file")
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it") from None
    template = read_object(folder / TOKENIZER).get("chat_template") if (folder / TOKENIZER).exists() else None
    return template if isinstance(template, str) else None
