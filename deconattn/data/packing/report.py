"""What a pack did: a summary to print, and the same as `report.json` in the packed folder."""

from dataclasses import dataclass
from pathlib import Path

from deconattn import durable
from deconattn.data.manifest import SPLITS, Manifest
from deconattn.data.packing.output import REPORT_NAME
from deconattn.data.reading.tally import Tally


@dataclass(frozen=True)
class PackSummary:
    """What a pack did.

    Attributes:
        out: the packed folder.
        manifest: what is in it.
        text_bytes: the documents' UTF-8; tokens include a separator a document.
        tally: what was skipped.
        continued: shards, or sorted runs of a shuffle, that an interrupted pack had finished before this one.
    """

    out: Path
    manifest: Manifest
    text_bytes: int
    tally: Tally
    continued: int

    @property
    def documents(self) -> int:
        """Documents over all splits (a single input document that was cut counts as two)."""
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def tokens(self) -> int:
        """Tokens over all splits, separators included."""
        return sum(shard.tokens for shard in self.manifest.shards)

    def __str__(self) -> str:
        lines = [f"packed {self.out}: {self.documents:,} documents, {self.tokens:,} tokens"]
        lines[0] += f", {self.text_bytes / max(self.tokens, 1):.2f} bytes per token"
        for split in SPLITS:
            shards = self.manifest.of_split(split)
            documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
            lines.append(f"  {split}: {documents:,} documents, {tokens:,} tokens, {len(shards)} shards")
        tally = self.tally
        for count, kind in ((tally.empty, "empty"), (tally.short, "short"), (tally.duplicates, "duplicate")):
            if count:
                lines.append(f"  skipped {count:,} {kind} documents")
        if tally.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
            lines.append(f"  skipped {tally.bad:,} bad lines: {reasons}")
            lines += [f"    {example}" for example in tally.examples]
        if self.continued:
            lines.append(f"  went on after {self.continued:,} steps of an interrupted pack")
        return "\n".join(lines)


def write_report(folder: Path, summary: PackSummary) -> None:
    """Write `folder/report.json`: what is the same however often the pack was interrupted."""
    manifest, skipped = summary.manifest, summary.tally.as_dict()
    del skipped["max_bad"]
    report = {
        "documents": {split: sum(shard.documents for shard in manifest.of_split(split)) for split in SPLITS},
        "tokens": {split: sum(shard.tokens for shard in manifest.of_split(split)) for split in SPLITS},
        "text_bytes": summary.text_bytes,
        "skipped": skipped,
    }
    durable.write_json(folder / REPORT_NAME, report)
