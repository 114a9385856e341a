"""Records: every protein once per epoch, exact continuation, and faults that name their shard."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rules import Rules
from protlm_jax.data.prepare.run import prepare
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.record_source import EpochSource, RecordSource
from protlm_jax.data.records import data_shard
from protlm_jax.data.resumable import ResumableBatches, Wanted
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import PROT_BERT, PROT_T5

PROTEINS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 300 proteins of 5 to 60 residues, in eight shards."""
    draw = random.Random(0)
    made = tmp_path_factory.mktemp("records")
    sequences = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=5 + i % 56)) for i in range(300)]
    (made / "a.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
    plan = Plan.make("fasta", [str(made / "a.fasta")], made / "out", Rules(heldout_percent=10))
    prepare(replace(plan, buckets=8), workers=1)
    return made / "out"


def files(folder: Path, split: str) -> list[str]:
    shards = Prepared.open(folder).splits[split].records
    return [str(folder / shard.file) for shard in shards if shard.proteins]


def sequences(source: Any, split: str, count: int = -1, **options: Any) -> list[bytes]:
    ds = source.get_dataset(split, **options).take(count)
    return [example["sequence"] for example in ds.as_numpy_iterator()]


def heldout_and_training(folder: Path) -> tuple[set[bytes], set[bytes]]:
    text = (folder.parent / "a.fasta").read_bytes().split(b"\n")[1::2]
    heldout = set((folder / "heldout.fasta").read_bytes().split(b"\n")[1::2])
    return heldout, set(text) - heldout


def batches(folder: Path, **changes: Any) -> ResumableBatches:
    options = {"split": "train", "seed": 0, "batch_size": 4} | changes
    task = options.pop("task", "tokens")
    config = DataConfig(
        prepared=str(folder), task=task, length=options.pop("length", 64), **options.pop("data", {})
    )
    return open_batches(config, PROT_BERT if task == "tokens" else PROT_T5, **options)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def proteins_in(batch: dict[str, np.ndarray]) -> list[str]:
    found = []
    for row, segments in zip(batch["input_tokens"], batch["segment_ids"], strict=True):
        tokens = [row[segments == i] for i in range(1, segments.max() + 1)]
        found += [PROT_BERT.decode(ids[1:-1]) for ids in tokens]
    return found


def test_one_pass_has_every_protein_once_in_the_order_of_the_shards(folder):
    heldout, training = heldout_and_training(folder)
    shards = {"train": files(folder, "train"), "heldout": files(folder, "heldout"), "none": []}
    source = RecordSource(shards.__getitem__, list(shards))
    assert list(source.splits) == ["train", "heldout"]
    read = sequences(source, "train", shuffle=False)
    assert len(read) == len(training) and set(read) == training
    assert set(sequences(source, "heldout", shuffle=False)) == heldout
    shuffled = sequences(source, "train", shuffle=True, seed=1)
    assert sorted(shuffled) == sorted(read) and shuffled != read


def test_each_epoch_has_every_protein_once_in_a_new_order(folder):
    _, training = heldout_and_training(folder)
    read = sequences(EpochSource(files(folder, "train"), seed=3), "train", 3 * len(training))
    epochs = [read[i * len(training) : (i + 1) * len(training)] for i in range(3)]
    assert all(set(epoch) == training for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    neighbours = [set(pairwise(e)) for e in epochs]
    assert len(neighbours[0] & neighbours[1]) < 10
    assert sequences(EpochSource(files(folder, "train"), seed=4), "train", 9) != read[:9]


@pytest.mark.parametrize("number", [2, 4, 11])
def test_data_shards_share_out_an_epoch(folder, number):
    """Eleven are more than there are files: then they share out records."""
    _, training = heldout_and_training(folder)
    paths = files(folder, "train")
    epochs: list[Counter[bytes]] = [Counter(), Counter()]
    for index in range(number):
        mine = paths[index::number]
        size = len(range(index, len(training), number))
        if number <= len(paths):
            size = len(sequences(RecordSource({"train": mine}.__getitem__, ["train"]), "train"))
        read = sequences(EpochSource(paths, 0, (index, number)), "train", 2 * size)
        epochs[0].update(read[:size])
        epochs[1].update(read[size:])
    for epoch in epochs:
        assert set(epoch) == training and set(epoch.values()) == {1}


def stop_and_go_on(folder: Path, points: int, **options: Any) -> None:
    """Saves and restores at random points; the continuation must be the one without."""
    ours, draw = batches(folder, **options), random.Random(0)
    for _ in range(points):
        for _ in range(draw.randrange(40)):
            next(ours)
        state = ours.state()
        expected = [next(ours) for _ in range(2)]
        ours = batches(folder, **options)
        ours.restore(state)
        assert all(equal(next(ours), batch) for batch in expected)


def test_stopping_and_going_on_gives_the_identical_continuation(folder):
    stop_and_go_on(folder, 2, rows=[2, 3])


@pytest.mark.parametrize(
    ("hosts", "task"),
    [
        pytest.param(1, "tokens", marks=pytest.mark.long),
        pytest.param(2, "span3", marks=pytest.mark.slow),
        pytest.param(4, "tokens", marks=pytest.mark.long),
    ],
)
def test_twenty_stops_on_any_number_of_hosts(folder, hosts, task):
    share = 4 // hosts
    stop_and_go_on(folder, 20, task=task, rows=list(range(4 - share, 4)))


def test_hosts_read_proteins_of_their_own(folder):
    hosts = [batches(folder, rows=rows) for rows in ([0, 1], [2, 3])]
    read = [{p for _ in range(20) for p in proteins_in(next(host))} for host in hosts]
    assert all(read) and not read[0] & read[1]
    assert next(hosts[0])["input_tokens"].shape == (2, 64)


def test_another_number_of_data_shards_is_refused_with_the_remedy(folder):
    state = batches(folder, rows=[2, 3]).state()
    with pytest.raises(ProtlmError, match=r"2 of 2.*1 of 1.*token files"):
        batches(folder).restore(state)
    with pytest.raises(ProtlmError, match=r"2 of 2.*1 of 2"):
        batches(folder, rows=[0, 1]).restore(state)


@pytest.mark.parametrize(
    "split, rows, expected",
    [
        ("train", None, (0, 1)),
        ("train", [4, 5], (2, 4)),
        ("train", [1, 2], (0, 1)),
        ("train", [0, 4], (0, 1)),
        ("heldout", [4, 5], (0, 1)),
    ],
)
def test_only_equal_blocks_of_training_rows_are_data_shards(split, rows, expected):
    assert data_shard(Wanted(split, 0, 8, rows)) == expected


def test_heldout_is_one_pass_and_equally_long_for_every_host(folder):
    heldout, _ = heldout_and_training(folder)
    whole = list(batches(folder, split="heldout"))
    parts = [list(batches(folder, split="heldout", rows=rows)) for rows in ([0, 1], [2, 3])]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for batch, one, other in zip(whole, *parts, strict=True):
        joined = {k: np.concatenate([one[k], other[k]]) for k in batch}
        assert equal(joined, batch)
    read = [p for batch in whole for p in proteins_in(batch)]
    assert sorted(read) == sorted(p.decode() for p in heldout)


@pytest.mark.parametrize("rule", ["crop", "chunk", "drop"])
def test_long_proteins_follow_the_rule(folder, rule):
    _, training = heldout_and_training(folder)
    ours = batches(folder, length=32, data={"long_proteins": rule})
    longer = sum(len(p) > 30 for p in training)
    assert ours.counts.longer == longer > 0
    read: set[str] = set()
    while len(read) < 400 and ours.state():
        fresh = {p for _ in range(20) for p in proteins_in(next(ours))}
        if fresh <= read:
            break
        read |= fresh
    whole = {p.decode() for p in training}
    if rule == "drop":
        assert read == {p for p in whole if len(p) <= 30}
    elif rule == "chunk":
        assert {p for p in whole if len(p) <= 30} <= read and max(map(len, read)) <= 30
        assert min(len(p) for p in read - whole) >= 15
    else:
        assert {len(p) for p in read - whole} == {30}


def test_faults_name_their_shard(folder, tmp_path):
    broken = tmp_path / "out"
    shutil.copytree(folder, broken)
    shard = Path(files(broken, "train")[3])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    ours = batches(broken)
    with pytest.raises(ProtlmError, match=f"{shard.name} is damaged: its checksum differs"):
        for _ in range(50):
            next(ours)
    shard.write_bytes(data[:-1])
    with pytest.raises(ProtlmError, match=rf"{shard.name} has .* bytes, and not"):
        batches(broken)
    shard.unlink()
    with pytest.raises(ProtlmError, match=rf"{shard.name} is missing"):
        batches(broken)


def test_a_stream_needs_token_files(folder):
    with pytest.raises(ProtlmError, match="--tokens"):
        batches(folder, task="stream")
