"""Weights of a Hugging Face folder: safetensors, in one file or several."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from deconattn.checkpoint.tensors import expected_headers, headers, open_tensors
from deconattn.errors import UserError
from deconattn.json_files import read_json, reason
from deconattn.layers.config import ModelConfig
from deconattn.mixers import unknown_names

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F64", "F32", "F16", "BF16")


class HFWeights:
    """Tensors of a folder by name, read one at a time.

    Raises:
        UserError: no safetensors, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._homes: dict[str, Path] = {}
        for path in _files(folder):
            for name, (dtype, shape) in headers(path).items():
                if name in self._homes:
                    raise UserError(f"{folder} has {name} twice, in {self._homes[name].name} and {path.name}")
                self._shapes[name], self._dtypes[name], self._homes[name] = shape, dtype, path
        self.folder = folder

    def check(self, config: ModelConfig) -> None:
        """Compare with what a model of this configuration has; its variants must be registered.

        Raises:
            UserError: the first tensor that is missing, surplus, of another shape or quantized.
        """
        for variant in unknown_names(config.layer_variants):
            raise UserError(f"{self.folder} has layers of variant {variant!r}: give its file with --plugin")
        layers = {int(match[1]) for name in self._shapes if (match := re.match(r"model\.layers\.(\d{1,9})\.", name))}
        if config.num_hidden_layers > len(layers):  # before as many are made
            raise UserError(
                f"{self.folder} lacks layers: it has {len(layers)}, by config.json {config.num_hidden_layers}: give a "
                "whole model and its own config.json"
            )
        parameters, buffers = expected_headers(config)
        expected = {name: shape for name, (_, shape) in (parameters | buffers).items()}
        if config.tie_word_embeddings:
            expected[HEAD] = expected[EMBEDDING]
        optional = {HEAD} if config.tie_word_embeddings else set()
        for name in sorted((expected.keys() - optional) ^ (self._shapes.keys() - optional)):
            lacks = "lacks" if name in expected else "has, beside what its config.json describes,"
            raise UserError(f"{self.folder} {lacks} {name}: give a whole model and its own config.json")
        for name, shape in self._shapes.items():
            if shape != expected[name]:
                raise UserError(f"{self.folder}: {name} is {shape}, by config.json {expected[name]}: correct either")
        self.check_floats()
        if config.tie_word_embeddings and HEAD in self._shapes and not self.read(HEAD).equal(self.read(EMBEDDING)):
            raise UserError(
                f"{self.folder}: {HEAD} differs from {EMBEDDING} though config.json ties them: "
                "set tie_word_embeddings to false there"
            )

    def check_against(self, model: nn.Module) -> None:
        """Compare with the shapes of any model, as far as their names agree; UserError at the first that differs."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(self._shapes.keys() & shapes.keys()):
            if self._shapes[name] != shapes[name]:
                raise UserError(
                    f"{self.folder}: {name} is {self._shapes[name]}, by config.json {shapes[name]}: correct either"
                )

    def check_floats(self) -> None:
        """Raise UserError if a weight is no floating-point number, by a Qwen model's or an export's names."""
        for name, dtype in self._dtypes.items():
            if dtype not in FLOATS and name != "model.fixed_ids":
                raise UserError(f"{self.folder}: {name} is quantized ({dtype}): give the original model")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors, by name."""
        return self._shapes

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def read(self, name: str) -> Tensor:
        """Read one tensor, in its stored dtype."""
        with open_tensors(self._homes[name]) as file:
            return file.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} cannot be read ({reason(error)}): restore it") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"{index} names {name!r}, which is no safetensors file beside it: restore it")
        paths = [folder / name for name in names]
        if not paths:
            raise UserError(f"{index} names no file: restore it")
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing: restore it")
        return paths
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise UserError(
            f"{folder} keeps its weights as pickles ({pickles[0]}), which can run code and are not read: save it as "
            "safetensors (from_pretrained, then save_pretrained, of a transformers that you trust it with)"
        )
    raise UserError(f"{folder} has no {WEIGHTS} or {INDEX}: give a whole model")
