"""FASTA files embedded with the smallest BERT, for tests of `protlm embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from zoo import loaded

from protlm_jax.evaluation.embedding.files import embed_file
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec
from protlm_jax.evaluation.outcome import Outcome
from protlm_jax.vocabularies import AMINO_ACIDS

LAST = (2,)
Records = list[tuple[str, str]]


def proteins(count: int, shortest: int = 5, longest: int = 60, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(shortest, longest, count)
    return [(f"p{i}", "".join(rng.choice(list(AMINO_ACIDS), n))) for i, n in enumerate(sizes)]


def write(path: Path, records: Records) -> Path:
    path.write_text("".join(f">{name} of a kind\n{sequence}\n" for name, sequence in records))
    return path


def embed(
    folder: Path,
    records: Records,
    output: str = "e.h5",
    spec: EmbeddingSpec | None = None,
    **more: Any,
) -> Outcome:
    """Embeds with the smallest BERT on one device, in batches of 256 tokens."""
    fasta, model = write(folder / "x.fasta", records), more.pop("model", None) or loaded("bert")
    more = {"devices": 1, "tokens_per_batch": 256, **more}
    return embed_file(
        model, fasta, folder / output, spec or EmbeddingSpec(LAST, ("residues",)), **more
    )


def read(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """(key, original_id, array) of each data set, in the order of the file."""
    with h5py.File(path) as file:
        return [(key, file[key].attrs["original_id"], file[key][:]) for key in file]


def changed(file: Path, at: int | None = None) -> bytes:
    """Flips a bit of a file, and returns what it was."""
    content = file.read_bytes()
    at = len(content) // 2 if at is None else at
    file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    return content
