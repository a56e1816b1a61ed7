"""The prediction of steps on GPUs that are not at hand: that operations, parts and depths are counted as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.plots.data import Origin
from benchmarks.plots.prediction import BEGIN, END, Prediction, draw_prediction, predicted, prediction_section
from benchmarks.plots.section import with_section
from benchmarks.roofline import predict
from benchmarks.roofline.counting import Counting, Regions
from benchmarks.roofline.prediction import counted, deepened, works_of
from benchmarks.roofline.report import markdown
from benchmarks.roofline.works import PARTS, Sizes, mixing_flops, part_of, size
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost.cards import CARDS, GAP, OF_BANDWIDTH
from deconattn.cost.work import Work
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.flops import training_flops
from tests.nullgpu.build import build, missing

LENGTH, ROWS, VOCABULARY = 16, 2, 40
SIZES = Sizes(LENGTH, 96, VOCABULARY)


def config(layers: int) -> ModelConfig:
    words = "--variant mlp --hidden-size 24 --intermediate-size 96 --num-attention-heads 2 --num-hidden-layers"
    flags = parse_training_flags([*words.split(), str(layers), "--seq-len", str(LENGTH), "--vocab-size", "40"])
    return model_config(flags.model, VOCABULARY, LENGTH)


def works(layers: int) -> dict[Work, int]:
    """Of a forward and a backward pass of a small model."""
    model = CausalLM(config(layers))
    regions = Regions()
    regions.follow(model)
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    counting = Counting(SIZES, regions)
    with counting:
        model(tokens, tokens).total.backward()
    return dict(counting.works)


def one(function: Any) -> Work:
    """The only operation of a function that moves anything."""
    counting = Counting(SIZES, Regions())
    with counting:
        function()
    ((work, count),) = counting.works.items()
    assert count == 1
    return work


def test_products_are_those_of_the_formula():
    found = works(2)
    of_products = sum(work.flops * count for work, count in found.items())
    assert of_products == training_flops(config(2), ROWS, LENGTH)
    parts = counted(found, 1)
    assert parts["feed-forward products"].tflops * 1e12 == pytest.approx(2 * 3 * 6 * ROWS * LENGTH * 24 * 96)
    assert parts["head and loss"].tflops * 1e12 == pytest.approx(3 * 2 * ROWS * LENGTH * 24 * VOCABULARY)


def test_the_backward_pass_belongs_where_the_forward_pass_did():
    parts = counted(works(2), 1)
    assert {name for name, part in parts.items() if part.launches} >= {
        "embedding", "mixers' products", "feed-forward products", "elementwise", "head and loss",
    }  # fmt: skip
    # The embedding's gradient is a table of its own, written in the backward pass.
    assert parts["embedding"].gigabytes * 1e9 >= 4 * VOCABULARY * 24
    assert sum(part.launches for part in parts.values()) == sum(works(2).values())


def test_deeper_models_have_more_of_the_same():
    predicted_of_five, traced = deepened(works(2), works(3), 5), works(5)
    assert predicted_of_five == traced


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        (lambda a, b: a + b, 3 * 64),
        (lambda a, b: a.add_(b), 3 * 64),
        (lambda a, b: a.copy_(b), 2 * 64),
        (lambda a, b: a.zero_(), 64),
        (lambda a, b: a.mul_(2), 2 * 64),
        (lambda a, b: a * a, 2 * 64),
        (lambda a, b: a[:1].expand(4, 4) + b, 16 + 2 * 64),
        (lambda a, b: torch.mm(a, b, out=torch.empty(4, 4)), 3 * 64),
        (lambda a, b: torch.nn.functional.embedding(torch.tensor([1, 2]), a), 2 * 8 + 2 * 32),
        (lambda a, b: torch._foreach_add_([a, b], 1.0), 4 * 64),
    ],
)
def test_bytes(operation: Any, moved: int):
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    assert one(lambda: operation(a, b)).bytes == moved


def test_views_and_new_memory_move_nothing():
    counting = Counting(SIZES, Regions())
    with counting:
        a = torch.empty(4, 4)
        a.view(16)[2:].unflatten(0, (7, 2)).T.detach()
        a.flatten(0)
    assert not counting.works
    assert size(torch.zeros(1, 4).expand(5, 4)) == 16


def test_an_operator_of_ours_is_looked_into():
    """Products within it are products; what its kernel is given is its own traffic."""

    @torch.library.custom_op("roofline_test::fixed_map", mutates_args=())
    def operator(queries: Tensor, values: Tensor) -> Tensor:
        counting.triton("kernel", {"queries": queries, "values": values, "n": 3})
        return values[0] @ queries[0].T

    counting, queries, values = Counting(SIZES, Regions()), torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)
    with counting:
        operator(queries, values)
    own, product = sorted(counting.works, key=lambda work: work.kind)
    assert (own.kind, own.bytes, own.launches, own.flops) == ("kernel", 2 * 128, 1, 2 * 16 * 8)
    assert (product.kind, product.flops) == ("product", 2 * 4 * 8 * 4)


def test_generated_kernels_read_and_write_what_they_change():
    counting = Counting(SIZES, Regions())
    counting.triton("triton_poi_fused_add_0", {"in_ptr0": torch.zeros(4), "in_out_ptr0": torch.zeros(8), "xnumel": 8})
    assert next(iter(counting.works)).bytes == 16 + 2 * 32


def test_mixing_flops():
    heads = {"queries": torch.zeros(2, 3, 8, 4), "values": torch.zeros(2, 3, 8, 4)}
    attention = 2 * (2 * 3 * 8 * 8 * 4)  # scores and mixing, half of each
    assert mixing_flops("deconattn::taylor_tiles", heads) == attention
    assert mixing_flops("deconattn::taylor_tiles_backward", heads) == 2.5 * attention
    assert mixing_flops("aten::_scaled_dot_product_flash_attention", {"query": heads["queries"]}) == attention
    fixed = {"queries": torch.zeros(3, 8, 4), "values": heads["values"]}
    assert mixing_flops("deconattn::fixed_map", fixed) == (1 + 2) * 3 * 8 * 8 * 4


def test_parts_of_products():
    sizes = Sizes(2048, 2048, 50304)  # the feed-forward width is the length, as in 70m
    assert part_of("layers", "aten::mm", "product", (16384, 512, 2048), sizes) == "feed-forward products"
    assert part_of("layers", "aten::mm", "product", (512, 16384, 4096), sizes) == "feed-forward products"
    assert part_of("layers", "aten::mm", "product", (2048, 512, 512), sizes) == "mixers' products"  # one row's
    wider = Sizes(2048, 6144, 50304)  # 1.7b's
    assert part_of("layers", "aten::mm", "product", (2048, 2048, 6144), wider) == "feed-forward products"
    assert part_of("layers", "aten::mm", "product", (2048, 18432, 2048), wider) == "mixers' products"


def test_time_on_a_card():
    card = CARDS["H100"]
    moved = Work("norms", "aten::x", "memory", 0, 3_350_000_000, 2)
    assert card.best(moved) == pytest.approx(1e-3)
    assert card.expected(moved) == pytest.approx(1e-3 / OF_BANDWIDTH + 2 * GAP)
    product = Work("mixing", "aten::mm", "product", 989_000_000_000, 1, 1, smallest=4096)
    assert card.best(product) == pytest.approx(1e-3)
    assert 0.6 < 1e-3 / card.expected(product) < 0.75


def result(found: dict[Work, int], side: str = "after", mode: str = "compiled") -> dict[str, Any]:
    return predict.row_of(predict.Arguments(), side, "70m", "mlp", mode, found)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    big = {Work("feed-forward products", "aten::mm", "product", 10**13, 10**9, 1, smallest=512): 8}
    little = {Work("elementwise", "aten::add", "memory", 0, 100_000, 1): 80_000}
    return [result(big | little, "before"), result(big)]


def test_parts_sum_to_the_step(rows: list[dict[str, Any]]):
    before, after = (row["predicted"]["H100"] for row in rows)
    assert sum(after["parts"].values()) == pytest.approx(after["expected"], rel=1e-3)
    assert sum(before["parts"].values()) < before["expected"]  # by the host's launches
    assert before["host"] == pytest.approx(before["expected"], rel=1e-3)
    assert set(after["parts"]) == set(PARTS)


def test_what_has_no_formula_is_told(capsys: pytest.CaptureFixture[str]):
    result({Work("mixing", "aten::x", "memory", 0, 1, 1): 1})
    assert "0% of the formula's FLOPs were seen" in capsys.readouterr().err


def test_tables_and_section(rows: list[dict[str, Any]], tmp_path: Path):
    options = {"micro_batches": 8, "micro_batch_size": 8, "seq_len": 2048}
    assert "| mlp | 10,001 → 1 | 2 → 1 |" in markdown(rows, options)
    found = Prediction(options, rows, Origin("none", "2026-01-02", "torch 2.14", "python x.py"))
    (tmp_path / "roofline.svg").touch()
    section = prediction_section(found, tmp_path, tmp_path)
    assert "not a measurement" in section
    assert "![roofline](roofline.svg)" in section
    page = with_section(f"a\n{BEGIN}\n{END}", section, BEGIN, END)
    assert with_section(page, section, BEGIN, END) == page
    assert predicted(tmp_path) is None
    origin = {"date": "d", "command": "c", "machine": {"cpu": "A", "cores": 1}, "versions": {}}
    (tmp_path / "roofline.json").write_text(json.dumps(origin | {"options": options, "results": rows}))
    read = predicted(tmp_path)
    assert read is not None
    assert read.rows == rows


@pytest.mark.slow
def test_picture(rows: list[dict[str, Any]], tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = Prediction({}, rows, Origin("none", "2026-01-02", "torch 2.14", "python x.py"))
    draw_prediction(found, tmp_path / "picture")
    assert "mlp, before" in (tmp_path / "picture.svg").read_text()


def test_without_a_cuda_build_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict, "parse", lambda _: predict.Arguments())
    monkeypatch.setattr(predict, "missing", lambda: "PyTorch is no CUDA build")
    with pytest.raises(UserError, match="no CUDA build"):
        predict.main()


@pytest.mark.slow
def test_a_step_on_the_null_gpu(tmp_path: Path):
    """Products and mixing of a compiled step are those of the formula, through our kernels."""
    if reason := missing():
        pytest.skip(reason)
    from tests.conftest import ROOT

    arguments = predict.Arguments(seq_len=256, micro_batch_size=2)
    orders = [
        {
            "words": arguments.words("70m", "rndemb", mode, 2),
            "vocabulary": 50304,
            "micro_batches": arguments.micro_batches,
            "reset": True,
        }
        for mode in ("compiled", "eager")
    ]
    for found in predict.traced(orders, ROOT, build(tmp_path / "gpu"), tmp_path):
        assert not isinstance(found, str), found
        parts = counted(found, arguments.micro_batches)
        assert all(parts[part].launches for part in PARTS if part != "copies"), parts
        assert {work.name for work in found if work.kind == "kernel"} == {
            "deconattn::fixed_map", "deconattn::fixed_map_backward",
        }  # fmt: skip


def test_works_survive_json():
    work = Work("mixing", "x", "memory", 1, 2, 3)
    assert works_of([{**work.__dict__, "count": 4}]) == {work: 4}
