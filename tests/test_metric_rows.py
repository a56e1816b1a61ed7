"""Which rows of metrics.jsonl count."""

import json
import math
from pathlib import Path
from typing import Any

from deconattn.metric_rows import METRICS, read_rows, valid_lines


def text(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def steps(*numbers: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": number, "loss": loss} for number in numbers]


def rows_of(content: str) -> list[dict[str, Any]]:
    return [row for _, row in valid_lines(content)]


def test_what_is_no_row_is_passed_over() -> None:
    odd = (
        '{"step": 2, "lo\nnull\n[1]\n{"loss": 1}\n{"step": "2"}\n{"step": 2, "val_loss": [1]}\n' + "[" * 100_000 + "\n"
    )
    assert rows_of(text(*steps(1)) + odd + text(*steps(2)) + '{"step": 3, "loss": 1}') == steps(1, 2)


def test_a_line_that_stands_twice_counts_once() -> None:
    rows = [*steps(1, 2), {"step": 2, "val_loss": 3.0}]
    assert rows_of(text(*rows, rows[-1], rows[0])) == rows


def test_where_steps_go_back_the_later_rows_count() -> None:
    before = [*steps(1, 2), {"step": 2, "val_loss": 3.0}, *steps(3, 4), {"step": 4, "val_loss": 2.5}]
    after = [*steps(3, 4, loss=2.0), {"step": 4, "val_loss": 2.5}, *steps(5, loss=2.0)]
    assert rows_of(text(*before, *after)) == [*before[:3], *after]


def test_a_validation_that_is_made_up_and_a_late_word_of_a_failed_save_take_nothing_back() -> None:
    rows = [*steps(1, 2, 3), {"step": 2, "save_failed": "full"}, {"step": 2, "val_loss": 3.0}, {"step": 2, "eval/A": 1}]
    assert rows_of(text(*rows)) == rows


def test_words_are_numbers_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text(text({"step": 1, "loss": "nan", "grad_norm": "inf", "save_failed": "disk full"}))
    [row] = read_rows(path)
    assert math.isnan(row["loss"]) and row["grad_norm"] == math.inf and row["save_failed"] == "disk full"
