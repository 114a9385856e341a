"""A T5X run and a native run of one recipe and one seed read the same batches. Needs no T5X."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.data import seqio_tasks  # noqa: F401 (registers tasks)
from protlm_jax.data.bundled_source import ConfigSource
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.runtime import seqio
from protlm_jax.data.tasks import make_task, steps
from protlm_jax.errors import ProtlmError
from protlm_jax.t5x_bridge.features import EncoderDecoderFeatures, SingleStackFeatures
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5

CASES = {"tokens": (PROT_BERT, SingleStackFeatures), "prott5": (PROT_T5, EncoderDecoderFeatures)}


@pytest.mark.parametrize("kind", CASES)
def test_both_roads_read_the_same_batches(kind: str, tmp_path: Path) -> None:
    vocabulary, features = CASES[kind]
    draw = random.Random(1)
    proteins = ["".join(draw.choices(AMINO_ACIDS, k=draw.randint(5, 99))) for _ in range(300)]
    fasta = tmp_path / "some.fasta"
    fasta.write_text("".join(f">{i}\n{p}\n" for i, p in enumerate(proteins)))
    config = DataConfig(fasta=str(fasta), task=kind, length=64)
    ours = open_batches(config, vocabulary, split="train", seed=5, batch_size=4)
    # As seqio_tasks registers bundled_tokens and bundled_prott5.
    source = ConfigSource(config, vocabulary)
    task = make_task("some", source, kind, vocabulary, steps(kind, vocabulary, "train"))
    theirs = seqio.get_dataset(  # as t5x.utils.get_dataset calls it
        mixture_or_task_name=task,
        task_feature_lengths=dict.fromkeys(task.output_features, config.length),
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=features(pack=True, use_custom_packing_ops=False),
        shard_info=seqio.ShardInfo(index=0, num_shards=1),
        use_cached=False,
        seed=5,
        trim_output_features=True,
        batch_size=4,
    )
    for mine, batch in itertools.islice(zip(ours, theirs.as_numpy_iterator(), strict=False), 3):
        assert mine.keys() == batch.keys()
        for name, rows in mine.items():
            np.testing.assert_array_equal(batch[name], rows, err_msg=name)


def test_both_sides_of_the_split_are_there() -> None:
    source = seqio.get_mixture_or_task("bundled_tokens").source
    assert set(source.splits) == {"train", "heldout"}
    assert source.num_input_examples("train") is None, "training never ends"
    assert 300 < source.num_input_examples("heldout") < 500


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ProtlmError, match="use_custom_packing_ops"):
        SingleStackFeatures(use_custom_packing_ops=True)
