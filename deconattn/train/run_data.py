"""What a run reads, whatever it is made of: the samples of each data-parallel rank, and the held-out ones."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from deconattn.config.flags import TrainingFlags
from deconattn.config.run_config import CorpusIdentity
from deconattn.data import Batch, Manifest
from deconattn.data.loading.batches import HeldOut, Stream
from deconattn.data.loading.loader import Loader, open_loader
from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED


class RunData(ABC):
    """Training and validation streams of a run.

    Attributes:
        manifests: of corpora, by folder.
        identities: what a resumed run must find again.
        phase_identities: the same of phases with data of their own, by the step that each begins at.
    """

    _validation: HeldOut | None = None

    def __init__(self, flags: TrainingFlags) -> None:
        self._flags = flags
        self.manifests: dict[str, Manifest] = {}
        self.identities: list[CorpusIdentity] = []
        self.phase_identities: dict[str, list[CorpusIdentity]] = {}

    @cached_property
    @abstractmethod
    def _train(self) -> Stream: ...

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, if there is one, into a folder."""

    @abstractmethod
    def fixed_ids(self) -> Tensor:
        """Return the fixed stream's token ids, int64 [longest]."""

    def open(self) -> None:
        """Open the training stream, and make what tables it wants; else its first use does."""
        _ = self._train

    def check_tokenizers(self) -> list[str]:
        """Check that the tokenizers are those of the data (UserError if not); return what is worth knowing."""
        return []

    def packing_report(self) -> list[str]:
        """Return what packing cost."""
        return []

    def validation_report(self) -> list[str]:
        """Return what there is no validation on."""
        return []

    @property
    def has_validation(self) -> bool:
        return self._validation is not None

    def loader(self, first_step: int, dp_rank: int, dp_size: int, pin: bool) -> Loader:
        """Open the micro-batches of data-parallel rank `dp_rank` from optimiser step `first_step` (from 0) on.

        Step s takes the G samples after those of the steps before it, G its global batch: the order does not depend
        on ranks, micro-batches or loader workers. Close it.
        """
        data, plan = self._flags.data, self._flags.plan
        numbers = self._numbers(first_step, dp_rank, dp_size)
        ahead = max(stretch.micro_batches(dp_size) for stretch in plan.stretches)
        return open_loader(self._train, numbers, data.doc_mask, data.loader_workers, ahead, pin)

    def _numbers(self, first_step: int, dp_rank: int, dp_size: int) -> Iterator[range]:
        """Yield the samples of each of a rank's micro-batches."""
        for step in range(first_step, self._flags.total_steps):
            here = self._flags.plan.before(step)
            start, end = here.samples + dp_rank * here.micro, here.samples + here.batch
            yield from (range(first, first + here.micro) for first in range(start, end, dp_size * here.micro))

    def validation_batches(self, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        """Yield a data-parallel rank's share of the first `--eval-sequences` validation samples, the same each time.

        Every rank gets equally many batches of equally many rows; where samples run out, labels are ignored.
        """
        assert self._validation is not None
        total = min(self._flags.run.eval_sequences, self._validation.num_samples)
        micro = self._flags.optimization.micro_batch_size
        for start in range(0, total, dp_size * micro):
            numbers = range(start + dp_rank * micro, start + (dp_rank + 1) * micro)
            batch = self._validation.batch([min(number, total - 1) for number in numbers], self._flags.data.doc_mask)
            batch.labels[max(0, total - numbers.start) :].fill_(IGNORED)
            yield batch

    def check_fixed_text(self, before: Tensor) -> None:
        """Compare `--fixed-text`, where it is still there, with the stream of a resumed run, int64 [seq_len].

        Raises:
            UserError: it is another text.
        """
        path = self._flags.data.fixed_text
        if path is not None and path.is_file() and not self.fixed_ids().equal(before):
            raise UserError(
                f"--resume: --fixed-text {path} is not the text that the run was started with, which its checkpoint "
                "has: give that one, or move this one away"
            )
