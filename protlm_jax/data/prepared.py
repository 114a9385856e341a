"""A prepared folder, as `protlm prepare` wrote it.

manifest.json                                    all that follows, counted and hashed
tokens/{train,heldout}-00000-of-00064.tokens     token files (with --tokens): `token_files.py`
records/                                         a TFDS folder (with --records): `records.py`
heldout.fasta                                    the held-out proteins, for later releases
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.json_files import read_json

FORMAT = 1
MANIFEST = "manifest.json"
WORK = ".work"
TOKENS = "tokens"
RECORDS = "records"
HELDOUT = "heldout.fasta"
REMEDY = "restore it from a copy, or prepare the data again"

_OWN_DIGEST = re.compile(rb'^ "digest": .*\n', re.MULTILINE)


@dataclass(frozen=True)
class Shard:
    """One file of a split; `file` is its path below the folder. blake2b (hexadecimal) is of a whole
    file of records, or of the payload of a token file."""

    file: str
    proteins: int
    bytes: int
    blake2b: str


@dataclass(frozen=True)
class PreparedSplit:
    """One side of the split.

    Attributes:
        proteins, residues, longest: proteins, their residues, and residues of the longest.
        lengths: int64 [lengths, 2], ascending: length in residues, proteins of that length.
        residue_counts: occurrences of each of the 25 letters.
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
        folder: its path.
        dataset, release: what it was made from, e.g. "uniref50", "2024_01".
        digest: identifies its content: BLAKE2b-128 of the manifest without its own digest,
            hexadecimal.
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
        """Reads the manifest of a folder; raises ProtlmError where the folder is missing or not
        finished, or its manifest is damaged, of another version, or contradicts itself."""
        folder = Path(folder)
        file = folder / MANIFEST
        if not file.exists():
            raise _without_manifest(folder)
        manifest = read_json(file, remedy=REMEDY)
        if "format" in manifest and manifest["format"] != FORMAT:
            raise ProtlmError(
                f"{file} has format {manifest['format']!r}; this version of protlm_jax reads "
                f"{FORMAT}: prepare the data again with this version"
            )
        try:
            splits = {name: _split(name, fields) for name, fields in manifest["splits"].items()}
            _check(manifest)
            names = _text(manifest["dataset"]), _text(manifest["release"])
            digest = blake2b(_OWN_DIGEST.sub(b"", file.read_bytes(), count=1), digest_size=16)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Damaged(
                f"{file} is damaged ({type(error).__name__}: {error}); {REMEDY}"
            ) from None
        return cls(folder, *names, digest.hexdigest(), splits, manifest)

    @property
    def source(self) -> str:
        """Dataset and release, for messages and reports."""
        return f"{self.dataset} {self.release}".strip()

    def token_files(self, split: str) -> list[Path]:
        """The token files of a split, in order; raises ProtlmError where none were made."""
        if not any(s.tokens for s in self.splits.values()):
            raise ProtlmError(
                f"{self.folder} has no tokens; run protlm prepare with --tokens into another folder"
            )
        return [self.folder / shard.file for shard in self.splits[split].tokens]

    def heldout_fasta(self) -> Path:
        """The FASTA file of the held-out proteins, its checksum verified; raises ProtlmError where
        nothing is held out, or the file is missing or was changed."""
        fields = self.manifest["heldout"]
        if fields["file"] is None:
            raise ProtlmError(f"{self.folder} holds no protein out; name a folder that does")
        shard = Shard(fields["file"], 0, fields["bytes"], fields["blake2b"])
        return self.require(shard, whole=True)

    def require(self, shard: Shard, *, whole: bool = False) -> Path:
        """The path of a file whose size (with `whole`, checksum too) is as in the manifest; raises
        Damaged where it is missing or was changed, ProtlmError where it cannot be read."""
        path = self.folder / shard.file
        try:
            if (size := path.stat().st_size) != shard.bytes:
                raise Damaged(f"{path} has {size:,} bytes, and not {shard.bytes:,}; {REMEDY}")
            if whole:
                with open(path, "rb") as file:
                    digest = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
                if digest != shard.blake2b:
                    raise Damaged(f"{path} is damaged: its checksum differs; {REMEDY}")
        except FileNotFoundError:
            raise Damaged(f"{path} is missing; {REMEDY}") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ProtlmError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or error}; {REMEDY}"
            ) from None
        return path


def _without_manifest(folder: Path) -> ProtlmError:
    if (folder / WORK).is_dir():
        return ProtlmError(
            f"{folder} is not finished; run the same protlm prepare command again to go on"
        )
    if not folder.is_dir():
        return ProtlmError(f"{folder} does not exist; make it with protlm prepare")
    return ProtlmError(
        f"{folder} is no prepared folder: it has no {MANIFEST}; make one with protlm prepare"
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def _check(manifest: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError or AttributeError where a field that is read later is
    missing or of another type. (`_split` checks the splits.)"""
    for side in ("train", "heldout"):
        _number(manifest["splits"][side]["proteins"])
    heldout = manifest["heldout"]
    if heldout["file"] is not None:
        _text(heldout["file"])
    _number(heldout["bytes"]), _text(heldout["blake2b"])
    _text(manifest["rules"]["rare_residues"])
    for source in manifest["sources"]:
        _text(source["name"]), _number(source["bytes"]), _text(source["sha256"])
    left_out = 0
    for reason, fields in manifest["dropped"].items():
        _text(reason), [_text(name) for name in fields["examples"]]
        left_out += _number(fields["count"])
    kept = sum(fields["proteins"] for fields in manifest["splits"].values())
    if not (manifest["kept"] == kept == manifest["read"] - left_out):
        raise ValueError("records read, kept and left out do not add up")
    _number(manifest.get("nucleotides", 0))


def _split(name: str, fields: Mapping[str, Any]) -> PreparedSplit:
    """One split of a manifest; raises ValueError where its numbers contradict each other."""
    lengths = np.array(fields["lengths"], np.int64).reshape(-1, 2)
    split = PreparedSplit(
        name=name,
        proteins=_number(fields["proteins"]),
        residues=_number(fields["residues"]),
        longest=_number(fields["longest"]),
        lengths=lengths,
        residue_counts={_text(k): _number(n) for k, n in fields["residue_counts"].items()},
        tokens=_shards(fields["tokens"]),
        records=_shards(fields["records"]),
    )
    totals = {
        "lengths": (lengths[:, 1].sum(), split.proteins),
        "longest of all lengths": (lengths[:, 0].max(initial=0), split.longest),
        "residues of all lengths": (lengths.prod(axis=1).sum(), split.residues),
        "residue_counts": (sum(split.residue_counts.values()), split.residues),
        "tokens": (sum(s.proteins for s in split.tokens), split.tokens and split.proteins),
        "records": (sum(s.proteins for s in split.records), split.records and split.proteins),
    }
    for what, (found, expected) in totals.items():
        if found != (expected or 0):
            raise ValueError(f"{name}: the {what} come to {found}, not {expected}")
    return split


def _shards(fields: list[Mapping[str, Any]]) -> tuple[Shard, ...]:
    return tuple(
        Shard(_text(t["file"]), _number(t["proteins"]), _number(t["bytes"]), _text(t["blake2b"]))
        for t in fields
    )
