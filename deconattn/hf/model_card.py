"""Model card, the README.md of an export: the Hub's metadata, what the model is, and how to use it."""

import json
from dataclasses import dataclass
from importlib.metadata import requires, version
from itertools import groupby

import torch

from deconattn.hf.config_files import stock_model_type
from deconattn.layers.config import ModelConfig
from deconattn.shown import markdown_text


@dataclass(frozen=True)
class Provenance:
    """Origin of the weights; None or empty where it is not known.

    Attributes:
        step: training steps.
        datasets: names of the corpora that the model was trained on.
        base_model: what the weights were converted from.
        license: the Hub's identifier of the weights' licence.
        language: languages by their ISO 639-1 codes.
    """

    step: int | None = None
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()


def model_card(config: ModelConfig, dtype: torch.dtype, parameters: int, provenance: Provenance) -> str:
    """Return Markdown: what the model is, layer by layer, how to load it and how to fine-tune it."""
    stock = stock_model_type(config)
    trust = "" if stock else ", trust_remote_code=True"
    note = (
        f"A plain `{stock}` model: no code of DeconAttn is needed."
        if stock
        else "The code lies beside the weights: load with `trust_remote_code=True`, or `import deconattn` first. "
        f"It works with `{_tested_transformers()}`."
    )
    rows = {
        "parameters": f"{parameters:,}",
        "hidden size": f"{config.hidden_size} (feed-forward {config.intermediate_size})",
        "heads": f"{config.num_attention_heads} of size {config.head_dim}",
        "key and value heads": str(config.num_key_value_heads),
        "sequence length": str(config.max_position_embeddings),
        "vocabulary": f"{config.vocab_size:,}{' (tied)' if config.tie_word_embeddings else ''}",
        "weights": str(dtype).removeprefix("torch."),
    }
    if provenance.step is not None:
        rows["training steps"] = f"{provenance.step:,}"
    if provenance.datasets:
        rows["trained on"] = markdown_text(", ".join(provenance.datasets))
    if provenance.base_model:
        rows["started from"] = markdown_text(provenance.base_model)
    rows["written with"] = ", ".join(f"{name} {version(name)}" for name in ("deconattn", "torch", "transformers"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    layers = "\n".join(f"| {span} | `{variant}` |" for span, variant in _spans(config.layer_variants))
    return f"""---
{_metadata(provenance)}
---

# A language model trained with DeconAttn

| | |
|---|---|
{table}

| layers | mixing |
|---|---|
{layers}

{note}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH"{trust})
tokenizer = AutoTokenizer.from_pretrained("PATH"{trust})
```

Every linear layer takes LoRA, under whatever names the variants give theirs:

```python
from peft import LoraConfig, get_peft_model

model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
```
"""


def _tested_transformers() -> str:
    """Return the versions of transformers that this package declares."""
    return next(one for one in requires("deconattn") or () if one.startswith("transformers"))


def _metadata(provenance: Provenance) -> str:
    """Return the card's YAML; what is not known is left out, for whoever publishes the model to say."""
    known: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["deconattn"],
        "license": provenance.license,
        "language": list(provenance.language),
        "datasets": list(provenance.datasets),
        "base_model": provenance.base_model,
    }
    # A JSON string is a YAML string, whatever is in it.
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in known.items() if value)


def _spans(variants: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return runs of equal layers, numbered from 1."""
    spans, first = [], 1
    for variant, run in groupby(variants):
        last = first + len(list(run)) - 1
        spans.append((str(first) if first == last else f"{first}-{last}", variant))
        first = last + 1
    return spans
