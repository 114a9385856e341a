"""Registered tasks and mixtures over a prepared folder, read on the fly and from SeqIO's cache."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from protlm_jax.data import orders, seqio_tasks, token_rows
from protlm_jax.data.prepare.direct import prepare
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.token_rows import Alphabet
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5

LENGTHS = {"inputs": 40, "targets": 40}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """UniRef50 and BFD of 60 proteins each, where the tasks look for them."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    for dataset, prefix in (("uniref50", "UniRef50_"), ("bfd", "b")):
        sequences = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=5 + i)) for i in range(60)]
        fasta = folder / f"{dataset}.fasta"
        fasta.write_text("".join(f">{prefix}{i}\n{s}\n" for i, s in enumerate(sequences)))
        rules = SelectionRules(release="2024_01", heldout_percent=20)
        plan = PreparePlan.make(dataset, [str(fasta)], folder / dataset, rules)
        prepare(replace(plan, buckets=2), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTLM_DATA_DIR", str(folder))
        yield folder


def proteins(data: Path, dataset: str) -> set[str]:
    return set((data / f"{dataset}.fasta").read_text().split("\n")[1::2])


def test_every_dataset_and_objective_is_registered():
    kinds = ("tokens", "prott5", "span3", "ankh")
    datasets = ("uniref50", "uniref90", "uniref100", "bfd", "fasta", "bundled")
    tasks = {f"{d}_{k}" for d in datasets for k in kinds}
    assert tasks <= set(seqio.TaskRegistry.names())
    assert {f"bfd_uniref50_{k}" for k in kinds} <= set(seqio.MixtureRegistry.names())


def test_a_task_gives_each_protein_once(data):
    task = seqio.get_mixture_or_task("uniref50_tokens")
    assert set(task.splits) == {"train", "heldout"}
    read: list[str] = []
    for split in task.splits:
        ds = task.get_dataset({"targets": 80}, split, shuffle=True, seed=0)
        examples = list(ds.as_numpy_iterator())
        assert all(e["targets"][0] == PROT_BERT.prefix_ids[0] for e in examples)
        read += [PROT_BERT.decode(e["targets"][1:-1]) for e in examples]
    assert sorted(read) == sorted(proteins(data, "uniref50"))


@pytest.mark.parametrize("kind", ["prott5", "span3", "ankh"])
def test_denoising_tasks_have_inputs_and_targets(data, kind):
    ds = seqio.get_mixture_or_task(f"bfd_{kind}").get_dataset(LENGTHS, "train", seed=0)
    hidden: list[bool] = []
    for example in ds.as_numpy_iterator():
        assert {"inputs", "targets"} <= example.keys()
        assert max(len(example["inputs"]), len(example["targets"])) <= 40
        assert example["inputs"][-1] == example["targets"][-1] == PROT_T5.suffix_ids[0]
        hidden.append(bool(set(example["inputs"]) & set(PROT_T5.sentinel_ids)))
    assert sum(hidden) > 0.8 * len(hidden), "but for short proteins of which none was chosen"


def test_a_mixture_draws_at_its_rates(data):
    mixture = seqio.get_mixture_or_task("bfd_uniref50_tokens")
    ds = mixture.get_dataset({"targets": 80}, "train", seed=0, num_epochs=None)
    read = [PROT_BERT.decode(e["targets"][1:-1]) for e in ds.take(600).as_numpy_iterator()]
    share = sum(p in proteins(data, "bfd") for p in read) / len(read)
    assert share == pytest.approx(4.8 / (4.8 + 1.982), abs=0.07)
    assert {p in proteins(data, "uniref50") for p in read} == {True, False}


@pytest.mark.slow
def test_seqio_caches_a_task_and_reads_it_back(data, tmp_path):
    from seqio.scripts import cache_tasks_main

    from protlm_jax.data.prepare.beam import beam

    flags.FLAGS.mark_as_parsed()
    name, whole = "uniref50_prott5", {"inputs": 80, "targets": 80}
    with beam.Pipeline() as pipeline:
        cache_tasks_main.run_pipeline(pipeline, [name], str(tmp_path))
    seqio.add_global_cache_dirs([str(tmp_path)])
    try:
        task = seqio.get_mixture_or_task(name)
        ds = task.get_dataset(
            LENGTHS | {"inputs": 80, "targets": 80}, "train", use_cached=True, seed=0
        )
        cached = list(ds.as_numpy_iterator())
        told = task.get_cached_stats("train")
    finally:
        seqio.set_global_cache_dirs([])
    fresh = task.get_dataset(whole, "train", use_cached=False, seed=0)
    targets = {PROT_T5.decode(e["targets"]) for e in fresh.as_numpy_iterator()}
    assert {PROT_T5.decode(e["targets"]) for e in cached} == targets
    assert told["examples"] == len(cached) == len(targets)
    assert all(e["inputs"].shape == e["targets"].shape for e in cached)
    assert any(PROT_T5.hiding_id in e["inputs"] for e in cached)


def examples_of(kind: str, protein: str, length: int, count: int, seed: int = 0) -> list[dict]:
    """Examples of one protein, epoch after epoch."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"sequence": protein}),
        splits=["train"],
    )
    task = seqio_tasks.make_task("one", source, kind, seqio_tasks.KINDS[kind])
    lengths = dict.fromkeys(task.output_features, length)
    ds = task.get_dataset(lengths, "train", shuffle=False, seed=seed, num_epochs=None)
    return list(ds.take(count).as_numpy_iterator())


def test_golden_examples():
    (example,) = examples_of("tokens", "MKTX", 10, 1)
    assert example["targets"].tolist() == [2, 21, 12, 15, 25, 3]
    (example,) = examples_of("span3", "MKT", 10, 1)
    assert example["inputs"].tolist() == [19, 14, 127, 1]
    assert example["targets"].tolist() == [127, 11, 1]


def test_crops_are_pieces_and_all_places_are_equally_likely():
    starts = np.zeros(13)
    for example in examples_of("tokens", AMINO_ACIDS, 10, 1300, seed=5):
        piece = PROT_BERT.decode(example["targets"]).removeprefix("[CLS]").removesuffix("[SEP]")
        assert len(piece) == 8
        starts[AMINO_ACIDS.index(piece)] += 1
    assert ((starts - 100) ** 2 / 100).sum() < 35  # chi square, 12 degrees of freedom, p = 0.0005


@pytest.mark.parametrize("kind", ["prott5", "span3"])
def test_noise_and_crops_are_fresh_every_epoch_and_repeat_with_the_seed(kind):
    def epochs(seed: int) -> list[list[int]]:
        return [e["inputs"].tolist() for e in examples_of(kind, AMINO_ACIDS * 3, 30, 4, seed)]

    assert epochs(1) == epochs(1) != epochs(2)
    assert len(set(map(tuple, epochs(1)))) == 4


@pytest.mark.slow
def test_python_ends_while_batches_are_made():
    """A call of Python that TensorFlow begins at exit waited for ever."""
    code = """
from protlm_jax.data.seqio_tasks import seqio
from protlm_jax.t5x_bridge.features import EncoderDecoderFeatures
lengths = {"inputs": 512, "targets": 512}
ds = seqio.get_dataset("bundled_prott5", lengths, dataset_split="train", num_epochs=None,
    feature_converter=EncoderDecoderFeatures(), seed=0, batch_size=8)
iterator = ds.as_numpy_iterator()
next(iterator)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_the_corruption_is_that_of_native_training():
    """Native rows and SeqIO's examples come from the same functions and the same keys."""
    ids = PROT_T5.encode(AMINO_ACIDS * 9, specials=False)
    made = seqio_tasks.examples_of("prott5", PROT_T5, ids[None], np.array([[3, 4]]), 511)
    letters = np.frombuffer((AMINO_ACIDS * 9).encode(), np.uint8)
    key = orders.keys_of(orders.key_of(3, 4), 1)
    native = token_rows.prott5_noise(letters[None], key, token_rows.RANDOM_SHARE)[0]
    assert made[0][0, :-1].tolist() == Alphabet(PROT_T5).ids(native).tolist()
    assert made[2][0].tolist() == PROT_T5.encode(AMINO_ACIDS * 9).tolist()


def test_where_data_are_looked_for(data, tmp_path, monkeypatch):
    assert seqio_tasks.find_records("uniref50") == data / "uniref50" / "records"
    with pytest.raises(ProtlmError, match=r"no records of uniref90 .*protlm prepare --dataset"):
        seqio_tasks.find_records("uniref90")
    monkeypatch.delenv("PROTLM_DATA_DIR")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    built = tmp_path / "uniref50" / "mine" / "2024.1.0"
    built.mkdir(parents=True)
    (built / "dataset_info.json").touch()
    assert seqio_tasks.find_records("uniref50") == built
    (tmp_path / "uniref50" / "mine" / "2024.2.0").mkdir()
    (tmp_path / "uniref50" / "mine" / "2024.2.0" / "dataset_info.json").touch()
    with pytest.raises(ProtlmError, match="several versions of uniref50"):
        seqio_tasks.find_records("uniref50")
