"""Trained models of any kind as Hugging Face models: an export, a stock model, a run or a checkpoint."""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deconattn.checkpoint.format import CHECKPOINTS, Checkpoint, open_checkpoint
from deconattn.checkpoint.hf_config import MODEL_TYPES, STOCK_TYPES, check_one_rotary, read_model_config
from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.checkpoint.kinds import HF_CONFIG, kind_of, read_config
from deconattn.checkpoint.manifest import is_step_name
from deconattn.checkpoint.silence import silent_transformers
from deconattn.checkpoint.without_layers import check_skip, without_layers
from deconattn.config.probe_source import is_probe
from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from deconattn.hf.tokenizer_files import check_tokenizer, write_tokenizer
from deconattn.layers.config import ModelConfig
from deconattn.mixers import unknown_names
from deconattn.mixers.plugins import load_plugins
from deconattn.model.decoder import Decoder
from deconattn.model.streams import Streams
from deconattn.shown import one_line

Precision = Literal["fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StoredModel:
    """Opened model: everything but its weights has been read.

    Attributes:
        path: the folder that was given.
        config: Hugging Face's configuration; of a run, what its export would have.
        tokenizer: Hugging Face's; of our models it gives the ids that they were trained on, and adds none.
        label: what tables and pictures call it.
        checkpoint: the one checkpoint that was verified and is read; None where the folder is Hugging Face's.
        skipped: numbers, from 1, of the layers that are left out.
    """

    path: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    label: str
    checkpoint: Checkpoint | None
    _read: Callable[[torch.dtype | None], PreTrainedModel]
    skipped: frozenset[int] = frozenset()

    @cached_property
    def model_config(self) -> ModelConfig:
        """Our configuration of the model.

        Raises:
            UserError: its layers are not ours.
        """
        if isinstance(self.config, DeconAttnConfig):
            return self.config.to_model_config()
        if self.config.model_type in MODEL_TYPES:
            return read_model_config(self.path)
        raise UserError(
            f"{self.path} is a {self.config.model_type}, whose layers are not ours to look into: give a run, a "
            f"checkpoint, an export, or a model of {', '.join(STOCK_TYPES)}"
        )

    @property
    def longest(self) -> int | None:
        """Maximum sequence length: that of the fixed stream; None where nothing sets a limit."""
        if not isinstance(self.config, DeconAttnConfig):
            return None
        fixed = Streams.of(self.config.layer_variants or ()).fixed
        return self.config.max_position_embeddings if fixed else None

    def load(self, precision: Precision | None = None) -> PreTrainedModel:
        """Read the weights; return the model in evaluation mode, on the GPU where there is one.

        Args:
            precision: of the weights; by default what an export stores and what a run computed in.

        Raises:
            UserError: weights that are not this configuration's.
        """
        model = self._read(None if precision is None else _DTYPES[precision])
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def decoder(self) -> Decoder:
        """Return the decoder of :meth:`decoder_and_head`."""
        return self.decoder_and_head()[0]

    def decoder_and_head(self) -> tuple[Decoder, nn.Module]:
        """Read the weights in fp32, whatever the model was trained in; return decoder and head, on the GPU if any.

        Raises:
            UserError: weights that are not this configuration's, or layers that are not ours.
        """
        config, model = self.model_config, self.load("fp32")
        head = model.get_output_embeddings()
        if isinstance(self.config, DeconAttnConfig):
            return model.model, head
        with torch.device("meta"):
            decoder = Decoder(config)  # of a stock model, whose tensors have the same names
        decoder.load_state_dict(model.model.state_dict(), assign=True)
        return decoder.to(model.device).eval(), head

    def without(self, skipped: Collection[int]) -> "StoredModel":
        """Return the model without the layers of these numbers, from 1 (:mod:`deconattn.checkpoint.without_layers`).

        Raises:
            UserError: it cannot do without them.
        """
        check_skip(self.config, skipped, self.label)
        label = f"{self.label}, skip {','.join(str(number) for number in sorted(skipped))}"
        read = self._read
        return replace(
            self, label=label, _read=lambda dtype: without_layers(read(dtype), skipped), skipped=frozenset(skipped)
        )


def open_model(path: Path, plugins: Sequence[Path] = (), trust_plugins: bool = False) -> StoredModel:
    """Detect what `path` is, check it, and read all but the weights.

    No code that lies beside a model is run, nor a run's plugins unasked: exports of ours run on this package.

    Args:
        path: a Hugging Face folder (an export of ours, or any causal model that transformers has), a run folder
            (its newest good checkpoint), or one of its step-N folders.
        plugins: files that register the variants of third parties; of a run, in place of those it was trained with.
        trust_plugins: run those that a run was trained with.

    Raises:
        UserError: neither, damaged, without its tokenizer, or in need of code that is not here.
    """
    kind = kind_of(path)
    if kind == "checkpoint":
        return _in_checkpoint(path, plugins, trust_plugins)
    load_plugins(plugins)
    return _in_folder(path)


def _in_checkpoint(path: Path, plugins: Sequence[Path], trusted: bool) -> StoredModel:
    checkpoint = open_checkpoint(path).with_plugins(plugins, trusted)
    checkpoint.check("weights")
    if checkpoint.tokenizer_folder is None:
        if is_probe(checkpoint.flags.data.data):
            raise UserError(
                f"{checkpoint.folder} was trained on {checkpoint.flags.data.data[0]}, whose tokens are no text: it has "
                "no tokenizer; its run's val_loss is what is known of it, and export takes it as it is"
            )
        raise UserError(f"{checkpoint.folder} has no tokenizer/: put the tokenizer of its corpus there")
    longest, kept = checkpoint.model_config.max_position_embeddings, checkpoint.origin.get("kept", {})
    tokenizer = _exported_tokenizer(checkpoint.tokenizer_folder, longest, kept.get("bos_token_id"))
    eos = tokenizer.eos_token_id
    config = DeconAttnConfig.of(
        checkpoint.model_config, eos_token_id=eos, pad_token_id=eos, dtype=_DTYPES[checkpoint.precision]
    )
    read = partial(_read_checkpoint, checkpoint, config)
    return StoredModel(path, config, tokenizer, _label(path), checkpoint, read)


def _exported_tokenizer(source: Path, longest: int, bos: int | None) -> PreTrainedTokenizerBase:
    """Write the tokenizer that an export would carry, and return it."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(source, Path(folder), DeconAttnConfig.model_type, longest, bos)
        check_tokenizer(source, Path(folder))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _read_checkpoint(checkpoint: Checkpoint, config: DeconAttnConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    dtype = dtype or config.dtype
    with torch.device("meta"):
        model = DeconAttnForCausalLM(config)
    model.load_state_dict(checkpoint.weights(dtype), strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    return model


def _in_folder(folder: Path) -> StoredModel:
    path = folder / HF_CONFIG
    for entry in sorted(folder.iterdir()):
        if not entry.is_file() and not entry.is_dir():  # a FIFO would keep its reader waiting
            raise UserError(f"{entry} is no regular file: remove or restore it")
    raw = read_config(folder)
    model_type = raw["model_type"]
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: transformers has no model_type {model_type!r}, and code that lies beside a model is not run: "
            "give another model"
        )
    if model_type == DeconAttnConfig.model_type:
        check_one_rotary(path, raw)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        variants = config.to_model_config().layer_variants if isinstance(config, DeconAttnConfig) else ()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a configuration's class comes up with
        raise UserError(f"{path} is no configuration of {model_type} ({_last_line(error)}): correct it") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{path}: a {model_type} is no causal language model: give one")
    for variant in unknown_names(variants):
        raise UserError(f"{folder} has layers of variant {variant!r}: give its file with --plugin")
    _check_weights(folder, config)
    read = partial(_read_folder, folder, config)
    return StoredModel(folder, config, _tokenizer_in(folder), _label(folder), None, read)


def _check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Compare the weights' shapes with the configuration, which may ask for more memory than there is."""
    weights = HFWeights(folder)
    if getattr(config, "quantization_config", None) is not None:
        return  # its tensors have shapes of their own
    if config.model_type in MODEL_TYPES:
        weights.check_floats()
    layers = getattr(config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(weights):
        raise UserError(f"{folder / HF_CONFIG} says {layers} layers, the weights are {len(weights)}: correct either")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a model's class comes up with
        reason = _last_line(error)
        raise UserError(f"{folder / HF_CONFIG}: no model can be built of it ({reason}): correct it") from error
    weights.check_against(model)


def _tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    remedy = "copy its tokenizer there, or export with --tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer("a")["input_ids"])  # settings of a wrong type come to light when they are used
    except Exception as error:  # its library raises bare Exception
        if any(folder.glob("tokenizer*")):
            raise UserError(f"{folder}: its tokenizer cannot be read ({_last_line(error)}): {remedy}") from error
        raise UserError(f"{folder} has no tokenizer: {remedy}") from None
    # Without any file, transformers gives some models a tokenizer that knows no word.
    if not any((folder / name).is_file() for name in tokenizer.vocab_files_names.values()):
        raise UserError(f"{folder} has no tokenizer: {remedy}")
    return tokenizer


def _read_folder(folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    try:
        with silent_transformers():  # it would list what does not fit over many lines
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto" if dtype is None else dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                output_loading_info=True,
            )
    except Exception as error:  # whatever a model's class comes up with
        raise UserError(f"{folder} cannot be loaded ({_last_line(error)}): give another model") from error
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise UserError(f"{folder}: {name} is {tuple(stored)}, by config.json {tuple(expected)}: correct either")
    for kind, says in (("missing_keys", "lacks"), ("unexpected_keys", "has, beside what its config.json describes,")):
        for name in sorted(found[kind]):
            raise UserError(f"{folder} {says} {name}: give a whole model and its own config.json")
    end = model.generation_config.eos_token_id
    tokens = end if isinstance(end, list) else [end]
    if end is not None and (not tokens or any(type(token) is not int for token in tokens)):
        raise UserError(f"{folder}: eos_token_id is {end!r} in generation_config.json or config.json: give token ids")
    return model


def run_of(folder: Path) -> Path | None:
    """Return the run whose `step-N` folder this is; None where it is none."""
    folder = folder.resolve()
    is_step = is_step_name(folder.name) and folder.parent.name == CHECKPOINTS
    return folder.parents[1] if is_step else None


def _label(path: Path) -> str:
    run, name = run_of(path), path.resolve().name
    return one_line(name if run is None else f"{run.name}/{name}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
