"""The code that an export carries: one file, what the model needs and no more, readable, its own."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deconattn.errors import UserError
from deconattn.hf.source import AUTO_MAP, modeling_source
from deconattn.hf.source.layout import laid_out
from deconattn.mixers import registry, variant_names
from deconattn.mixers.plugins import load_plugins
from tests.hf.models import load_plugin, small_config, tokens, trained

VARIANTS = ("standard", "staticemb", "rndemb", "fixedseq", "mlp", "approximate", "nonapproximate")
LINES = {VARIANTS: 3000, ("mlp",): 1950}
"""What a file may grow to: 2765 and 1738 when this was written."""
AWKWARD = '''"""A plugin that gives things names that others have, and hides names from one another."""
from __future__ import annotations
import math, functools
import torch
from torch.nn import functional as F
from deconattn.mixers import Decoding, Mixer, ProjectedMixer, register, registry
from deconattn.mixers.standard import Standard as Base
from deconattn.ops import reference as formulas, precision
from deconattn.ops.precision import at_least_fp32 as linear
try:
    import nowhere_to_be_found
except ImportError:
    nowhere_to_be_found = None

calls: int = 0
CHUNK = 3; BLOCK = 2
scores = [Block for Block in range(CHUNK)]  # a name of the package's, in a comprehension and for a list


class Block:
    """Another Block than the package's."""

    rows: int = BLOCK

    def scores(self, values: "Rotary | None" = None) -> "Block":
        global calls
        calls += 1
        return self


class Rotary(Block): pass


def silu(x):
    def inner(linear):
        from math import sqrt as at_least_fp32
        from deconattn.ops.reference import token_scores

        return at_least_fp32(linear) + 0 * len([scores for scores in (1, 2)])
    return x * inner(4.0) / 2 + len(scores) - CHUNK


class Unused(ProjectedMixer):
    """Carried all the same: nobody can tell what a plugin reaches by a name that it makes up."""
    def forward(self, hidden, static, context):
        raise NotImplementedError


@register("left behind")
class LeftBehind(Base):
    decoding, attention_map, map_blocks = Decoding(), Base.attention_map, Base.map_blocks

    def forward(self, hidden, static, context):
        raise NotImplementedError


@functools.cache
def softmax_map(size, /, *, scale: float = 1.0):
    """A local name that is also the package's."""
    return scale * size


@register("awkward")
class Awkward(Base):
    fixed_names = {"mixed": "_mixed"}
    decoding = Decoding()
    map_blocks = Mixer.map_blocks

    def forward(self, hidden, static, context):
        reference_softmax_map = hidden  # what the function below could be called in the file
        assert isinstance(Rotary().scores(), Block) and calls and nowhere_to_be_found is None
        precise = linear(hidden).to(hidden.dtype) + 0 * precision.at_least_fp32(reference_softmax_map)
        return getattr(self, self.fixed_names["mixed"])(precise, static, context)

    def _mixed(self, hidden, static, context):
        queries, keys = context.rotary(*self.queries_keys(silu(hidden)))
        map_ = formulas.softmax_map(queries, self.per_query_head(keys))
        return self.output(map_.to(hidden.dtype) @ self.per_query_head(self.values(hidden)))

    def attention_map(self, hidden, static, context):
        queries, keys = context.rotary(*self.queries_keys(silu(hidden)))
        return formulas.softmax_map(queries, self.per_query_head(keys))

    @classmethod
    def forward_flops(cls, config, work):
        return 7
'''


def run(text: str, folder: Path, name: str = "modeling_deconattn") -> ModuleType:
    """The file as a module."""
    module = ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(text, str(folder / f"{name}.py"), "exec"), vars(module))
    finally:
        del sys.modules[name]
    return module


def definitions(text: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.fixture
def no_new_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def awkward(tmp_path: Path, no_new_variants: None) -> Iterator[Path]:
    path = tmp_path / "awkward.py"
    path.write_text(AWKWARD)
    load_plugins([path])
    yield path
    sys.modules.pop("deconattn_plugin_awkward", None)


@pytest.mark.parametrize("variants", [*((name,) for name in VARIANTS), VARIANTS], ids="-".join)
def test_what_is_carried(variants: tuple[str, ...], tmp_path: Path) -> None:
    text = modeling_source(variants)
    module = run(text, tmp_path)
    bases = {"standard"} if "staticemb" in variants else set()  # a StaticEmb is a Standard
    assert set(module._REGISTRY) == {*variants, *bases}
    assert set(AUTO_MAP.values()) <= vars(module).keys()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
        assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch", "transformers"}
        for decorator in getattr(node, "decorator_list", []):  # either would import torch._dynamo
            assert not ast.unparse(decorator).startswith(("torch.compiler", "torch._dynamo"))
    for word in ("autograd.Function", "flops(", "activation_bytes", "num_parameters", "Split", "triton", "os.environ"):
        assert word not in text
    assert not definitions(text) & {"contract_faults", "backward", "splits", "rank_widths", "shard_of"}
    for name, variant in {"approximate": "Approximate", "rndemb": "RndEmb", "mlp": "MLP"}.items():
        assert (variant in definitions(text)) == (name in variants)
    if variants in LINES:
        assert len(text.splitlines()) < LINES[variants]


@pytest.mark.parametrize("kind", ["all", "mlp", "plugin", "awkward"])
def test_a_linter_and_a_formatter_have_nothing_to_say(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "plugin":
        text = modeling_source(["runningmean"], [load_plugin(tmp_path)])
    elif kind == "awkward":
        text = modeling_source(["awkward"], [request.getfixturevalue("awkward")])
    else:
        text = modeling_source(VARIANTS if kind == "all" else [kind])
    path = tmp_path / "modeling_deconattn.py"
    path.write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    # A plugin's own style is its author's; no name of it may be unknown or unused.
    commands = [["check", *(["--select", "F"] if kind == "awkward" else [])]]
    commands += [] if kind == "awkward" else [["format", "--check", "--line-length", "120"]]
    for command in commands:
        done = subprocess.run([*ruff, *command, "--isolated", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_one_graph_serves_every_length(tmp_path: Path) -> None:
    module = run(modeling_source(VARIANTS), tmp_path)
    config = small_config(*VARIANTS, num_key_value_heads=2)
    model = module.DeconAttnForCausalLM(module.DeconAttnConfig(**vars(config))).eval()
    model.load_state_dict(trained(config).state_dict())

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids).logits

    length = torch.export.Dim("length", min=2, max=config.max_position_embeddings)
    graph = torch.export.export(Logits(), (tokens(2, 30),), dynamic_shapes={"input_ids": {1: length}}).module()
    for count in (3, 70):
        ids = tokens(2, count)
        with torch.no_grad():
            torch.testing.assert_close(graph(ids), model(ids).logits, atol=2e-5, rtol=0)


def test_comments_and_sections_and_header(tmp_path: Path) -> None:
    plugin = load_plugin(tmp_path)
    text = modeling_source(["runningmean", "standard"], [plugin])
    head = text[: text.index('"""')]
    assert "DeconAttn 0.1.0" in head and "MIT" in head and "deconattn.mixers.standard" in head
    assert str(tmp_path) not in text
    titles = [line.split()[2] for line in text.splitlines() if line.startswith("# ---- ")]
    assert titles[0] == "deconattn.errors" and titles[-1] == "deconattn.hf.modeling_deconattn"
    assert titles.index("deconattn.ops.plain") < titles.index("deconattn.mixers.standard") < titles.index("plugin")
    assert titles.index("plugin") < titles.index("deconattn.model.decoder")
    assert "# A variant of a third party: the mean of the values so far.\n" in text
    assert "        # Not the module: this is its call already.\n" in text
    assert "type: ignore" not in text and ":func:" not in text


def test_the_same_text_wherever_a_plugin_lies(tmp_path: Path, no_new_variants: None) -> None:
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        texts.append(modeling_source(["runningmean"], [load_plugin(folder)]))
    assert texts[0] == texts[1]


def test_names_of_a_plugin(awkward: Path, tmp_path: Path) -> None:
    text = modeling_source(["awkward", "standard"], [awkward])
    carried = definitions(text)
    assert {"AwkwardBlock", "AwkwardRotary", "awkward_silu", "Block", "Rotary", "Unused", "Awkward"} <= carried
    assert not {"LeftBehind", "forward_flops"} & carried
    assert "CHUNK = 3; AWKWARD_BLOCK = 2" in text
    module = run(text, tmp_path)
    config = small_config("awkward", "standard")
    model = trained(config)
    exported = module.DeconAttnForCausalLM(module.DeconAttnConfig(**vars(config)))
    exported.load_state_dict(model.state_dict())
    ids = tokens(2, 40)
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(ids).logits, model.logits(ids), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import deconattn.mixers\n", "from deconattn"),
        ("def f():\n    import deconattn\n", "from deconattn"),
        ("from . import helper\n", "one file"),
        ("from deconattn.nowhere import x\n", "no module deconattn.nowhere"),
        ("from deconattn.mixers import x\n", "no x in deconattn.mixers"),
        ("def f():\n    from deconattn.mixers import x\n", "no x in deconattn.mixers"),
        ("from deconattn.mixers import *\n", r"carry `\*`"),
        ("x = 1; from deconattn.mixers import register\n", "line of its own"),
        ("try:\n    from deconattn.mixers import register\nexcept ImportError:\n    pass\n", "conditionally"),
        ("from deconattn.ops import reference\nformulas = [reference]\n", "as an object"),
        ("def f(:\n", "line 1 is no Python"),
    ],
)
def test_what_cannot_be_carried_is_refused(text: str, message: str, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        modeling_source(["standard"], [plugin])
    assert "plugin.py" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_doubled_plugins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        modeling_source(["standard"], [tmp_path / "gone.py"])
    paths = [tmp_path / folder / "same.py" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("")
    with pytest.raises(UserError, match=r"same\.py"):
        modeling_source(["standard"], paths)


def test_a_variant_without_its_file_is_refused(tmp_path: Path, no_new_variants: None) -> None:
    plugin = load_plugin(tmp_path)
    assert "runningmean" in variant_names()
    with pytest.raises(UserError, match=f"{plugin.name}: give that file"):
        modeling_source(["runningmean"])


@pytest.mark.parametrize("brackets", ["sum()", "()", "[]", "dict()"])
def test_a_long_comprehension_is_laid_out_as_code(brackets: str) -> None:
    names = "a_name_that_has_become_much_longer_than_it_was_before_the_module_went_before_it"
    text = f"{brackets[:-1]}{names} * {names} for {names} in numbers if {names}{brackets[-1]}"
    assert ast.dump(ast.parse(laid_out(f"x = {text}\n"))) == ast.dump(ast.parse(f"x = {text}"))
