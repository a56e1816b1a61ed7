"""The auto classes know our models once `deconattn` is imported, whichever import comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hf.models import exported, small_config, trained

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


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports(order: str, folder: Path) -> None:
    _run(f"import sys; {ORDERS[order]}\n{LOAD}", str(folder))


def test_importing_us_is_cheap() -> None:
    _run("import sys, deconattn\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")


def _run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
