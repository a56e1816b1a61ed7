"""An export where DeconAttn is not installed: one fresh interpreter reads many, each with its own code only."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from deconattn.layers.head_parts import head_parts
from deconattn.layers.rope_scaling import parse
from deconattn.mixers import mixer_class, registry
from deconattn.mixers.plugins import load_plugins
from deconattn.model.causal_lm import CausalLM
from tests.hf.models import LONGEST, PLUGIN, exported, load_plugin, small_config, tokens, trained

VARIANTS = ("staticemb", "rndemb", "fixedseq", "mlp", "approximate", "nonapproximate")
ABLATION = PLUGIN.replace("self.values(hidden)", "self.values(hidden).abs()")
SAVED_AGAIN = ("mixed", "plugin/model")
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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

folder = Path(sys.argv[1])
given = {name: torch.tensor(numbers) for name, numbers in json.loads((folder / "inputs.json").read_text()).items()}
ids, mask, positions = given["ids"], given["mask"], given["positions"]


def load(name):
    model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True, dtype=torch.float64)
    code = sys.modules[type(model).__module__]
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(model.config).__module__ == type(model.model).__module__ == code.__name__
    code.ROWS = 16  # of a map at once, so that short sequences have several
    return model


models = {name: load(name) for name in sys.argv[2].split()}  # all of them before any runs
for name in sys.argv[3].split():
    models[name].save_pretrained(folder / f"{name}-again")
    assert [path.name for path in (folder / f"{name}-again").glob("*.py")] == ["modeling_deconattn.py"]
    models[f"{name}-again"] = load(f"{name}-again")
    config = AutoConfig.from_pretrained(folder / f"{name}-again", trust_remote_code=True)
    assert config.deconattn_version and config.to_dict() == models[f"{name}-again"].config.to_dict()
    base = AutoModel.from_pretrained(folder / f"{name}-again", trust_remote_code=True, dtype=torch.float64)
    assert type(base).__name__ == "DeconAttnModel"
    with torch.no_grad():
        torch.testing.assert_close(base(ids).last_hidden_state, models[name].model(ids).last_hidden_state)
for name, model in models.items():
    found = {}
    kinds = {"plain": {}, "padded": {"attention_mask": mask}, "packed": {"position_ids": positions}}
    for kind, inputs in kinds.items():
        model.zero_grad()
        output = model(ids, labels=ids, **inputs)
        output.loss.backward()
        found |= {f"{kind} logits": output.logits.detach(), f"{kind} loss": output.loss.detach()}
        gradients = {weight: value.grad for weight, value in model.named_parameters() if value.grad is not None}
        found |= {f"{kind} {weight}": gradient for weight, gradient in gradients.items()}
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    found["generated"] = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, use_cache=False, **options), found["generated"]), name
    (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in found.items()}, folder / "out" / name)
stock = AutoModelForCausalLM.from_pretrained(folder / "stock")
assert type(stock).__name__ == "Qwen2ForCausalLM"
assert "deconattn" not in sys.modules
"""


def inputs() -> dict[str, Tensor]:
    """Two rows, the second padded on the left, or each of three documents."""
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    positions = torch.cat([torch.arange(length) for length in (25, 5, 30)])
    return {"ids": ids, "mask": mask, "positions": positions[None].expand(2, -1)}


@pytest.fixture(scope="module")
def models() -> dict[str, CausalLM]:
    found = {name: trained(small_config(name, name)) for name in VARIANTS}
    mixed = small_config(
        *VARIANTS, "standard", num_key_value_heads=2, qk_norm=True, rope_scaling=parse("yarn:4", LONGEST)
    )
    return found | {"mixed": trained(mixed)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, CausalLM]) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    for name, model in models.items():
        exported(model, folder / name)
    # Two files that register one name: models of one configuration, in folders of one name.
    ablation = folder / "ablation.py"
    ablation.write_text(ABLATION)
    for name in ("plugin", "ablation"):
        with pytest.MonkeyPatch.context() as patch:  # as in processes of their own
            ours = {variant: mixer_class(variant) for variant in (*VARIANTS, "standard")}
            patch.setattr(registry, "_REGISTRY", ours)
            file = load_plugin(folder) if name == "plugin" else ablation
            load_plugins([file])
            models[f"{name}/model"] = trained(small_config("runningmean", "standard"))
            (folder / name).mkdir()
            exported(models[f"{name}/model"], folder / name / "model", plugins=[file])
    run_isolated(folder, list(models), SAVED_AGAIN)
    return folder


def run_isolated(folder: Path, names: Sequence[str], saved_again: Sequence[str] = ()) -> None:
    """Read exports of these names where there is no DeconAttn, and write what they compute under `out`."""
    exported(trained(small_config("standard")), folder / "stock")
    (folder / "inputs.json").write_text(json.dumps({name: value.tolist() for name, value in inputs().items()}))
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | home
    command = [sys.executable, "-I", "-c", PROGRAM, str(folder), " ".join(names), " ".join(saved_again)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


NAMES = [*VARIANTS, "mixed", "plugin/model", "ablation/model"]


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}-again" for name in SAVED_AGAIN)])
def test_loss_and_gradients_and_generation(name: str, folder: Path, models: dict[str, CausalLM]) -> None:
    compare(folder / "out" / name, models[name.removesuffix("-again")])


def compare(outcome: Path, trained_model: CausalLM) -> None:
    """What an export computed against what the package does with the weights that it was made of."""
    found, given = load_file(outcome), inputs()
    with pytest.MonkeyPatch.context() as patch:  # the classes that this very model was trained with
        known = {}
        for variant, layer in zip(trained_model.config.layer_variants, trained_model.model.layers, strict=True):
            names = [part.mixer for part in head_parts(variant)] or [variant]
            known |= zip(names, type(layer.self_attn).made_of(), strict=True)
        patch.setattr(registry, "_REGISTRY", known)
        ours = DeconAttnForCausalLM(DeconAttnConfig.of(trained_model.config)).double().eval()
    ours.load_state_dict(trained_model.state_dict())
    kinds = {"plain": {}, "padded": {"attention_mask": given["mask"]}, "packed": {"position_ids": given["positions"]}}
    for kind, arguments in kinds.items():
        ours.zero_grad()
        output = ours(given["ids"], labels=given["ids"], **arguments)
        output.loss.backward()
        real = given["mask"].bool() if kind == "padded" else torch.ones(2, 60, dtype=torch.bool)
        close(found.pop(f"{kind} logits")[real], output.logits[real])
        close(found.pop(f"{kind} loss"), output.loss)
        for weight, value in ours.named_parameters():
            if value.grad is not None:
                close(found.pop(f"{kind} {weight}"), value.grad)
    for row, prompt in enumerate((given["ids"][:1], given["ids"][1:, 20:])):
        for _ in range(4):
            with torch.no_grad():
                prompt = torch.cat([prompt, ours(prompt).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert found["generated"][row, -prompt.shape[1] :].tolist() == prompt[0].tolist()
    assert set(found) == {"generated"}


def test_two_exports_of_one_name_have_their_own_code(folder: Path) -> None:
    plugin, ablation = (load_file(folder / "out" / name / "model") for name in ("plugin", "ablation"))
    assert (plugin["plain logits"] - ablation["plain logits"]).abs().max() > 0.1


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other.detach(), rtol=1e-8, atol=1e-9)
