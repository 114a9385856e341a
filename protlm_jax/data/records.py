"""Proteins as `tf.train.Example` in a folder that TensorFlow Datasets reads (needs TensorFlow).

    tfds.builder_from_directory(folder / "records").as_dataset(split="train")

`protlm prepare --records` and the TFDS builders write them, sorted by a hash, that is in a random
order; `RecordSource` gives them to SeqIO, `read_sequences` to training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.data.runtime import seqio, tf, tfds
from protlm_jax.storage.files import cannot_write

if TYPE_CHECKING:
    from protlm_jax.data.prepare.rows import Row

TEXTS = ("id", "sequence", "description", "taxon", "representative", "uniref50")
NUMBERS = ("members", "taxon_id")
"""Features of a record; a row has them as attributes."""

TOGETHER = 16  # shards that are read at once
BLOCK = 16  # records from one shard before the next

_READ_BUFFER = 1 << 18  # bytes, of each open shard
_PARSED = 256  # records that are parsed together


def features() -> Any:
    """The features of a record, for TFDS."""
    texts = {name: tfds.features.Text() for name in TEXTS}
    numbers = {name: tfds.features.Scalar(tf.int64) for name in NUMBERS}
    return tfds.features.FeaturesDict(texts | numbers)


def to_example(row: Row) -> bytes:
    """A row as a serialised `tf.train.Example`; equal rows give equal bytes."""
    feature = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[getattr(row, name).encode()]))
        for name in TEXTS
    }
    for name in NUMBERS:
        number = tf.train.Int64List(value=[getattr(row, name)])
        feature[name] = tf.train.Feature(int64_list=number)
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def write_record_shard(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Writes one TFRecord file atomically; returns its entry of a manifest, without its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
            for row in rows:
                writer.write(to_example(row))
        with open(temporary, "rb+") as file:
            fields = described(file, len(rows))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None
    return fields


def described(file: Any, proteins: int) -> dict[str, Any]:
    """Proteins, bytes and blake2b of a file of records, for a manifest."""
    digest, size = blake2b(digest_size=16), 0
    while data := file.read(1 << 20):
        digest.update(data)
        size += len(data)
    return {"proteins": proteins, "bytes": size, "blake2b": digest.hexdigest()}


def version_of(release: str) -> str:
    """The TFDS version of a release: 2024_01 is 2024.1.0; 1.0.0 where it has no number."""
    numbers = [int(number) for number in re.findall("[0-9]+", release)][:3] or [1]
    return ".".join(map(str, (numbers + [0, 0])[:3]))


def write_metadata(
    folder: Path, dataset: str, release: str, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes features.json and dataset_info.json beside the shards: for each side that is not empty
    the manifest's entries of its shards, in order."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=dataset, filetype_suffix="tfrecord"
    )
    infos = [
        tfds.core.SplitInfo(
            name=side,
            shard_lengths=[shard["proteins"] for shard in some],
            num_bytes=sum(shard["bytes"] for shard in some),
            filename_template=template.replace(split=side),
        )
        for side, some in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        split_infos=infos,
        filename_template=template,
        version=version_of(release),
        description=f"Proteins of {dataset} {release}".strip(),
        check_data=False,
    )


class RecordSource(seqio.DataSource):
    """Proteins of TFRecord files as {"sequence": letters}, one pass over a split.

    Args:
      files_of: from the name of a split to its shards, in order, none of them empty; called when
        they are needed.
      splits: names of the splits that may exist; those without files are left out.
    """

    def __init__(self, files_of: Callable[[str], Sequence[str]], splits: Sequence[str]) -> None:
        super().__init__(splits=splits)
        self._files_of = files_of
        self._names = tuple(splits)

    @property
    def splits(self) -> Sequence[str]:
        return [name for name in self._names if self._files_of(name)]

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return list(self._files_of(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """`shuffle` takes the shards in a random order and reads a few at once."""
        files = self.list_shards(split)
        if shard_info is not None:
            files = files[shard_info.index :: shard_info.num_shards]
        names = tf.data.Dataset.from_tensor_slices(files)
        if shuffle:
            names = names.shuffle(len(files), seed=seed)
        records = names.interleave(
            lambda name: tf.data.TFRecordDataset(name, buffer_size=_READ_BUFFER),
            cycle_length=TOGETHER if shuffle else 1,
            block_length=BLOCK,
        )
        return records.batch(_PARSED).map(lambda some: {"sequence": _sequences(some)}).unbatch()


def read_sequences(file: Path) -> list[str]:
    """The sequences of one shard, in order."""
    records = tf.data.TFRecordDataset(str(file), buffer_size=_READ_BUFFER)
    batches = records.batch(_PARSED).map(_sequences).as_numpy_iterator()
    return [sequence.decode() for some in batches for sequence in some]


def _sequences(records: tf.Tensor) -> tf.Tensor:
    """The sequences of serialised records: string [n]."""
    feature = {"sequence": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_example(records, feature)["sequence"]
