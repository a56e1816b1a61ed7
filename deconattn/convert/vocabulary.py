"""Whether a corpus's token ids mean to a model what they were packed as."""

from pathlib import Path

from deconattn.data.manifest import TOKENIZER_NAMES
from deconattn.errors import UserError


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
