"""The README.md of an export."""

from itertools import groupby

import torch

from deconattn.hf.config_files import stock_model_type
from deconattn.model.config import ModelConfig


def model_card(config: ModelConfig, dtype: torch.dtype, parameters: int, step: int | None) -> str:
    """Markdown: what the model is, layer by layer, and how to load it."""
    stock = stock_model_type(config)
    trust = "" if stock else ", trust_remote_code=True"
    note = (
        f"A plain `{stock}` model: no code of DeconAttn is needed."
        if stock
        else "The code lies beside the weights: load with `trust_remote_code=True`, or `import deconattn` first."
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
    if step is not None:
        rows["training steps"] = f"{step:,}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    layers = "\n".join(f"| {span} | `{variant}` |" for span, variant in _spans(config.layer_variants))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- deconattn
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
"""


def _spans(variants: tuple[str, ...]) -> list[tuple[str, str]]:
    """Runs of equal layers, numbered from 1."""
    spans, first = [], 1
    for variant, run in groupby(variants):
        last = first + len(list(run)) - 1
        spans.append((str(first) if first == last else f"{first}-{last}", variant))
        first = last + 1
    return spans
