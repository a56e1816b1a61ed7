"""A Hugging Face model as step 0 of a run of ours.

OUT/
    config.json             as if training had written it: `--resume` meets no contradiction
    checkpoints/step-0/     the weights in fp32, moments of zero, the corpus's tokenizer
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from deconattn import durable
from deconattn.checkpoint.format import CHECKPOINTS, seal, write_whole
from deconattn.checkpoint.hf_config import read_model_config
from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.checkpoint.manifest import Progress
from deconattn.checkpoint.moments import moments_of
from deconattn.checkpoint.origin import origin_of
from deconattn.checkpoint.origins import check_continued_text, lengthened, summary
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.run_config import RUN_CONFIG
from deconattn.convert.graft import graft, take_fitted
from deconattn.convert.run_flags import run_flags
from deconattn.data.manifest import TOKENIZER_NAMES
from deconattn.errors import UserError
from deconattn.json_files import read_bytes, reason
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import FIXED_TEXT, initialize
from deconattn.parallel.build import build_model
from deconattn.parallel.topology import Topology
from deconattn.train.inputs import TrainingData
from deconattn.train.run_folder import resolved_config


def write_run(source: Path, out: Path, arguments: Sequence[str], fitted: Path | None = None) -> str:
    """Write the run folder `out`, whole or not at all.

    Args:
        source: folder of a model that :mod:`deconattn.checkpoint.hf_config` reads.
        arguments: a training's flags.
        fitted: tensors that take the place of those, as a search writes them (:mod:`deconattn.surgery.found`).

    Returns:
        Lines that say which tensors were taken, initialised and left unused, and how the run will train.

    Raises:
        UserError: `out` is in use; the model, the flags or the data will not do.
    """
    check_free(out)
    replacements = {} if fitted is None else _read_fitted(fitted)
    origin = read_model_config(source)
    kept = origin_of(source)
    weights = HFWeights(source)
    flags = run_flags(arguments, source, origin)
    weights.check(origin)  # after the flags, which bring the plugins
    data = TrainingData(flags.data.data, flags)
    data.check_tokenizers()
    remark = check_vocabulary(data.tokenizer_path, data.vocab_size, source, origin.vocab_size)
    config = model_config(flags.model, data.vocab_size, flags.plan.longest)

    model = build_model(config, Topology())
    initialize(model, flags.optimization.seed, data.fixed_ids() if "text" in model.model.streams else None)
    given_text = frozenset({FIXED_TEXT} if flags.data.fixed_text else ())
    if flags.data.fixed_text and FIXED_TEXT in weights.shapes and "text" in model.model.streams:
        check_continued_text(model.model.fixed_ids, weights.read(FIXED_TEXT), flags.data.fixed_text, source)
    origins = graft(model, weights, keep=given_text)
    replaced = [] if fitted is None else take_fitted(model, replacements, fitted)
    with durable.staged_folder(out, check_free) as folder:
        _fill(folder, model, flags, data, kept | {"taken": origins.taken, "taken_layers": origin.layer_variants})
    lines = [
        summary(origins, config.layer_variants, str(source), flags.optimization.seed),
        *([f"taken from {fitted}: {len(replaced)} tensors, over those above"] if replaced else []),
        _outlook(flags, origin),
        *([f"note: {remark}"] if remark else []),
    ]
    return "\n".join(lines)


def _read_fitted(path: Path) -> dict[str, Tensor]:
    try:
        return load(read_bytes(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"--fitted {path} cannot be read ({reason(error)}): give what a search has written") from None


def _fill(folder: Path, model: CausalLM, flags: TrainingFlags, data: TrainingData, origin: Mapping[str, Any]) -> None:
    content = resolved_config(flags, model.config, data.identities, origin, data.phase_identities)
    step = folder / CHECKPOINTS / "step-0"
    step.mkdir(parents=True)
    optimizer = flags.optimization.optimizer
    tensors: dict[str, dict[str, Tensor]] = {name: {"weights": buffer} for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        moments = moments_of(name, parameter.ndim, optimizer)
        tensors[name] = {"weights": parameter} | dict.fromkeys(moments, torch.zeros_like(parameter))
    seal(step, Progress(), content, data.write_tokenizer, write_whole(step, tensors))
    durable.write_json(folder / RUN_CONFIG, content)


def _outlook(flags: TrainingFlags, origin: ModelConfig) -> str:
    optimization, length = flags.optimization, flags.data.seq_len
    line = (
        f"training, as of --size {flags.model.size} where no flag was given: {flags.total_steps} steps of "
        f"{optimization.global_batch_size} x {length} tokens, lr {optimization.lr:g}, {flags.engine.precision}"
    )
    return "\n".join([line, *lengthened(flags.model.rope_scaling, flags.plan.longest, origin)])


def check_free(out: Path) -> None:
    """Raise UserError where `out` is anything but an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another place")


def check_vocabulary(corpus_tokenizer: Path, corpus_size: int, model: Path, model_size: int) -> str | None:
    """Compare the corpus's tokenizer file with the one in the model's folder, id by id.

    Ids that only one of the two knows do no harm as long as the model has rows for the corpus's.

    Args:
        corpus_size: ids of the corpus's tokenizer.
        model_size: rows of the model's embedding.

    Returns:
        A remark for the user where there is nothing to compare with.

    Raises:
        UserError: the corpus must be packed again, with the model's tokenizer.
    """
    remedy = f"pack the corpus with --tokenizer {model}"
    if corpus_size > model_size:
        raise UserError(f"the corpus has {corpus_size} token ids but the model in {model} only {model_size}: {remedy}")
    own = next((model / name for name in TOKENIZER_NAMES if (model / name).is_file()), None)
    if own is None:
        return f"{model} has no {' or '.join(TOKENIZER_NAMES)}: whether the corpus has its token ids was not checked"
    of_corpus, of_model = _tokens(corpus_tokenizer), _tokens(own)
    for token_id in sorted(of_corpus.keys() & of_model.keys()):
        here, there = of_corpus[token_id], of_model[token_id]
        if here != there:
            raise UserError(f"token {token_id} is {here!r} in the corpus but {there!r} in {own}: {remedy}")
    return None


def _tokens(path: Path) -> dict[int, str]:
    try:
        if path.suffix == ".json":
            from tokenizers import Tokenizer

            vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
            return {token_id: token for token, token_id in vocabulary.items()}
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(path))
        return {token_id: pieces.id_to_piece(token_id) for token_id in range(pieces.get_piece_size())}
    except Exception as error:  # both libraries raise what they like
        raise UserError(f"{path} cannot be read ({error}): restore it") from error
