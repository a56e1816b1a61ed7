"""An export where DeconAttn is not installed: one fresh interpreter reads several, with its own code only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deconattn.model.causal_lm import CausalLM
from tests.hf.models import MIXED, exported, load_plugin, small_config, tokens, trained

PROGRAM = """
import json, sys
from pathlib import Path


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deconattn":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, NotInstalled())
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

folder = Path(sys.argv[1])
ids = torch.tensor(json.loads((folder / "ids.json").read_text()))
mask = torch.ones_like(ids)
mask[1, :20] = 0
for name in ("mixed", "plugin"):
    model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model.save_pretrained(folder / f"{name}-again")
    again = AutoModelForCausalLM.from_pretrained(folder / f"{name}-again", trust_remote_code=True)
    for kind, loaded in (("", model), ("-again", again)):
        with torch.no_grad():
            output = loaded(ids, attention_mask=mask)
            new = loaded.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, eos_token_id=None)
        save_file({"logits": output.logits, "generated": new}, folder / f"{name}{kind}.safetensors")
stock = AutoModelForCausalLM.from_pretrained(folder / "stock")
assert type(stock).__name__ == "Qwen2ForCausalLM"
assert "deconattn" not in sys.modules
"""


@pytest.fixture(scope="module")
def models() -> dict[str, CausalLM]:
    return {"mixed": trained(small_config(*MIXED, "approximate", "nonapproximate", num_key_value_heads=2))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, CausalLM]) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    plugin = load_plugin(folder)
    models["plugin"] = trained(small_config("runningmean", "standard"))
    exported(models["mixed"], folder / "mixed")
    exported(models["plugin"], folder / "plugin", plugins=[plugin])
    exported(trained(small_config("standard")), folder / "stock")
    (folder / "ids.json").write_text(json.dumps(tokens(2, 70).tolist()))
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | home
    command = [sys.executable, "-I", "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["", "-again"])
@pytest.mark.parametrize("name", ["mixed", "plugin"])
@torch.no_grad()
def test_logits_and_generation(name: str, kind: str, folder: Path, models: dict[str, CausalLM]) -> None:
    output = load_file(folder / f"{name}{kind}.safetensors")
    model, ids = models[name], tokens(2, 70)
    rows = [ids[:1], ids[1:, 20:]]
    for row, prompt in enumerate(rows):
        expected = model.logits(prompt)[0]
        torch.testing.assert_close(output["logits"][row, -prompt.shape[1] :], expected, atol=2e-5, rtol=0)
        for _ in range(2):
            prompt = torch.cat([prompt, model.logits(prompt)[:, -1:].argmax(dim=-1)], dim=1)
        assert output["generated"][row, -prompt.shape[1] :].tolist() == prompt[0].tolist()
