"""What `protlm prepare` makes, and sizes that follow from its input.

The input is read in blocks; each block's proteins go to buckets by the hash of their sequence; each
bucket becomes one shard of each side. Sizes of blocks and buckets follow from the input alone, not
from the machine, because they decide which proteins are in which shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.sources import explained, open_source, source_size
from protlm_jax.errors import ProtlmError

Dataset = Literal["uniref50", "uniref90", "uniref100", "bfd", "fasta"]
CLUSTERS = {"uniref50": "UniRef50_", "uniref90": "UniRef90_", "uniref100": "UniRef100_"}
"""How names of the entries of a dataset begin."""

LAYOUT = 4  # version of the work folder; a run does not continue one of another version

_MB = 1 << 20
_SAMPLED_FILES = 16
_SAMPLED_BYTES = 4 * _MB
_UNKNOWN_SIZE = 16 << 30  # where a server gives none: too many buckets rather than too large ones
_LARGEST_BUCKET = 64 * _MB
_SMALLEST_BUCKET = 1 * _MB
_USUAL_SHARDS = 64
_BLOCKS = 1024
_BLOCK_BYTES = (4 * _MB, 64 * _MB)


@dataclass(frozen=True)
class SourceFile:
    """One input file: its size in bytes, and of its text, estimated from its beginning."""

    path: str
    bytes: int
    text_bytes: int

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class PreparePlan:
    """What is prepared, where to, and how.

    Attributes:
        dataset, release: what the input is.
        sources: the input, in the order in which it is read.
        output: the folder to make.
        rules: what is kept and held out.
        tokens, records: which kinds of files are written.
        block_bytes: decompressed text that is parsed at a time.
        buckets: number of shards of each side.
    """

    dataset: Dataset
    release: str
    sources: tuple[SourceFile, ...]
    output: Path
    rules: SelectionRules
    tokens: bool
    records: bool
    block_bytes: int
    buckets: int

    @classmethod
    def make(
        cls,
        dataset: Dataset,
        inputs: Sequence[str],
        output: Path,
        rules: SelectionRules,
        *,
        tokens: bool = False,
        records: bool = True,
    ) -> PreparePlan:
        """A plan for these files, from their sizes and beginnings; the release is that of `rules`.
        Raises ProtlmError for a UniRef without a release, and a file given twice, missing or
        unreadable."""
        if dataset in CLUSTERS and not rules.release:
            raise ProtlmError(
                f"which release of {dataset} is it? Give --release, such as 2024_01 (see the "
                "release notes beside the file): names of clusters change between releases"
            )
        for path in inputs:
            if inputs.count(path) > 1:
                raise ProtlmError(f"{path} is given twice; give every file once")
        sources = _look_at(inputs)
        text = sum(source.text_bytes for source in sources)
        return cls(
            dataset=dataset,
            release=rules.release,
            sources=sources,
            output=output,
            rules=rules,
            tokens=tokens,
            records=records,
            block_bytes=min(max(text // _BLOCKS, _BLOCK_BYTES[0]), _BLOCK_BYTES[1]),
            buckets=number_of_buckets(text),
        )

    def settings(self) -> dict[str, Any]:
        """All that decides what is written: two runs with equal settings write the same bytes."""
        return {
            "layout": LAYOUT,
            "dataset": self.dataset,
            "release": self.release,
            "sources": [{"name": s.name, "bytes": s.bytes} for s in self.sources],
            "rules": self.rules.describe(),
            "tokens": self.tokens,
            "records": self.records,
            "block_bytes": self.block_bytes,
            "buckets": self.buckets,
        }

    def check(self, entry: ReleaseEntry) -> None:
        """Raises ProtlmError where an entry is of another dataset than the plan's."""
        if not entry.id.startswith(CLUSTERS.get(self.dataset, "")):
            raise ProtlmError(
                f"{entry.file}, line {entry.line}: {entry.id!r} is no entry of {self.dataset}, "
                f"whose names begin with {CLUSTERS[self.dataset]}; give --dataset what the file "
                "is (fasta: anything)"
            )


def number_of_buckets(text_bytes: int) -> int:
    """A power of two: about 64 buckets, of 1 MB to 64 MB on average."""
    buckets = max(
        min(_USUAL_SHARDS, text_bytes // _SMALLEST_BUCKET), -(-text_bytes // _LARGEST_BUCKET), 1
    )
    return 1 << (buckets - 1).bit_length()


def _look_at(paths: Sequence[str]) -> tuple[SourceFile, ...]:
    """Sizes of the files; the ratio of compression is measured on the beginnings of the first."""
    sizes = [source_size(path) or _UNKNOWN_SIZE for path in paths]
    samples = [_sample(path) for path in paths[:_SAMPLED_FILES]]
    read, text = map(sum, zip(*samples, strict=True))
    sources = []
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        seen, expanded = samples[i] if i < len(samples) else (read, text)
        sources.append(SourceFile(path, size, size * expanded // seen))
    return tuple(sources)


def _sample(path: str) -> tuple[int, int]:
    """Compressed and decompressed bytes of the beginning of a file."""
    read: list[int] = []
    text = 0
    with (
        explained(path, lambda: 0),
        open_source(path, lambda data: read.append(len(data))) as source,
    ):
        while text < _SAMPLED_BYTES and (data := source.read(1 << 16)):
            text += len(data)
    return max(sum(read), 1), text
