"""The auto classes know our models once `deconattn` is imported, whichever import comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from deconattn.mixers import registry
from tests.hf.models import PLUGIN, exported, load_plugin, small_config, trained

ROOT = Path(__file__).parents[2]
LOAD = """
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model).__module__ == "deconattn.hf.modeling_deconattn", type(model)
"""
ORDERS = {
    "ours first": "import deconattn; import transformers",
    "ours last": "import transformers; transformers.AutoModelForCausalLM; import deconattn",
    "through the layers": "import deconattn; import transformers.modeling_layers; import transformers",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(trained(small_config("mlp", "standard")), tmp_path_factory.mktemp("registered") / "out")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ours last", "ours first", "through the layers"])
def test_any_order_of_imports(order: str, folder: Path) -> None:
    _run(f"import sys; {ORDERS[order]}\n{LOAD}", str(folder))


def test_importing_us_is_cheap() -> None:
    _run("import sys, deconattn\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")


PLUGINS = """
import sys, torch, deconattn
from pathlib import Path
from deconattn.errors import UserError
from deconattn.mixers.plugins import load_plugins
from transformers import AutoModel, AutoModelForCausalLM

folder = Path(sys.argv[1])


def refused(*plugins):
    try:
        load_plugins(plugins)
        AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True)
    except UserError as error:
        return str(error)


assert "'runningmean' is not registered: load the plugin file" in refused()
if len(sys.argv) > 2:
    assert "is not the code that this model was exported with" in refused(folder / "other.py")
    sys.exit()
assert refused(folder / "commented.py") is None
assert "'runningmean' is already registered by RunningMean in " in refused(folder / "other.py")
assert refused(folder / "commented.py") is None
for auto in (AutoModel, AutoModelForCausalLM):
    model = auto.from_pretrained(folder / "out")
    assert type(model).__module__ == "deconattn.hf.modeling_deconattn", type(model)
"""


@pytest.mark.slow
def test_a_plugins_other_code_does_not_serve_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    plugin = load_plugin(tmp_path)
    exported(trained(small_config("runningmean")), tmp_path / "out", plugins=[plugin])
    (tmp_path / "other.py").write_text(PLUGIN.replace("self.values(hidden)", "self.values(hidden).abs()"))
    (tmp_path / "commented.py").write_text(f"# Only a comment more.\n\n{PLUGIN}")
    _run(PLUGINS, str(tmp_path))
    _run(PLUGINS, str(tmp_path), "the other alone")


def _run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
