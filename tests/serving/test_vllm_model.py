"""The served model against ours, made of a double of vLLM's layers: what one flat batch after the other gives."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import parse
from deconattn.mixers.mlp import matched_width
from deconattn.model.causal_lm import CausalLM
from deconattn.serving.vllm_plugin import SERVED, Checks, check
from tests.hf.models import LONGEST, MIXED, exported, small_config, tokens, trained
from tests.serving import vllm_double
from tests.serving.vllm_double import Attention, Ranks

ROOT = Path(__file__).parents[2]
GROUPED = {"num_key_value_heads": 2, "qk_norm": True, "attention_bias": False, "tie_word_embeddings": True}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with vllm_double.installed():
        yield


def engine_config(config: ModelConfig, **changes: Any) -> SimpleNamespace:
    """What our code reads of a `VllmConfig`."""
    options = {"max_model_len": LONGEST, "quantization": None, "tp_size": 1, "stages": 1} | changes
    quantization = options["quantization"]
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=DeconAttnConfig.of(config),
            max_model_len=options["max_model_len"],
            quantization=quantization,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        quant_config=None if quantization is None else SimpleNamespace(),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=options["tp_size"], pipeline_parallel_size=options["stages"]
        ),
    )


class Engine:
    """All ranks of all stages, loaded from an export."""

    def __init__(self, model: CausalLM, folder: Path, **changes: Any) -> None:
        self.config = engine_config(model.config, **changes)
        parallel = self.config.parallel_config
        stages = parallel.pipeline_parallel_size
        self.ranks = [Ranks(parallel.tensor_parallel_size, stage, stages) for stage in range(stages)]
        self.weights = load_file(exported(model, folder) / "model.safetensors")
        self.models = [ranks.run(lambda _: self._load()) for ranks in self.ranks]

    def _load(self) -> Any:
        from deconattn.serving.vllm_model import DeconAttnForCausalLM

        model = DeconAttnForCausalLM(vllm_config=self.config)
        loaded = model.load_weights(self.weights.items())
        assert {name for name, _ in model.named_parameters()} <= loaded
        model.process_weights_after_loading()
        return model

    def step(self, batch: list[tuple[str, Tensor, int]]) -> Tensor:
        """(sequence, new ids [n], how many came before) each -> logits [T, V]; all ranks must agree."""
        ids = torch.cat([new for _, new, _ in batch])
        positions = torch.cat([torch.arange(past, past + len(new)) for _, new, past in batch])
        Attention.sequences = [(name, len(new)) for name, new, _ in batch]
        passed: list[Any] = [None] * self.ranks[0].tp_size
        for ranks, models in zip(self.ranks, self.models, strict=True):
            passed = ranks.run(lambda rank: models[rank](ids, positions, passed[rank]))  # noqa: B023  (run at once)
        logits = [model.compute_logits(hidden) for model, hidden in zip(self.models[-1], passed, strict=True)]
        for other in logits[1:]:
            torch.testing.assert_close(logits[0], other, atol=0, rtol=0)
        return logits[0]

    def logits(self, sequences: dict[str, Tensor]) -> dict[str, Tensor]:
        """As vLLM goes: prompts in chunks, several in one flat batch, then token by token, in changing order."""
        parts: dict[str, list[Tensor]] = {name: [] for name in sequences}
        done = dict.fromkeys(sequences, 0)
        for turn, most in enumerate([7, 30] + [1] * max(map(len, sequences.values()))):
            names = [name for name in sequences if done[name] < len(sequences[name])]
            batch = [(name, sequences[name][done[name] :][:most], done[name]) for name in names[:: 1 - 2 * (turn % 2)]]
            if not batch:
                return {name: torch.cat(logits) for name, logits in parts.items()}
            for (name, new, _), logits in zip(batch, self.step(batch).split([len(b[1]) for b in batch]), strict=True):
                parts[name].append(logits)
                done[name] += len(new)
        raise AssertionError("sequences were left")


def assert_same(engine: Engine, model: CausalLM, longest: int = LONGEST) -> None:
    lengths = {"a": longest, "b": 5, "c": 1, "d": longest // 2}
    sequences = {name: tokens(1, length, seed)[0] for seed, (name, length) in enumerate(lengths.items())}
    served = engine.logits(sequences)
    for name, ids in sequences.items():
        with torch.no_grad():
            expected = model.logits(ids[None])[0]
        torch.testing.assert_close(served[name], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["biases", "grouped, normed, tied"])
@pytest.mark.parametrize(
    "variants",
    [*((variant, variant) for variant in SERVED), MIXED, MIXED[::-1], ("standard", "fixedseq", "rndemb", "mlp")],
    ids=lambda variants: ",".join(variants),
)
def test_flat_batches_give_our_logits(variants: tuple[str, ...], changes: dict[str, Any], tmp_path: Path) -> None:
    model = trained(small_config(*variants, **changes))
    assert_same(Engine(model, tmp_path / "out"), model)


@pytest.mark.parametrize(("tp_size", "width"), [(2, 32), (4, 32), (2, 33)])
def test_tensor_parallel_ranks(tp_size: int, width: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With two key/value heads: one a rank, then two ranks with the same one; and mlp layers that cannot be cut."""
    model = trained(small_config(*MIXED, hidden_size={32: 48, 33: 32}[width], num_key_value_heads=2))
    assert matched_width(model.config) == width
    engine = Engine(model, tmp_path / "out", tp_size=tp_size)
    assert_same(engine, model)
    Checks.verify_and_update_config(engine.config)
    assert ("do not divide the width 33" in caplog.text) == (width == 33)


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["untied", "tied"])
@pytest.mark.parametrize("variants", [("staticemb", "mlp", "standard", "staticemb"), ("standard", "mlp")])
def test_pipeline_stages(variants: tuple[str, ...], changes: dict[str, Any], tmp_path: Path) -> None:
    model = trained(small_config(*variants, **changes))
    engine = Engine(model, tmp_path / "out", stages=2)
    assert_same(engine, model)
    # What the profiling run gives a later stage has the tensors that a stage passes on.
    stage, later = (models[0] for models in engine.models)
    Attention.sequences = [("profile", 3)]
    passed = engine.ranks[0].run(lambda _: stage(torch.zeros(3, dtype=torch.long), torch.arange(3)))[0]
    empty = later.make_empty_intermediate_tensors(3, torch.float32, torch.device("cpu"))
    assert {name: tensor.shape for name, tensor in empty.tensors.items()} == {
        name: tensor.shape for name, tensor in passed.tensors.items()
    }


def test_a_context_shorter_than_the_fixed_stream(tmp_path: Path) -> None:
    model = trained(small_config(*MIXED))
    engine = Engine(model, tmp_path / "out", max_model_len=24)
    assert engine.models[0][0].model.layers[0].self_attn.queries.shape == (24, 32)
    assert_same(engine, model, longest=24)


def test_embeddings_in_place_of_ids(tmp_path: Path) -> None:
    model, ids = trained(small_config(*MIXED)), tokens(1, 9)[0]
    engine = Engine(model, tmp_path / "out")
    Attention.sequences = [("a", 9)]
    with torch.no_grad():
        embeddings = model.model.embed_tokens(ids)
        (hidden,) = engine.ranks[0].run(
            lambda rank: engine.models[0][rank](None, torch.arange(9), inputs_embeds=embeddings)
        )
        torch.testing.assert_close(hidden, model.model(ids[None])[0], atol=2e-5, rtol=0)


def test_fixed_maps_follow_weights_that_a_trainer_replaces(tmp_path: Path) -> None:
    config = small_config(*MIXED)
    model, other = trained(config), trained(config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    engine = Engine(model, tmp_path / "out")
    (served,) = engine.models[0]
    addresses = [buffer.data_ptr() for buffer in served.buffers()]
    for named in other.named_parameters():
        engine.ranks[0].run(lambda _, named=named: served.load_weights([named]))
    assert_same(engine, other)
    assert [buffer.data_ptr() for buffer in served.buffers()] == addresses  # CUDA graphs hold them


def test_a_reload_that_ends_after_us_is_refused(tmp_path: Path) -> None:
    engine = Engine(trained(small_config("fixedseq")), tmp_path / "out")
    (served,) = engine.models[0]
    served.lm_head.to("meta")
    name = "model.norm.weight"
    with pytest.raises(UserError, match="start a new engine"):
        engine.ranks[0].run(lambda _: served.load_weights([(name, engine.weights[name])]))


@pytest.mark.parametrize(("variant", "name"), [("rndemb", "fixed_embeddings"), ("fixedseq", "fixed_ids")])
def test_an_export_without_its_fixed_stream_is_refused(variant: str, name: str, tmp_path: Path) -> None:
    engine = Engine(trained(small_config(variant)), tmp_path / "out")
    del engine.weights[f"model.{name}"]
    with pytest.raises(UserError, match=rf"no tensor model\.{name}"):
        engine.ranks[0].run(lambda _: engine._load())


@pytest.mark.parametrize(
    ("variants", "changes", "message"),
    [
        (("standard", "approximate"), {}, r"'approximate' cannot be served by vLLM.*generate"),
        (("nonapproximate",), {}, r"'nonapproximate' cannot be served by vLLM"),
        (("runningmean",), {}, r"'runningmean' cannot be served by vLLM"),
        (("standard",), {"quantization": "fp8"}, r"--quantization fp8 is not supported"),
        (("rndemb",), {"max_model_len": LONGEST + 1}, rf"--max-model-len {LONGEST + 1} is beyond .* {LONGEST}"),
        (("fixedseq",), {"max_model_len": LONGEST + 1}, r"fixedseq reads"),
        (("mlp", "rndemb"), {"stages": 2}, r"--pipeline-parallel-size 2: .*rndemb"),
    ],
)
def test_what_would_be_served_wrongly_is_refused(
    variants: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    config = engine_config(small_config(*variants), **changes)
    with pytest.raises(UserError, match=message) as refused:
        check(config)
    assert "\n" not in str(refused.value)
    from deconattn.serving.vllm_model import DeconAttnForCausalLM

    with pytest.raises(UserError, match=message):  # where a version of vLLM does not ask beforehand
        DeconAttnForCausalLM(vllm_config=config)


def test_a_yarn_of_another_sharpness_is_refused() -> None:
    """Which vLLM would take from the factor alone; the usual one passes."""
    check(engine_config(small_config("standard", rope_scaling=parse("yarn:4", 80))))
    with pytest.raises(UserError, match="attention_factor of 1, which vLLM does not read"):
        check(engine_config(small_config("standard", rope_scaling=parse("yarn:4,attention=1", 80))))


def test_a_longer_context_without_a_fixed_stream_is_served(tmp_path: Path) -> None:
    model = trained(small_config("standard", "staticemb", "mlp"))
    assert_same(Engine(model, tmp_path / "out", max_model_len=LONGEST + 20), model, longest=LONGEST + 20)


def test_the_entry_point_registers_us_with_vllm() -> None:
    import vllm
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["vllm.general_plugins"].values()
    register = EntryPoint("deconattn", value, "vllm.general_plugins").load()
    register()
    register()  # vLLM may do so in every process, and more than once
    architecture = "DeconAttnForCausalLM"
    module, name = vllm.ModelRegistry.models[architecture].split(":")
    from deconattn.serving.vllm_model import DeconAttnForCausalLM

    assert getattr(sys.modules[module], name) is DeconAttnForCausalLM
    with pytest.raises(UserError, match="approximate"):
        MODELS_CONFIG_MAP[architecture].verify_and_update_config(engine_config(small_config("approximate")))
    for variants, caching in ((MIXED, True), (("mlp", "mlp"), False)):
        config = engine_config(small_config(*variants))
        MODELS_CONFIG_MAP[architecture].verify_and_update_config(config)
        assert config.cache_config.enable_prefix_caching == caching


def test_the_plugin_is_importable_without_vllm() -> None:
    program = "import sys; sys.modules['vllm'] = None; import deconattn.serving.vllm_plugin"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
