"""`check-variant` on a variant that keeps what it promises, and on those that do not."""

import re
from pathlib import Path

import pytest

from deconattn.commands import main
from deconattn.errors import UserError
from deconattn.mixers import registry
from deconattn.mixers.plugins import load_plugins
from tests.train.test_own_state import BIASED

ZOO = Path(registry.__file__).parent / "zoo"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def written(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in BIASED
    path = folder / "mine.py"
    path.write_text(BIASED.replace(old, new, 1).replace('"biased"', '"mine"'))
    return path


def test_a_sound_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-variant", str(written(tmp_path))]) is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    for tried, figures in zip(lines[:6:2], lines[1:6:2], strict=True):
        assert tried.startswith("mine, 4 heads") and tried.endswith("map, parts of 2 tensor-parallel ranks")
        assert re.fullmatch(
            r"    [\d,]+ parameters, \+0\.0\d% of standard's; [\d,]+ FLOPs claimed, [\d,]+ counted; "
            r"[\d,]+ bytes saved for backward claimed, [\d,]+ measured",
            figures,
        )
    assert lines[6].startswith("variant 'mine': it mixes over document boundaries: look at context.document_ids")


def test_without_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check-variant", str(written(tmp_path, "    splits = ", "    splits = None and "))])
    assert capsys.readouterr().out.splitlines()[-1] == "mine declares no splits: it trains with --tp 1 alone"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("distance < 0", "distance < -1", "outputs before token 1 change with token 1: it reads what follows"),
        ("(2, 0)", "(1, 1)", "outputs before token 1 change with token 1"),
        ("num_attention_heads + 5", "num_attention_heads + 6", "num_parameters says .* for a layer that has"),
        ("self.scale * (", "(self.scale / 0) * (", "forward gives numbers that are not finite"),
        (
            "return self.output(",
            "return self.output((hidden - hidden).square().sum().sqrt() + ",
            "gradient is not finite",
        ),
        (
            "    def forward(",
            "    from deconattn.mixers import Decoding\n\n    class Wrong(Decoding):\n"
            "        def extend(self, mixer, hidden, static, step, cache):\n            return hidden\n\n"
            "    decoding = Wrong()\n\n    def forward(",
            "tokens that are decoded with the cache get other logits",
        ),
        ("config, work)", "config, rows, length)", r"forward_flops takes \(config, work\), a Workload"),
        (
            "    def forward(",
            "    def extend(self):\n        pass\n\n    def forward(",
            "extend is no member of a mixer: .*Decoding",
        ),
        ("return self.output(", "return 1 + self.output(", "the parts of --tp 2 do not sum to the whole"),
        ('@register("biased")', "", "registers no variant"),
    ],
)
def test_a_broken_promise(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        main(["check-variant", str(written(tmp_path, old, new))])


def test_a_mixer_of_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check-variant", str(ZOO / "sliding_window.py")])
    assert capsys.readouterr().out.startswith("sliding-window, 4 heads")


def test_a_mixer_of_the_zoo_is_no_plugin() -> None:
    with pytest.raises(UserError, match="variant 'shift' is found by its name, without its file"):
        load_plugins([ZOO / "shift.py"])
