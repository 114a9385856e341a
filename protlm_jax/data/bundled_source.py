"""The proteins of a config as one SeqIO source with both sides of the split, read when asked for.

What T5X recipes train on before anything was prepared: the bundled proteins.
"""

from __future__ import annotations

import functools

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.splits import Split, load_records
from protlm_jax.data.tasks import CorpusSource
from protlm_jax.vocabularies import Vocabulary


class ConfigSource(seqio.DataSource):
    """Proteins in memory, as {"targets": int32 [residues]}: see `CorpusSource` for their order.

    Args:
      config: where they are read, and which of them are held out.
      vocabulary: what they are encoded in.
    """

    def __init__(self, config: DataConfig, vocabulary: Vocabulary) -> None:
        self._config, self._vocabulary = config, vocabulary
        super().__init__(
            splits=["train", "heldout"], caching_permitted=False, performs_internal_shuffling=True
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def num_input_examples(self, split: str) -> int | None:
        """How many proteins the split has; None for training, which never ends."""
        return self._of(split).num_input_examples(split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """See `CorpusSource.get_dataset`."""
        return self._of(split).get_dataset(split, shuffle, seed, shard_info)

    @functools.cache  # noqa: B019 (sources live as long as the registry)
    def _of(self, split: Split) -> CorpusSource:
        records = load_records(self._config, split)
        return CorpusSource(Corpus.from_records(records, self._vocabulary), split)
