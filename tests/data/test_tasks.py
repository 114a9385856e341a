"""Tasks: every protein once per epoch, fair crops, even pieces, aligned denoising."""

from __future__ import annotations

import re

import numpy as np
import pytest

from protlm_jax.data.corpus import Corpus
from protlm_jax.data.fasta import Record
from protlm_jax.data.runtime import seqio
from protlm_jax.data.tasks import CorpusSource, build_task, register, residues_per_row
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5, Vocabulary


def corpus_of(sequences: list[str], vocabulary: Vocabulary = PROT_BERT) -> Corpus:
    records = [Record(f"p{i}", "", s, "f", i) for i, s in enumerate(sequences)]
    return Corpus.from_records(records, vocabulary)


def read(
    kind: str, sequences: list[str], vocabulary: Vocabulary, length: int, split: str, **options: int
) -> seqio.Task:
    """The examples of a task as NumPy arrays; `take` limits them."""
    take = options.pop("take", -1)
    task = build_task(kind, corpus_of(sequences, vocabulary), vocabulary, split)
    lengths = dict.fromkeys(task.output_features, length)
    ds = task.get_dataset(lengths, split, shuffle=False, **options)
    return list(ds.take(take).as_numpy_iterator())


def random_proteins(count: int, shortest: int = 5, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest, count)
    return ["".join(rng.choice(list(AMINO_ACIDS), n)) for n in lengths]


def test_a_corpus_is_the_proteins_end_to_end():
    corpus = corpus_of(["MKT", "AX"])
    assert corpus.tokens.tolist() == [21, 12, 15, 6, 25] and corpus.tokens.dtype == np.uint8
    assert corpus.offsets.tolist() == [0, 3, 5] and corpus.lengths.tolist() == [3, 2]
    assert corpus.digest() != corpus_of(["MKTA", "X"]).digest()


def test_each_epoch_has_every_protein_once_in_a_new_order():
    proteins = random_proteins(50)
    source = CorpusSource(corpus_of(proteins), "train")
    ds = source.get_dataset("train", seed=1).take(150)
    read = [PROT_BERT.decode(e["targets"]) for e in ds.as_numpy_iterator()]
    epochs = [read[:50], read[50:100], read[100:]]
    assert all(sorted(epoch) == sorted(proteins) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = source.get_dataset("train", seed=2).take(50).as_numpy_iterator()
    assert [PROT_BERT.decode(e["targets"]) for e in other] != epochs[0]


def test_shards_share_out_an_epoch():
    proteins = random_proteins(20)
    source = CorpusSource(corpus_of(proteins), "heldout")
    read = []
    for index in range(3):
        ds = source.get_dataset("heldout", shard_info=seqio.ShardInfo(index, 3))
        read += [PROT_BERT.decode(e["targets"]) for e in ds.as_numpy_iterator()]
    assert sorted(read) == sorted(proteins)


def test_tokens_golden():
    (example,) = read("tokens", ["MKTX"], PROT_BERT, 10, "heldout")
    assert example["targets"].tolist() == [2, 21, 12, 15, 25, 3]
    (example,) = read("tokens", ["MKTX"], PROT_T5, 10, "heldout")
    assert example["targets"].tolist() == [19, 14, 11, 23, 1]


@pytest.mark.parametrize("vocabulary", [PROT_BERT, PROT_T5], ids=lambda v: v.name)
def test_crops_are_pieces_and_all_places_are_equally_likely(vocabulary):
    protein = AMINO_ACIDS
    room = 8
    length = room + vocabulary.num_specials
    examples = read("tokens", [protein], vocabulary, length, "train", take=1300, seed=5)
    starts = np.zeros(13)
    for example in examples:
        text = vocabulary.decode(example["targets"])
        first = "[CLS]" if vocabulary is PROT_BERT else ""
        piece = text.removeprefix(first).removesuffix(vocabulary.tokens[vocabulary.suffix_ids[0]])
        assert len(piece) == room and text.startswith(first) and piece in protein
        starts[protein.index(piece)] += 1
    assert ((starts - 100) ** 2 / 100).sum() < 35  # chi square, 12 degrees of freedom, p = 0.0005


def test_a_protein_that_fits_exactly_is_not_cropped():
    (example,) = read("tokens", ["MKTA"], PROT_BERT, 6, "train", take=1)
    assert PROT_BERT.decode(example["targets"]) == "[CLS]MKTA[SEP]"


@pytest.mark.parametrize("total", [1, 7, 8, 9, 16, 17, 41])
def test_held_out_proteins_are_cut_evenly_and_whole(total):
    protein = (AMINO_ACIDS * 3)[:total]
    examples = read("tokens", [protein], PROT_T5, 9, "heldout")
    pieces = [PROT_T5.decode(e["targets"]).removesuffix("</s>") for e in examples]
    assert "".join(pieces) == protein and len(pieces) == -(-total // 8)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_prott5_inputs_and_targets_are_aligned():
    proteins = random_proteins(40, 20, 60)
    examples = read("prott5", proteins, PROT_T5, 40, "train", take=80, seed=0)
    changed = total = 0
    for example in examples:
        inputs, targets = example["inputs"], example["targets"]
        assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == np.int32
        assert inputs[-1] == targets[-1] == PROT_T5.suffix_ids[0]
        different = inputs != targets
        assert set(inputs[different]) <= {127, *PROT_T5.amino_acid_ids.tolist()}
        changed, total = changed + different.sum(), total + targets.size - 1
        assert PROT_T5.decode(targets[:-1]) in " ".join(proteins)
    assert 0.12 < changed / total < 0.18


def test_noise_and_crops_are_fresh_every_epoch_and_repeat_with_the_seed():
    def epochs(seed: int) -> list[list[int]]:
        examples = read("prott5", [AMINO_ACIDS * 3], PROT_T5, 30, "train", take=4, seed=seed)
        return [e["inputs"].tolist() for e in examples]

    assert epochs(1) == epochs(1) != epochs(2)
    assert len(set(map(tuple, epochs(1)))) == 4


@pytest.mark.parametrize("kind", ["prott5", "span3"])
def test_seqio_knows_the_task(kind):
    for protein in ("AYW", "MKT"):  # the last one registered counts
        name = register(build_task(kind, corpus_of([protein], PROT_T5), PROT_T5, "train"))
    assert name == f"protlm_{kind}_train"
    try:
        task = seqio.get_mixture_or_task(name)
        lengths = {"inputs": 8, "targets": 8}
        (example,) = task.get_dataset(lengths, "train", shuffle=True, num_epochs=None).take(1)
        if kind == "prott5":
            assert example["targets"].numpy().tolist() == [19, 14, 11, 1]
        else:
            assert example["inputs"].numpy().tolist() == [19, 14, 127, 1]
            assert example["targets"].numpy().tolist() == [127, 11, 1]
    finally:
        seqio.TaskRegistry.remove(name)


def test_a_row_of_span_corruption_holds_more_than_its_tokens():
    # T5's numbers: 568 of text make rows of 512 and 114. Ankh's are bound by the 100 sentinels.
    rows = {"inputs": 512, "targets": 114}
    assert residues_per_row("span3", PROT_T5, rows) == 568
    assert residues_per_row("span3", PROT_T5, rows | {"targets": 512}) == 568
    assert residues_per_row("ankh", PROT_T5, rows | {"targets": 512}) == 502
    assert residues_per_row("prott5", PROT_T5, rows | {"targets": 512}) == 511
    assert residues_per_row("tokens", PROT_BERT, {"targets": 512}) == 510


@pytest.mark.parametrize(("kind", "most"), [("span3", 44), ("ankh", 39)])
def test_spans_are_cut_into_one_protein_at_a_time(kind, most):
    proteins = random_proteins(40, 20, 90)
    sizes = []
    for example in read(kind, proteins, PROT_T5, 40, "train", take=80, seed=0):
        inputs, targets = (PROT_T5.decode(example[name]) for name in ("inputs", "targets"))
        for i, span in enumerate(re.split(r"<extra_id_\d+>", targets.removesuffix("</s>"))[1:]):
            inputs = inputs.replace(f"<extra_id_{i}>", span)
        piece = inputs.removesuffix("</s>")
        assert any(piece in protein for protein in proteins)
        assert piece in proteins or len(piece) == most, "whole, or as much as a row holds"
        assert max(map(len, example.values())) <= 40
        sizes.append(len(piece))
    assert max(sizes) == most > min(sizes)
