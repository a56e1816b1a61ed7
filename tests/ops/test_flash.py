"""Which flash-attn package is taken: by distribution and by GPU, with the next one where an import fails."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from deconattn.ops import flash

NAMES = ("flash-attn", "flash-attn-3", "flash-attn-4")
FUNCTIONS = """
def flash_attn_func(queries, keys, values, causal):
    return queries + 1, None
def flash_attn_varlen_func(queries, keys, values, **keywords):
    return queries
"""
FILES_2 = {
    "flash_attn/__init__.py": "from flash_attn.flash_attn_interface import flash_attn_func, flash_attn_varlen_func\n",
    "flash_attn/flash_attn_interface.py": "import flash_attn_2_cuda\n" + FUNCTIONS,
    "flash_attn_2_cuda.py": "",
    "flash_attn/cute/__init__.py": "from .interface import flash_attn_func, flash_attn_varlen_func\n",
    "flash_attn/cute/interface.py": "import cutlass.cute as cute\n" + FUNCTIONS,
    "hopper/__init__.py": "",
    "hopper/flash_attn_interface.py": FUNCTIONS,
}
"""The files of the source distribution of flash-attn 2.8.3 that its choice could meet, and what they import there;
for its compiled module, a stub. FlashAttention 3's module is not at the top, 4's cannot be imported."""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No package is known before or after."""

    def forget() -> None:
        flash._found.cache_clear()
        for name in list(sys.modules):
            if name.partition(".")[0] in ("flash_attn", "flash_attn_interface", "flash_attn_2_cuda"):
                del sys.modules[name]

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    forget()
    yield
    forget()


def install(folder: Path, name: str, release: str, files: dict[str, str]) -> None:
    """A distribution as pip leaves it: its metadata and its modules."""
    metadata = folder / f"{name.replace('-', '_')}-{release}.dist-info" / "METADATA"
    for path, text in {metadata: f"Name: {name}\nVersion: {release}\n"}.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


def install_2(folder: Path) -> None:
    install(folder, "flash_attn", "2.8.3", FILES_2)


def install_3(folder: Path) -> None:
    install(folder, "flash_attn_3", "3.0.0b1", {"flash_attn_interface.py": FUNCTIONS})


def install_4(folder: Path) -> None:
    install(folder, "flash-attn-4", "4.0.0b9", {"flash_attn/cute/__init__.py": FUNCTIONS})


def chosen(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """What a GPU of NVIDIA's takes; of AMD's, gfx942, for (9, 4)."""
    monkeypatch.setattr(torch.version, "hip", "6.4" if capability == (9, 4) else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    queries: Any = SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0))
    return flash.package(queries)


A100, L40, H100, B200, RTX_5090, MI300X, V100 = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (9, 4), (7, 0)
ALL = (install_2, install_3, install_4)


@pytest.mark.parametrize(
    ("installs", "expected"),
    [
        ((install_2,), dict.fromkeys((A100, L40, H100, B200, RTX_5090, MI300X), "flash-attn")),
        ((install_2, install_3), {A100: "flash-attn", H100: "flash-attn-3", B200: "flash-attn", MI300X: "flash-attn"}),
        (ALL, {L40: "flash-attn", H100: "flash-attn-3", B200: "flash-attn-4", MI300X: "flash-attn", V100: None}),
        ((install_3,), {A100: None, H100: "flash-attn-3", B200: None, MI300X: None}),
        ((install_4,), {A100: None, L40: None, H100: "flash-attn-4", B200: "flash-attn-4", MI300X: None}),
        ((), dict.fromkeys((A100, H100, B200, MI300X))),
    ],
)
def test_by_distribution_and_gpu(
    installs: tuple[Any, ...],
    expected: dict[tuple[int, int], str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for one in installs:
        one(tmp_path)
    for capability, name in expected.items():
        assert chosen(capability, monkeypatch) == name, capability
    assert chosen(H100, monkeypatch, torch.float32) is None


def test_the_next_one_where_an_import_fails_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """FlashAttention 4 without what it needs: on a B200 flash-attn 2 is taken, and nothing hides that."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    install_4(tmp_path)
    install_2(tmp_path)
    for _ in range(2):
        assert chosen(B200, monkeypatch) == "flash-attn"
    said = capsys.readouterr().err
    assert said.startswith("note: softmax attention by flash-attn 2.8.3; flash-attn-4 4.0.0b9 cannot be imported: ")
    assert "cutlass" in said and said.count("\n") == 1


def test_pytorch_where_nothing_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    install(tmp_path, "flash_attn", "2.8.3", {"flash_attn/__init__.py": "import flash_attn_2_cuda\n"})
    assert chosen(A100, monkeypatch) is None
    said = capsys.readouterr().err
    assert said.startswith("note: softmax attention by PyTorch's own kernels; flash-attn 2.8.3 cannot be imported: ")
    assert chosen(A100, monkeypatch) is None
    assert not capsys.readouterr().err


def test_a_package_is_a_constant_of_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No break where its functions are looked up."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    install_2(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100)

    def layer(queries: Tensor) -> Tensor:
        package = flash._package(0)
        assert package is not None
        return flash.attention(package, queries, queries, queries) * 2

    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1, 2, 1, 4)).equal(torch.full((1, 2, 1, 4), 2.0))
