"""An evaluation's scores on Weights & Biases."""

import os
from typing import Any, Literal

from deconattn.evaluation.results import Row, as_numbers


def log_to_wandb(project: str, row: Row, config: dict[str, Any], perplexities: dict[int, float]) -> None:
    """One run with a model's scores; offline where there is no key.

    Args:
        config: the model and the settings; `step` of it is the scores' step.
        perplexities: WikiText's by context length.
    """
    import wandb

    mode: Literal["offline"] | None = None if os.environ.get("WANDB_MODE") or wandb.login(prompt=False) else "offline"
    with wandb.init(project=project, name=row.label, job_type="evaluation", config=config, mode=mode) as run:
        scores = {f"eval/{title}": value for title, value in as_numbers(row).items()}
        scores |= {f"eval/Wiki ppl at {length}": value for length, value in perplexities.items()}
        run.log(scores, step=config.get("step"))
