"""Records: one pass for SeqIO, the batches of token files in training, faults name their shard."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protlm_jax.data.batches import ResumableBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.records import RecordSource
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import PROT_BERT, PROT_T5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 300 proteins of 5 to 60 residues, in eight shards, and the same as token files."""
    draw = random.Random(0)
    made = tmp_path_factory.mktemp("records")
    sequences = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=5 + i % 56)) for i in range(300)]
    (made / "a.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
    for name, kinds in (("out", {}), ("tokens", {"tokens": True, "records": False})):
        rules = SelectionRules(heldout_percent=10)
        plan = PreparePlan.make("fasta", [str(made / "a.fasta")], made / name, rules, **kinds)
        prepare(replace(plan, buckets=8), workers=1)
    return made / "out"


def files(folder: Path, split: str) -> list[str]:
    shards = Prepared.open(folder).splits[split].records
    return [str(folder / shard.file) for shard in shards if shard.proteins]


def sequences(source: Any, split: str, **options: Any) -> list[bytes]:
    return [e["sequence"] for e in source.get_dataset(split, **options).as_numpy_iterator()]


def batches(folder: Path, task: str = "tokens", split: str = "train") -> ResumableBatches:
    config = DataConfig(prepared=str(folder), task=task, length=32)
    vocabulary = PROT_BERT if task in ("tokens", "stream") else PROT_T5
    return open_batches(config, vocabulary, split=split, seed=0, batch_size=4)


def test_one_pass_has_every_protein_once_in_the_order_of_the_shards(folder):
    text = (folder.parent / "a.fasta").read_bytes().split(b"\n")[1::2]
    heldout = set((folder / "heldout.fasta").read_bytes().split(b"\n")[1::2])
    training = set(text) - heldout
    shards = {"train": files(folder, "train"), "heldout": files(folder, "heldout"), "none": []}
    source = RecordSource(shards.__getitem__, list(shards))
    assert list(source.splits) == ["train", "heldout"]
    read = sequences(source, "train", shuffle=False)
    assert len(read) == len(training) and set(read) == training
    assert set(sequences(source, "heldout", shuffle=False)) == heldout
    shuffled = sequences(source, "train", shuffle=True, seed=1)
    assert sorted(shuffled) == sorted(read) and shuffled != read


def test_each_of_several_hosts_reads_shards_of_its_own(folder):
    from protlm_jax.data.runtime import seqio

    source = RecordSource({"train": files(folder, "train")}.__getitem__, ["train"])
    whole = sequences(source, "train")
    parts = [sequences(source, "train", shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert sorted(p for part in parts for p in part) == sorted(whole) and all(parts)


@pytest.mark.parametrize("task", ["tokens", "span3", "stream"])
def test_training_reads_records_as_it_reads_token_files(folder, task):
    """So all that holds of token files holds of records: order, hosts, continuation."""
    for split in ("train", "heldout"):
        pair = batches(folder, task, split), batches(folder.parent / "tokens", task, split)
        for _, one, other in zip(range(9), *pair, strict=False):
            assert all(np.array_equal(one[name], other[name]) for name in one | other)
    assert pair[0].counts == pair[1].counts


def test_faults_name_their_shard(folder, tmp_path):
    broken = tmp_path / "out"
    shutil.copytree(folder, broken)
    shard = Path(files(broken, "train")[3])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ProtlmError, match=f"{shard.name} is damaged: its checksum differs"):
        batches(broken)
