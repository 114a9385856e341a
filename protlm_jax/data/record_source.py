"""Records, as `protlm prepare --records` and the TFDS builders write them (needs TensorFlow).

Proteins lie in the shards in a random order already, sorted by a hash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from protlm_jax.data.runtime import seqio, tf

TOGETHER = 16  # shards that are read at once
BLOCK = 16  # records from one shard before the next has its turn

_READ_BUFFER = 1 << 18  # bytes, of each open shard
_PARSED = 256  # records that are parsed together, in one pass

FilesOf = Callable[[str], Sequence[str]]


class RecordSource(seqio.DataSource):
    """Proteins of TFRecord files as {"sequence": letters}, one pass over a split.

    Args:
      files_of: from the name of a split to its shards, in order, none of them empty. Asked when
        they are needed, and not before.
      splits: names of the splits that may exist; those without files are left out.
    """

    def __init__(self, files_of: FilesOf, splits: Sequence[str]) -> None:
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
    return [
        sequence.decode()
        for some in records.batch(_PARSED).map(_sequences).as_numpy_iterator()
        for sequence in some
    ]


def _sequences(records: tf.Tensor) -> tf.Tensor:
    """The sequences of serialised records: string [n]."""
    wanted = {"sequence": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_example(records, wanted)["sequence"]
