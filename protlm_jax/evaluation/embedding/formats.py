"""Files of embeddings: HDF5, one data set a protein, or Parquet, one row a protein.

HDF5 has data sets at the root, in the order of the input, with the protein's name as the attribute
`original_id`. Readers differ in the key that they look up, see `key_of`.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from protlm_jax.data.fasta import Record
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding.spec import EmbeddingSpec
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import cannot_write

HDF5 = (".h5", ".hdf5")
PARQUET = (".parquet",)
_ROWS = 4096  # rows of a Parquet file that are in memory at once

Keys = Literal["number", "id", "biotrainer", "md5"]
OF_LETTERS = ("biotrainer", "md5")
"""The keys that proteins with the same letters share."""


class Entry(NamedTuple):
    """One protein of a file: place in the input, key of its data set, name, arrays by vectors."""

    place: int
    key: str
    id: str
    residues: int
    arrays: dict[str, np.ndarray]


def key_of(keys: Keys, place: int, record: Record) -> str:
    """The key of a protein's data set.

    Its place in the input (from 0), so that names may hold slashes and occur twice; its name (EAT);
    or a sum over its letters as they are written, before rare residues become X: that of biotrainer
    from 1.0, or MD5 (TMbed).
    """
    letters = record.written
    if keys == "biotrainer":
        return hashlib.sha256(f"{letters}_{len(letters)}".encode()).hexdigest()
    if keys == "md5":
        return hashlib.md5(letters.encode(), usedforsecurity=False).hexdigest()
    return record.id if keys == "id" else str(place)


def why_no_key(name: str) -> str:
    """Why HDF5 cannot have a name as a key; "" where it can."""
    if "/" in name or name in ("", ".", ".."):
        return f"{name!r} cannot be a key of HDF5, where / and . make a path"
    return ""


def targets(
    output: Path, spec: EmbeddingSpec, keys: Keys = "number"
) -> dict[Path, tuple[str, ...]]:
    """The files that are written, and the vectors in each.

    HDF5 has one kind of vectors a file, as its readers expect: of several, `e.h5` stands for
    `e.residues.h5`, `e.mean.h5` and so on. Parquet has one column for each kind and layer.

    Raises:
        ProtlmError: an unknown suffix, what a format cannot hold, or a missing package.
    """
    if output.suffix in HDF5:
        _module("h5py")
        if len(spec.vectors) == 1:
            return {output: spec.vectors}
        names = {v: f"{output.stem}.{v}{output.suffix}" for v in spec.vectors}
        return {output.with_name(name): (v,) for v, name in names.items()}
    if output.suffix not in PARQUET:
        known = ", ".join((*HDF5, *PARQUET))
        raise ProtlmError(f"{output}: the suffix says what to write; choose one of {known}")
    _module("pyarrow")
    if "residues" in spec.vectors:
        raise ProtlmError(f"{output}: Parquet holds vectors of proteins; write residues as .h5")
    if keys != "number":
        raise ProtlmError(f"{output}: keys are of .h5; Parquet has the columns record and id")
    if spec.dtype == "bfloat16":
        raise ProtlmError(f"{output}: Parquet has no bfloat16; choose fp32, fp16 or a .h5 file")
    return {output: spec.vectors}


def write_file(
    path: Path, entries: Iterable[Entry], spec: EmbeddingSpec, width: int, about: dict[str, str]
) -> None:
    """Writes and syncs one file, which the caller renames; its suffix says the format.

    Args:
        path: of the file.
        entries: with the arrays that `targets` names for this file.
        spec, width: layers and dtype; d_model.
        about: attributes of the file.

    Raises:
        ProtlmError: the disk does not take it.
    """
    try:
        if path.suffix in HDF5:
            _write_hdf5(path, entries, spec, about)
        else:
            _write_parquet(path, entries, spec, width, about)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_hdf5(
    path: Path, entries: Iterable[Entry], spec: EmbeddingSpec, about: dict[str, str]
) -> None:
    h5py = _module("h5py")
    kind = _float_type(h5py, spec.dtype)
    ordered = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    ordered.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    plain = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for one in (ordered, plain):
        one.set_obj_track_times(False)  # the same embedding is the same bytes
    unicode = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    unicode.set_char_encoding(h5py.h5t.CSET_UTF8)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, ordered)) as file:
        file.attrs.update(about)
        file.attrs["layers"] = spec.layers
        for entry in entries:
            (array,) = entry.arrays.values()
            space, whole = h5py.h5s.create_simple(array.shape), h5py.h5s.ALL
            # The low-level interface takes bfloat16, and half the time.
            data = h5py.h5d.create(file.id, entry.key.encode(), kind, space, plain, unicode)
            raw = array.view(np.uint16) if spec.dtype == "bfloat16" else array
            data.write(whole, whole, np.ascontiguousarray(raw), kind)
            h5py.Dataset(data).attrs["original_id"] = entry.id


def check_file(path: Path, entries: Iterable[Entry], spec: EmbeddingSpec) -> int:
    """Reads a file back, compares it with the entries of `write_file`, and counts them.

    Raises:
        Damaged: it is not what was written.
    """
    read = _read_hdf5 if path.suffix in HDF5 else _read_parquet
    count = 0
    try:
        expected = ((e.key, [x.tobytes() for x in e.arrays.values()]) for e in entries)
        pairs = itertools.zip_longest(expected, read(path, spec))
        for count, (own, found) in enumerate(pairs, start=1):
            if own != found:
                raise OSError(f"entry {count} differs")
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # of the formats' readers
        raise Damaged(
            f"{path} was not written as it was computed ({error}): the disk or the memory is at "
            "fault; run the same command again"
        ) from error
    return count


def _read_hdf5(path: Path, spec: EmbeddingSpec) -> Iterator[tuple[str, list[bytes]]]:
    h5py = _module("h5py")
    kind = _float_type(h5py, spec.dtype)
    with h5py.File(path) as file:
        for key in file:
            data = file[key]
            raw = np.empty(data.shape, np.uint16 if kind.get_size() == 2 else np.uint32)
            data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
            yield key, [raw.tobytes()]


def _read_parquet(path: Path, spec: EmbeddingSpec) -> Iterator[tuple[str, list[bytes]]]:
    names = columns(spec)
    with _module("pyarrow.parquet").ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            flat = [batch[name].flatten().to_numpy(zero_copy_only=False) for name in names]
            stacked = np.stack([x.reshape(len(batch), -1) for x in flat], axis=1)
            split = np.split(stacked, len(spec.vectors), axis=1)
            for row, place in enumerate(batch["record"].to_pylist()):
                yield str(place), [array[row].tobytes() for array in split]


def _float_type(h5py: ModuleType, dtype: str) -> Any:
    """HDF5's type; bfloat16 is described bit by bit, and every reader converts it to float32."""
    if dtype == "float16":
        return h5py.h5t.IEEE_F16LE
    if dtype == "float32":
        return h5py.h5t.IEEE_F32LE
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign, exponent and its bits, mantissa and its bits
    kind.set_size(2)
    kind.set_precision(16)
    kind.set_ebias(127)
    return kind


def _write_parquet(
    path: Path, entries: Iterable[Entry], spec: EmbeddingSpec, width: int, about: dict[str, str]
) -> None:
    arrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
    number = arrow.float16() if spec.dtype == "float16" else arrow.float32()
    fields = [("record", arrow.int64()), ("id", arrow.string()), ("residues", arrow.int32())]
    fields += [(name, arrow.list_(number, width)) for name in columns(spec)]
    schema = arrow.schema(fields, metadata=about)
    with parquet.ParquetWriter(path, schema) as writer:
        left = iter(entries)
        while rows := list(itertools.islice(left, _ROWS)):
            places, _, names, residues, arrays = zip(*rows, strict=True)
            table = [arrow.array(places), arrow.array(names), arrow.array(residues, arrow.int32())]
            for vectors in spec.vectors:
                stacked = np.stack([a[vectors] for a in arrays]).reshape(len(rows), -1, width)
                for layer in range(stacked.shape[1]):
                    flat = arrow.array(stacked[:, layer].reshape(-1), number)
                    table.append(arrow.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(arrow.table(table, schema=schema))


def columns(spec: EmbeddingSpec) -> list[str]:
    """Names of Parquet's columns: "mean", or "mean_layer_3" of several layers."""
    if len(spec.layers) == 1:
        return list(spec.vectors)
    return [f"{vectors}_layer_{layer}" for vectors in spec.vectors for layer in spec.layers]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ProtlmError(
            f"this needs the package {package}: pip install 'protlm-jax[embed]'"
        ) from error
