"""Made-up rows of a grid, with accuracies that are given."""

from collections.abc import Callable, Iterator, Sequence

from deconattn.probing.results import Row

Accuracy = Callable[[str, str, int, int], float | None]
"""Of variant, pattern, difficulty and seed; None: the model failed."""


def rows_of(
    accuracy: Accuracy,
    models: Sequence[tuple[str, str]],
    task: str = "mqar",
    axis: str = "pairs",
    levels: Sequence[int] = (4, 8, 16),
    seeds: Sequence[int] = (0, 1, 2),
    size: str = "64x2",
    chance: float | None = 0.02,
    rates: Sequence[float] = (1e-3,),
    settings: str = "context=64&alphabet=64",
    asked: int = 2048,
) -> Iterator[Row]:
    """Give a row a model, seed and difficulty; the first seed has the other rates too, where it is half as good."""
    width, layers = map(int, size.split("x"))
    for variant, pattern in models:
        for seed in seeds:
            for lr in rates if seed == seeds[0] else rates[:1]:
                for level in levels:
                    value = accuracy(variant, pattern, level, seed)
                    yield Row(
                        task=task,
                        settings=settings,
                        axis=axis,
                        difficulty=level,
                        chance=chance,
                        variant=variant,
                        pattern=pattern,
                        size=size,
                        hidden_size=width,
                        layers=layers,
                        parameters=0 if value is None else 12 * width**2 * layers,
                        seed=seed,
                        lr=lr,
                        chosen=lr == rates[0],
                        steps=1000,
                        tokens=2_048_000,
                        solved_at=800 if value is not None and value > 0.995 else None,
                        accuracy=None if value is None else value if lr == rates[0] else value / 2,
                        loss=None if value is None else 4 * (1 - value),
                        asked=asked,
                        seconds=12.5,
                        state="failed" if value is None else "done",
                        reason=None if value is not None else "the loss is not a number at step 17",
                    )
