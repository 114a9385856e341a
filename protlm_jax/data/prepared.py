"""A prepared folder, as `protlm prepare` left it: what it holds, and where.

    manifest.json                                    everything that follows, counted and hashed
    tokens/{train,heldout}-00000-of-00064.tokens     token files (with --tokens)
    records/                                         a TFDS folder (with --records)
    heldout.fasta                                    the held-out proteins, for later releases

Reads the manifest alone. Needs no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError

FORMAT = 1
MANIFEST = "manifest.json"
WORK = ".work"
TOKENS = "tokens"
RECORDS = "records"
HELDOUT = "heldout.fasta"


@dataclass(frozen=True)
class Shard:
    """One file of a split.

    file: path below the folder. blake2b: hexadecimal, as its writer defines it: of a whole file
    of records, of the payload of a token file.
    """

    file: str
    proteins: int
    bytes: int
    blake2b: str


@dataclass(frozen=True)
class PreparedSplit:
    """One side of the split.

    Attributes:
        proteins, residues, longest: how many, how many, and residues of the longest.
        lengths: int64 [lengths, 2], ascending: length in residues, proteins of that length.
        residue_counts: how often each of the 25 letters occurs.
        tokens, records: the shards of each kind, in order; empty where that kind was not made.
    """

    name: str
    proteins: int
    residues: int
    longest: int
    lengths: np.ndarray
    residue_counts: Mapping[str, int]
    tokens: tuple[Shard, ...]
    records: tuple[Shard, ...]


@dataclass(frozen=True)
class Prepared:
    """A finished prepared folder.

    Attributes:
        folder: where it is.
        dataset, release: what it was made from, e.g. "uniref50", "2024_01".
        digest: name of exactly this content: BLAKE2b-128 of the manifest, hexadecimal.
        splits: "train" and "heldout".
        manifest: all of manifest.json.
    """

    folder: Path
    dataset: str
    release: str
    digest: str
    splits: Mapping[str, PreparedSplit]
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Prepared:
        """Reads the manifest of a folder.

        Raises:
            ProtlmError: the folder is missing or not finished; or its manifest is damaged, of
                another version, or contradicts itself.
        """
        folder = Path(folder)
        data = _read(folder)
        try:
            manifest = json.loads(data)
            if not isinstance(manifest, dict):
                raise TypeError("not an object")
            if manifest["format"] != FORMAT:
                raise ProtlmError(
                    f"{folder / MANIFEST} has format {manifest['format']!r}; this version of "
                    f"protlm_jax reads {FORMAT}: prepare the data again with this version"
                )
            splits = {name: _split(name, told) for name, told in manifest["splits"].items()}
            digest = blake2b(data, digest_size=16).hexdigest()
            prepared = cls(
                folder, manifest["dataset"], manifest["release"], digest, splits, manifest
            )
            prepared.splits["train"], prepared.splits["heldout"], manifest["heldout"]["file"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtlmError(
                f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}); restore it "
                "from a copy, or prepare the data again"
            ) from None
        return prepared

    @property
    def source(self) -> str:
        """Dataset and release in a few words, for messages and reports."""
        return f"{self.dataset} {self.release}".strip()

    @property
    def records_folder(self) -> Path:
        """The TFDS folder.

        Raises:
            ProtlmError: it was not made.
        """
        self._require(RECORDS, any(s.records for s in self.splits.values()))
        return self.folder / RECORDS

    def token_files(self, split: str) -> list[Path]:
        """The token files of a split, in order (none where the split is empty).

        Raises:
            ProtlmError: no token files were made.
        """
        self._require(TOKENS, any(s.tokens for s in self.splits.values()))
        return [self.folder / shard.file for shard in self.splits[split].tokens]

    def heldout_fasta(self) -> Path:
        """The FASTA file of the held-out proteins, found to be as it was written.

        Raises:
            ProtlmError: nothing is held out, or the file is missing or was changed.
        """
        told = self.manifest["heldout"]
        if told["file"] is None:
            raise ProtlmError(f"{self.folder} holds no protein out; name a folder that does")
        path = self.folder / told["file"]
        try:
            with open(path, "rb") as file:
                digest = blake2b(digest_size=16)
                while data := file.read(1 << 20):
                    digest.update(data)
        except OSError as error:
            raise ProtlmError(
                f"cannot read {path}: {error.strerror}; restore it from a copy, or prepare the "
                "data again"
            ) from None
        if digest.hexdigest() != told["blake2b"]:
            raise ProtlmError(
                f"{path} is not the file that was prepared (its checksum differs); restore it from "
                "a copy, or prepare the data again"
            )
        return path

    def _require(self, kind: str, there: bool) -> None:
        if not there:
            raise ProtlmError(
                f"{self.folder} has no {kind}; run protlm prepare with --{kind} into another folder"
            )


def _read(folder: Path) -> bytes:
    """The bytes of the manifest."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        if (folder / WORK).is_dir():
            raise ProtlmError(
                f"{folder} is not finished; run the same protlm prepare command again to go on"
            ) from None
        if not folder.is_dir():
            raise ProtlmError(f"{folder} does not exist; make it with protlm prepare") from None
        raise ProtlmError(
            f"{folder} is no prepared folder: it has no {MANIFEST}; make one with protlm prepare"
        ) from None
    except OSError as error:
        raise ProtlmError(f"cannot read {folder / MANIFEST}: {error.strerror}") from None


def _split(name: str, told: Mapping[str, Any]) -> PreparedSplit:
    """One split of a manifest.

    Raises:
        ValueError: its numbers contradict each other.
    """
    lengths = np.array(told["lengths"], np.int64).reshape(-1, 2)
    split = PreparedSplit(
        name=name,
        proteins=told["proteins"],
        residues=told["residues"],
        longest=told["longest"],
        lengths=lengths,
        residue_counts=told["residue_counts"],
        tokens=_shards(told["tokens"]),
        records=_shards(told["records"]),
    )
    totals = {
        "lengths": (lengths[:, 1].sum(), split.proteins),
        "residues of all lengths": (lengths.prod(axis=1).sum(), split.residues),
        "residue_counts": (sum(split.residue_counts.values()), split.residues),
        "tokens": (sum(s.proteins for s in split.tokens), split.tokens and split.proteins),
        "records": (sum(s.proteins for s in split.records), split.records and split.proteins),
    }
    for what, (found, expected) in totals.items():
        if found != (expected or 0):
            raise ValueError(f"{name}: the {what} sum to {found}, not {expected}")
    return split


def _shards(told: list[Mapping[str, Any]]) -> tuple[Shard, ...]:
    return tuple(Shard(t["file"], t["proteins"], t["bytes"], t["blake2b"]) for t in told)
