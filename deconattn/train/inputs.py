"""Data of a run: corpora, the fixed text, and the samples of each data-parallel rank."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deconattn.config.flags import TrainingFlags
from deconattn.config.probe_source import named_task
from deconattn.config.run_config import CorpusIdentity
from deconattn.config.steps import Stretch
from deconattn.data import SampleStream, TokenCorpus, Tokenizer, parse_data_argument
from deconattn.data.corpus_tokenizer import difference, load_corpus_tokenizer, note_of
from deconattn.data.loading.batches import Stream, check_corpora
from deconattn.data.loading.best_fit import BestFit
from deconattn.data.loading.phases import Streams, connect
from deconattn.data.manifest import TABLES_NAME, Manifest, read_checked
from deconattn.errors import UserError, of_the_disk
from deconattn.parallel.process_group import from_rank_0
from deconattn.train.probe_data import ProbeData
from deconattn.train.run_data import RunData


def open_data(
    arguments: tuple[str, ...], flags: TrainingFlags, run: Path, manifests: Mapping[str, Manifest] | None = None
) -> RunData:
    """Open a run's data on every rank; a collective call.

    Rank 0 reads the manifests, compares the shards' sizes and makes what tables are wanted, however long that takes.
    The others get the manifests from it and open nothing but such tables; shards are mapped when first read.

    Args:
        manifests: by folder, where rank 0 has read them already.

    Raises:
        UserError: on every rank, for what rank 0 finds, see :func:`data_of`.
    """
    spare, opened = run / TABLES_NAME, list[RunData]()

    def read() -> None:
        data = data_of(arguments, flags, manifests, spare)
        try:
            data.open()
        except OSError as error:
            raise of_the_disk(error, "--data") from error
        opened.append(data)

    from_rank_0(read)
    told: list[Any] = [opened[0].manifests if opened else None]
    torch.distributed.broadcast_object_list(told, src=0)
    if not opened:
        opened.append(data_of(arguments, flags, told[0], spare, verify=False))
        opened[0].open()
    return opened[0]


def data_of(
    arguments: tuple[str, ...],
    flags: TrainingFlags,
    manifests: Mapping[str, Manifest] | None = None,
    spare: Path | None = None,
    verify: bool = True,
) -> RunData:
    """Return the data that `--data` names; arguments and errors as of :class:`TrainingData`."""
    task = named_task(arguments)
    return TrainingData(arguments, flags, manifests, spare, verify) if task is None else ProbeData(task, flags)


class _Phase(NamedTuple):
    """A phase with a stream of its own."""

    stretch: Stretch
    corpora: list[tuple[TokenCorpus, float]]
    identities: list[CorpusIdentity]


class TrainingData(RunData):
    """Training and validation streams over the corpora of `--data`.

    Args:
        manifests: the corpora's by folder, where some process has read and compared them; else that is done here.
        spare, verify: see :class:`~deconattn.data.loading.best_fit.BestFit`.

    Raises:
        UserError: see :class:`~deconattn.data.SampleStream`; a fixed text that is too short or not UTF-8.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        flags: TrainingFlags,
        manifests: Mapping[str, Manifest] | None = None,
        spare: Path | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__(flags)
        self._spare, self._verify = spare, verify
        seq_len, seed = flags.data.seq_len, flags.optimization.seed
        self.manifests |= manifests or {}
        parsed = [parse_data_argument(argument) for argument in arguments]
        self._blended = corpora = self._corpora(parsed)
        check_corpora([corpus for corpus, _ in corpora], seq_len)
        held_out, self._not_validated = [], []
        for folder, weight in parsed:
            if not self.manifests[str(folder)].of_split("val"):
                self._not_validated.append(f"{folder} has no validation split")
            elif (corpus := self._corpus(folder, "val")).num_tokens <= seq_len:
                self._not_validated.append(
                    f"the validation split of {folder} has {corpus.num_tokens} tokens, and one sequence with its "
                    f"labels {seq_len + 1}"
                )
            else:
                held_out.append((corpus, weight))
        self._validation = SampleStream(held_out, seq_len, seed, shuffle=False) if held_out else None
        self.corpora = tuple(corpus for corpus, _ in corpora)
        self.identities = _identities(parsed, self.corpora)
        self._phases = list(self._read_phases(arguments))
        if flags.data.packing == "concat":
            self.open()  # which costs nothing, and finds a corpus that is too short

    def _corpus(self, folder: Path, split: str = "train") -> TokenCorpus:
        if str(folder) not in self.manifests:
            self.manifests[str(folder)] = read_checked(folder)
        return TokenCorpus(folder, split, self.manifests[str(folder)])

    def _corpora(self, parsed: Sequence[tuple[Path, float]]) -> list[tuple[TokenCorpus, float]]:
        return [(self._corpus(folder), weight) for folder, weight in parsed]

    def _read_phases(self, arguments: tuple[str, ...]) -> Iterator["_Phase"]:
        """Yield the phases that read other data than those before, or in another length."""
        before = arguments
        for last, stretch in pairwise(self._flags.plan.stretches):
            if stretch.stream == last.stream:
                continue
            asked = stretch.data or arguments
            parsed = [parse_data_argument(argument) for argument in asked]
            corpora = self._corpora(parsed)
            ours, theirs = self.corpora[0], corpora[0][0]
            if different := difference(ours.folder, ours.manifest, theirs.folder, theirs.manifest):
                raise UserError(
                    f"--phase {stretch.first}: {theirs.folder} was packed with another tokenizer than {ours.folder} "
                    f"({different}): pack one of them again with the other's"
                )
            identities = _identities(parsed, [corpus for corpus, _ in corpora])
            if asked != before:
                self.phase_identities[str(stretch.first)] = identities
            before = asked
            yield _Phase(stretch, corpora, identities)

    @cached_property
    def _streams(self) -> list[SampleStream]:
        """Streams of `--data` and of the phases."""
        data, seed = self._flags.data, self._flags.optimization.seed
        blends = [(self._blended, data.seq_len), *((phase.corpora, phase.stretch.seq_len) for phase in self._phases)]
        return [
            SampleStream(corpora, length, seed, packing=data.packing, spare=self._spare, verify=self._verify)
            for corpora, length in blends
        ]

    @cached_property
    def _train(self) -> Stream:
        if not self._phases:
            return self._streams[0]
        starts = [0, *(phase.stretch.samples for phase in self._phases)]
        counts = [end - start for start, end in pairwise(starts)]
        every = [self.identities, *(phase.identities for phase in self._phases)]
        connect(self._streams, counts, [[identity.content for identity in each] for each in every])
        return Streams(self._streams, starts)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the tokenizer."""
        return self.corpora[0].manifest.vocab_size

    @property
    def tokenizer_path(self) -> Path:
        return self.corpora[0].tokenizer_path

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer into a folder. Raises UserError if it is not the one that packed the corpus."""
        self._tokenizer.save(folder, self.corpora[0].manifest.bos_token_id)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_corpus_tokenizer(self.corpora[0].folder, self.corpora[0].manifest)

    def check_tokenizers(self) -> list[str]:
        """Check that each corpus holds the tokenizer that packed it, which checkpoints and exports carry on.

        Returns:
            A line for each of which an earlier version's fingerprint is all there is.

        Raises:
            UserError: a corpus has no tokenizer, or another.
        """
        for corpus in self.corpora:
            load_corpus_tokenizer(corpus.folder, corpus.manifest)
        notes = (note_of(corpus.folder, corpus.manifest) for corpus in self.corpora)
        return [note for note in notes if note is not None]

    def validation_report(self) -> list[str]:
        """Return a line about the corpora that there is no validation on, if there are any."""
        if not self._not_validated:
            return []
        what = "validation leaves corpora out" if self.has_validation else "no validation, and no val_loss"
        remedy = "pack with a larger --val-fraction, or give a shorter --seq-len"
        return [f"{what}: {'; '.join(self._not_validated)} ({remedy})"]

    def packing_report(self) -> list[str]:
        """Return a line for each corpus whose documents are packed: what is padding and what was cut."""
        layouts = zip(self.corpora, self._streams[0].layouts, strict=True)
        return [f"{corpus.folder}: {layout.packing}" for corpus, layout in layouts if isinstance(layout, BestFit)]

    def fixed_ids(self) -> Tensor:
        """Return the fixed stream's token ids, int64 [longest]: of `--fixed-text`, or the corpus's first tokens."""
        length = self._flags.plan.longest
        path = self._flags.data.fixed_text
        if path is None:
            return torch.from_numpy(self.corpora[0].read(0, length))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--fixed-text {path}: {error}; give a UTF-8 text file") from error
        ids = self._tokenizer.encode_batch([text])[0]
        if len(ids) < length:
            raise UserError(
                f"--fixed-text {path} has {len(ids)} tokens, fewer than the {length} of a sequence: "
                "give a longer text or a shorter sequence"
            )
        return torch.tensor(ids[:length].astype("int64"))


def check_identities(before: Sequence[CorpusIdentity], now: Sequence[CorpusIdentity], flag: str = "--data") -> None:
    """Raise UserError unless a resumed run sees the data that it was started on."""
    for old, new in zip(before, now, strict=False):
        if (old.content, old.weight) != (new.content, new.weight):
            raise UserError(
                f"--resume: the run was started on {old.path} (weight {old.weight:g}) but {flag} gives {new.path} "
                f"(weight {new.weight:g}), whose content or weight differs: give the same corpora"
            )
    if len(before) != len(now):
        raise UserError(f"--resume: the run has {len(before)} corpora but {flag} gives {len(now)}: give the same")


def check_phase_identities(
    before: Mapping[str, Sequence[CorpusIdentity]], now: Mapping[str, Sequence[CorpusIdentity]], reached: int
) -> None:
    """Raise UserError unless a run resumed at a step has read the data that its phases give."""
    begun = {step for step in before.keys() | now.keys() if int(step) < reached}
    for step in sorted(begun, key=int):
        check_identities(before.get(step, ()), now.get(step, ()), f"--phase {step}")


def _identities(parsed: Sequence[tuple[Path, float]], corpora: Sequence[TokenCorpus]) -> list[CorpusIdentity]:
    return [
        CorpusIdentity(str(folder.resolve()), weight, _content(corpus))
        for (folder, weight), corpus in zip(parsed, corpora, strict=True)
    ]


def _content(corpus: TokenCorpus) -> str:
    """Return a digest of a corpus: of its shards' names and checksums in order."""
    shards = [[shard.name, shard.sha256] for shard in corpus.manifest.shards]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()
