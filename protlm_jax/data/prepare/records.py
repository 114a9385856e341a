"""Proteins as `tf.train.Example` in a folder that TensorFlow Datasets reads.

tfds.builder_from_directory(folder / "records").as_dataset(split="train")
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from protlm_jax.data.prepare.rows import Row
from protlm_jax.data.runtime import tf
from protlm_jax.storage.files import cannot_write

TEXTS = ("id", "sequence", "description", "taxon", "representative", "uniref50")
NUMBERS = ("members", "taxon_id")
"""Features of a record; a row has them as attributes."""


def features() -> Any:
    """The features of a record, for TFDS."""
    import tensorflow_datasets as tfds

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
    """Writes one TFRecord file, whole or not at all; returns what a manifest says of it.

    Raises:
        ProtlmError: the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
            for row in rows:
                writer.write(to_example(row))
        digest, size = blake2b(digest_size=16), 0
        with open(temporary, "rb+") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                size += len(data)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None
    return {"proteins": len(rows), "bytes": size, "blake2b": digest.hexdigest()}


def version_of(release: str) -> str:
    """The TFDS version of a release: 2024_01 is 2024.1.0; 1.0.0 where it has no number."""
    numbers = [int(number) for number in re.findall("[0-9]+", release)][:3] or [1]
    return ".".join(map(str, (numbers + [0, 0])[:3]))


def write_metadata(
    folder: Path, dataset: str, release: str, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes features.json and dataset_info.json beside the shards.

    Args:
        shards: for each side that is not empty what the manifest says of its shards, in order.
    """
    import tensorflow_datasets as tfds

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
