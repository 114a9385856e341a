"""SeqIO sources over record shards, as `protlm prepare --records` and the TFDS builders write them.

    RecordSource     one pass, as SeqIO and T5X expect it of a registered task
    EpochSource      endless training, each epoch in an order of its own, for our own loop

Both give {"sequence": letters}. Proteins lie in the shards in a random order already (sorted by a
hash), and an epoch opens the shards in another order, reads a few at once, and shuffles what comes
in windows. All of it follows from (seed, epoch, window), so the state of an iterator is where it
stands in the files, and going on costs at most the reading of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protlm_jax.data.runtime import seqio, tf

WINDOW = 4096  # records that are shuffled together
TOGETHER = 16  # shards that are read at once
BLOCK = 16  # records from one shard before the next has its turn

_READ_BUFFER = 1 << 18  # bytes, of each open shard
_PARSED = 256  # records that are parsed together, in one pass

Example = dict[str, tf.Tensor]
FilesOf = Callable[[str], Sequence[str]]


class RecordSource(seqio.DataSource):
    """Proteins of TFRecord files, one pass over a split.

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
        ds = _read(names, TOGETHER if shuffle else 1).batch(_PARSED)
        return ds.map(lambda records: {"sequence": _sequences(records)}).unbatch()


class EpochSource(seqio.DataSource):
    """Proteins of TFRecord files, epoch after epoch without end.

    Args:
      files: the shards, none of them empty.
      seed: of the order. (That of `get_dataset` is for what comes after it.)
      shard: (index, number) where several hosts share out the proteins: whole shards where there
        are enough of them, single records otherwise.
    """

    def __init__(self, files: Sequence[str], seed: int, shard: tuple[int, int] = (0, 1)) -> None:
        super().__init__(splits=["train"], caching_permitted=False)
        index, number = shard
        whole = len(files) >= number
        self._files = list(files[index::number]) if whole else list(files)
        self._share = (0, 1) if whole else shard
        self._seed = seed

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """`shuffle` and `seed` are without effect: the order is the source's own."""
        epochs = tf.data.Dataset.range(tf.int64.max)
        return epochs.flat_map(self._epoch)

    def _epoch(self, epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([tf.constant(self._seed, tf.int64), epoch])
        files, last = tf.constant(self._files), tf.constant(len(self._files) - 1, tf.int64)

        def name(number: tf.Tensor) -> tf.Tensor:
            return tf.gather(files, tf.random.experimental.index_shuffle(number, seed, last))

        def shuffled(number: tf.Tensor, records: tf.Tensor) -> Example:
            # Not tf.random's own shuffle, which may give another order in another version.
            draws = tf.random.stateless_uniform(tf.shape(records), seed + [0, number * 2**32])
            return {"sequence": tf.gather(_sequences(records), tf.argsort(draws))}

        number, index = self._share[1], self._share[0]
        records = _read(tf.data.Dataset.range(last + 1).map(name), TOGETHER).shard(number, index)
        return records.batch(WINDOW).enumerate().map(shuffled).unbatch()


def _read(names: tf.data.Dataset, together: int) -> tf.data.Dataset:
    """The serialised records of files, several files in turn."""
    return names.interleave(
        lambda name: tf.data.TFRecordDataset(name, buffer_size=_READ_BUFFER),
        cycle_length=together,
        block_length=BLOCK,
    )


def _sequences(records: tf.Tensor) -> tf.Tensor:
    """The sequences of serialised records: string [n]."""
    wanted = {"sequence": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_example(records, wanted)["sequence"]
