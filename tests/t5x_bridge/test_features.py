"""A T5X run reads the proteins and the features of a native run. Needs no T5X."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.runtime import seqio
from protlm_jax.data.seqio_tasks import bundled_source, make_task
from protlm_jax.errors import ProtlmError
from protlm_jax.t5x_bridge.features import EncoderDecoderFeatures, SingleStackFeatures
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5

CASES = {"tokens": (PROT_BERT, SingleStackFeatures), "prott5": (PROT_T5, EncoderDecoderFeatures)}


@pytest.mark.parametrize("kind", CASES)
def test_both_roads_read_the_same_proteins_in_rows_of_one_form(kind: str, tmp_path: Path) -> None:
    vocabulary, features = CASES[kind]
    draw = random.Random(1)
    proteins = ["".join(draw.choices(AMINO_ACIDS, k=draw.randint(5, 60))) for _ in range(300)]
    fasta = tmp_path / "some.fasta"
    fasta.write_text("".join(f">{i}\n{p}\n" for i, p in enumerate(proteins)))
    config = DataConfig(fasta=str(fasta), task=kind, length=64)
    ours = open_batches(config, vocabulary, split="heldout", seed=5, batch_size=4)
    task = make_task("some", bundled_source(config), kind, vocabulary)
    theirs = seqio.get_dataset(  # as t5x.utils.get_dataset calls it
        mixture_or_task_name=task,
        task_feature_lengths=dict.fromkeys(task.output_features, config.length),
        dataset_split="heldout",
        shuffle=True,
        num_epochs=1,
        feature_converter=features(pack=True, use_custom_packing_ops=False),
        shard_info=seqio.ShardInfo(index=0, num_shards=1),
        use_cached=False,
        seed=5,
        trim_output_features=True,
    )
    name, ids = ("input_tokens", "segment_ids")
    if kind == "prott5":
        name, ids = "decoder_target_tokens", "decoder_segment_ids"
    found: list[Counter[bytes]] = []
    mine = [{k: v[i] for k, v in batch.items()} for batch in ours for i in range(4)]
    for rows in (mine, list(theirs.as_numpy_iterator())):
        assert all(row.keys() == mine[0].keys() for row in rows)
        assert all(v.dtype == np.int32 and v.shape == (64,) for row in rows for v in row.values())
        segments = [row[name][row[ids] == i] for row in rows for i in range(1, row[ids].max() + 1)]
        found.append(Counter(segment.tobytes() for segment in segments))
    assert found[0] == found[1] and found[0].total() > 3


def test_both_sides_of_the_split_are_there() -> None:
    source = seqio.get_mixture_or_task("bundled_tokens").source
    assert set(source.splits) == {"train", "heldout"}
    assert 300 < len(list(source.get_dataset("heldout"))) < 500


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ProtlmError, match="use_custom_packing_ops"):
        SingleStackFeatures(use_custom_packing_ops=True)
