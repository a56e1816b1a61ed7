"""Documents of inputs one after the other, for those who need no workers."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from deconattn.data.reading.blocks import read_blocks, read_input
from deconattn.data.reading.inputs import STDIN, Input, find_inputs
from deconattn.data.reading.lines import GRID
from deconattn.data.reading.parse import parse_block
from deconattn.data.reading.tally import Tally
from deconattn.errors import UserError

_SAMPLED = 32  # open at a time, each with its decompressor and a block
_MAX_BAD = 100


def read_texts(inputs: Sequence[str], text_field: str = "text", max_bad: int = _MAX_BAD) -> Iterator[str]:
    """The texts of all documents of files, folders, patterns and URLs, in order.

    Raises:
        UserError: an input that is missing or damaged, or more than `max_bad` bad lines.
    """
    return documents_of(find_inputs(inputs), text_field, Tally(max_bad))


def documents_of(inputs: Sequence[Input], text_field: str, tally: Tally) -> Generator[str, None, None]:
    """The texts of all good documents, in order; the others are counted in `tally`. Raises :class:`UserError`."""
    line, index = 1, 0
    with closing(read_blocks(inputs, text_field)) as blocks:
        for block in blocks:
            if block.input != index:
                line, index = 1, block.input
            parsed = parse_block(block, text_field)
            for row, reason in parsed.bad:
                tally.add_bad(inputs[index].name, line + row, reason)
            tally.empty += parsed.empty
            line += parsed.rows
            yield from parsed.texts


def sample_texts(inputs: Sequence[Input], text_field: str) -> Iterator[str]:
    """Texts for tokenizer training, in turn from up to 32 inputs spread over the list, so that no source leads.

    Of a text file about 1 MiB comes at a time. Bad lines are passed over; packing counts and judges them. Raises
    :class:`UserError` for stdin, which cannot be read twice, and for inputs that are damaged.
    """
    if any(source.name == STDIN for source in inputs):
        raise UserError("stdin can be read once only, not to train a tokenizer too; give a file, or a ready tokenizer")
    step = -(-len(inputs) // _SAMPLED)
    turns = [_texts_of(source, text_field) for source in inputs[::step]]
    while turns:
        for texts in list(turns):
            if (text := next(texts, None)) is None:
                turns.remove(texts)
            else:
                yield text


def _texts_of(source: Input, text_field: str) -> Iterator[str]:
    for block in read_input(source, text_field, text_grid=GRID):
        yield from parse_block(block, text_field).texts
