"""Batches: their form, what is in them, and exact continuation."""

from __future__ import annotations

import gzip
import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.seqio_batches import BatchIterator
from protlm_jax.data.splits import heldout_records
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, PROT_T5, Vocabulary

ENCODER = {"encoder_input_tokens", "encoder_segment_ids", "encoder_positions"}
DECODER = {
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_segment_ids",
    "decoder_positions",
}
BERT = (PROT_BERT, "tokens", {"input_tokens", "segment_ids", "positions"})
T5 = (PROT_T5, "prott5", ENCODER | DECODER)
SPANS = [(PROT_T5, task, ENCODER | DECODER) for task in ("span3", "ankh")]
both = pytest.mark.parametrize(("vocabulary", "task", "keys"), [BERT, T5], ids=["bert", "t5"])
every_task = pytest.mark.parametrize(
    ("vocabulary", "task", "keys"), [BERT, T5, *SPANS], ids=["bert", "t5", "span3", "ankh"]
)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 proteins of 5 to 90 residues, spaced and gzipped."""
    rng = np.random.default_rng(3)
    text = ""
    for i, n in enumerate(rng.integers(5, 90, 120)):
        text += f">p{i}\n" + " ".join(rng.choice(list(AMINO_ACIDS), n)) + "\n"
    file = tmp_path_factory.mktemp("fasta") / "mine.fa.gz"
    file.write_bytes(gzip.compress(text.encode()))
    return str(file)


def batches(
    fasta: str | None, vocabulary: Vocabulary, task: str, split: str = "train", **options: object
) -> BatchIterator:
    seed, batch_size = options.pop("seed", 0), options.pop("batch_size", 8)
    rows = options.pop("rows", None)
    config = DataConfig(fasta=fasta, task=task, **{"length": 48, "heldout_percent": 25} | options)
    how = {"seed": seed, "batch_size": batch_size, "rows": rows}
    return open_batches(config, vocabulary, split=split, **how)


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@every_task
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_batches_have_the_contracted_form(fasta, vocabulary, task, keys, pack, split):
    for batch in itertools.islice(batches(fasta, vocabulary, task, split, pack=pack), 4):
        assert batch.keys() == keys
        for value in batch.values():
            assert value.shape == (8, 48) and value.dtype == np.int32
        prefix = "" if task == "tokens" else "encoder_"
        ids, tokens = batch[f"{prefix}segment_ids"], batch[f"{prefix}input_tokens"]
        assert ((ids > 0) == (tokens != vocabulary.pad_id)).all()
        if prefix:
            # A protein is the same segment of both rows, or of none.
            assert np.array_equal(ids.max(axis=1), batch["decoder_segment_ids"].max(axis=1))
        if not pack:
            assert ids.max() == 1
        elif split == "train":
            assert ids.max() > 1


def test_encoder_and_decoder_are_aligned(fasta):
    for batch in itertools.islice(batches(fasta, PROT_T5, "prott5"), 5):
        assert np.array_equal(batch["encoder_segment_ids"], batch["decoder_segment_ids"])
        assert np.array_equal(batch["encoder_positions"], batch["decoder_positions"])
        inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        assert ((inputs == 1) == (targets == 1)).all()
        changed = (inputs != targets) & (targets > 0)
        assert 0.1 < changed.sum() / (targets > 1).sum() < 0.2
        shifted, starts = batch["decoder_input_tokens"], batch["decoder_positions"] == 0
        assert not shifted[starts].any()
        assert np.array_equal(shifted[:, 1:][~starts[:, 1:]], targets[:, :-1][~starts[:, 1:]])


@both
def test_held_out_batches_hold_every_residue_once(fasta, vocabulary, task, keys):
    iterator = batches(fasta, vocabulary, task, "heldout")
    name = "input_tokens" if task == "tokens" else "decoder_target_tokens"
    prefix = "" if task == "tokens" else "decoder_"
    found: list[str] = []
    for batch in iterator:
        for row, ids in zip(batch[name], batch[f"{prefix}segment_ids"], strict=True):
            for segment in range(1, ids.max() + 1):
                text = vocabulary.decode(row[ids == segment])
                found.append(text.removeprefix("[CLS]").removesuffix("[SEP]").removesuffix("</s>"))
    sequences = [r.sequence for r in heldout_records(DataConfig(fasta=fasta, heldout_percent=25))]
    room = 48 - vocabulary.num_specials
    expected = []
    for sequence in sequences:
        size, pieces = len(sequence), -(-len(sequence) // room)
        cuts = [i * size // pieces for i in range(pieces + 1)]
        expected += [sequence[a:b] for a, b in itertools.pairwise(cuts)]
    assert sorted(found) == sorted(expected) and len(expected) > len(sequences)
    assert iterator.counts.proteins == len(sequences)
    assert iterator.counts.residues == sum(map(len, sequences))
    assert iterator.counts.longer == sum(len(s) > room for s in sequences) > 0
    assert next(iterator, None) is None


@pytest.mark.parametrize("task", ["span3", "ankh"])
def test_segments_of_span_corruption_are_pieces_of_one_protein(fasta, task):
    sequences = [r.sequence for r in heldout_records(DataConfig(fasta=fasta, heldout_percent=25))]
    found = []
    for batch in batches(fasta, PROT_T5, task, "heldout", length=32):
        for row in range(len(batch["encoder_segment_ids"])):
            for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
                inputs, targets = (
                    PROT_T5.decode(batch[name][row][batch[ids][row] == segment])
                    for name, ids in (
                        ("encoder_input_tokens", "encoder_segment_ids"),
                        ("decoder_target_tokens", "decoder_segment_ids"),
                    )
                )
                assert inputs.endswith("</s>") and targets.endswith("</s>")
                hidden = re.split(r"<extra_id_\d+>", targets.removesuffix("</s>"))[1:]
                for i, span in enumerate(hidden):
                    inputs = inputs.replace(f"<extra_id_{i}>", span)
                found.append(inputs.removesuffix("</s>"))
    room = {"span3": 34, "ankh": 31}[task]
    assert max(map(len, found)) <= room
    assert len(found) == sum(-(-len(s) // room) for s in sequences) > len(sequences)
    assert all(any(piece in s for s in sequences) for piece in found)
    assert sum(map(len, found)) == sum(map(len, sequences))


@every_task
@pytest.mark.parametrize("pack", [True, False])
def test_training_continues_exactly(fasta, vocabulary, task, keys, pack):
    first = batches(fasta, vocabulary, task, pack=pack)
    states, expected = [first.state()], []
    for _ in range(60):  # several epochs, several windows of the packer
        expected.append(next(first))
        states.append(first.state())
    again = batches(fasta, vocabulary, task, pack=pack)
    for stop in (0, 1, 7, 30, 59):
        again.restore(states[stop])
        assert all(equal(next(again), e) for e in expected[stop : stop + 15]), stop
    assert max(map(len, states)) < 20_000
    assert not equal(expected[0], expected[1])


def test_hosts_share_out_each_batch_and_go_on_as_any_number(fasta):
    """One host stops at 20 random points; two take turns, and one of four goes on each time."""
    stops = sorted(random.Random(0).sample(range(30), 20))
    whole = batches(fasta, PROT_BERT, "tokens")
    two = [batches(fasta, PROT_BERT, "tokens", rows=range(host, 8, 2)) for host in range(2)]
    third = batches(fasta, PROT_BERT, "tokens", rows=[4, 5])
    for number in range(30):
        state = two[number % 2].state()
        batch = next(whole)
        for host, iterator in enumerate(two):
            mine = {name: value[host::2] for name, value in batch.items()}
            assert equal(next(iterator), mine)
        if number in stops:
            third.restore(state)
            assert equal(next(third), {name: value[4:6] for name, value in batch.items()})


@pytest.mark.parametrize("rule", ["chunk", "drop"])
def test_long_proteins_follow_the_rule(tmp_path, rule):
    file = tmp_path / "mixed.fa"
    file.write_text(">a\nMKTAYIAKQRG\n>b\nGGSS\n>c\nAAAAAAAAAAAAAAAA\n")
    options = {"length": 9, "heldout_percent": 0.0, "long_proteins": rule, "batch_size": 2}
    iterator = batches(str(file), PROT_BERT, "tokens", pack=False, **options)
    found = set()
    for batch in itertools.islice(iterator, 60):
        for row, ids in zip(batch["input_tokens"], batch["segment_ids"], strict=True):
            found.add(PROT_BERT.decode(row[ids > 0])[5:-5])
    pieces = {"MKTAY", "IAKQRG", "AAAAA", "AAAAAA"} if rule == "chunk" else set()
    assert found == {"GGSS"} | pieces
    assert iterator.counts.longer == 2 and iterator.counts.proteins == 3
    with pytest.raises(ProtlmError, match="no protein fits a row"):
        batches(str(file), PROT_BERT, "tokens", **{**options, "length": 4, "long_proteins": "drop"})


def test_held_out_batches_can_be_read_again(fasta):
    iterator = batches(fasta, PROT_BERT, "tokens", "heldout")
    start = iterator.state()
    once = list(iterator)
    iterator.restore(start)
    assert len(once) > 1 and all(map(equal, once, iterator))


def test_a_new_process_continues_exactly(fasta, tmp_path):
    iterators = {}
    for vocabulary, task, _ in (BERT, T5, SPANS[0]):
        iterators[task] = batches(fasta, vocabulary, task)
        for _ in range(11):
            next(iterators[task])
        (tmp_path / task).write_bytes(iterators[task].state())
    code = f"""
import numpy as np
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.vocabularies import VOCABULARIES
for task in {list(iterators)}:
    config = DataConfig(fasta={fasta!r}, task=task, length=48, heldout_percent=25)
    vocabulary = VOCABULARIES["prot_bert" if task == "tokens" else "prot_t5"]
    batches = open_batches(config, vocabulary, split="train", seed=0, batch_size=8)
    batches.restore(open("{tmp_path}/" + task, "rb").read())
    for i in range(3):
        np.savez(f"{tmp_path}/{{task}}{{i}}.npz", **next(batches))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    for (task, iterator), i in itertools.product(iterators.items(), range(3)):
        with np.load(tmp_path / f"{task}{i}.npz") as saved:
            assert equal(next(iterator), dict(saved))


def test_the_seed_decides_training_and_nothing_held_out(fasta):
    one, same, two = (batches(fasta, PROT_BERT, "tokens", seed=s) for s in (1, 1, 2))
    first = next(one)
    assert equal(first, next(same)) and not equal(first, next(two))
    for vocabulary, task, _ in (BERT, T5, SPANS[0]):
        one, two = (batches(fasta, vocabulary, task, "heldout", seed=s) for s in (1, 2))
        assert equal(next(one), next(two)), task


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"length": 64}, {"batch_size": 4}, {"heldout_percent": 5}]
)
def test_a_state_of_other_data_is_refused(fasta, change):
    state = batches(fasta, PROT_BERT, "tokens").state()
    with pytest.raises(ProtlmError, match="cannot be continued exactly"):
        batches(fasta, PROT_BERT, "tokens", **change).restore(state)


@both
@pytest.mark.parametrize("pack", [True, False])
def test_three_proteins_are_enough(tmp_path, vocabulary, task, keys, pack):
    file = tmp_path / "few.fa"
    file.write_text(">a\nMKTAYIAKQR\n>b\nGGSSGGW\n>c\nMAAAK\n")
    iterator = batches(str(file), vocabulary, task, pack=pack, heldout_percent=0.0)
    name = "input_tokens" if task == "tokens" else "decoder_target_tokens"
    counts = {"MKTAYIAKQR": 0, "GGSSGGW": 0, "MAAAK": 0}
    for batch in itertools.islice(iterator, 40):
        for protein in counts:
            counts[protein] += "".join(map(vocabulary.decode, batch[name])).count(protein)
    assert max(counts.values()) < 1.5 * min(counts.values())
    assert iterator.counts.proteins == 3 and iterator.counts.longer == 0


def test_one_held_out_protein_makes_one_golden_batch(tmp_path):
    file = tmp_path / "one.fa"
    file.write_text(">a\nM K T U\n")
    (batch,) = batches(
        str(file), PROT_BERT, "tokens", "heldout", heldout_percent=99.9, length=8, batch_size=2
    )
    assert batch["input_tokens"].tolist() == [[2, 21, 12, 15, 25, 3, 0, 0], [0] * 8]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [0] * 8]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 0], [0] * 8]
    (kept,) = batches(
        str(file), PROT_BERT, "tokens", "heldout", heldout_percent=99.9, rare_residues="keep"
    )
    assert kept["input_tokens"][0, 4] == 26


@both
def test_bundled_rows_are_well_filled(vocabulary, task, keys):
    iterator = batches(None, vocabulary, task, length=512, batch_size=64)
    name = "segment_ids" if task == "tokens" else "encoder_segment_ids"
    used = np.mean([(batch[name] > 0).mean() for batch in itertools.islice(iterator, 8)])
    assert used > 0.95


def test_faults_of_the_user_are_named(tmp_path):
    with pytest.raises(ProtlmError, match="'prot_bert' has no sentinels"):
        batches(None, PROT_BERT, "span3")
    with pytest.raises(ProtlmError, match=r"'span4'; choose one of .*prott5, span3, ankh"):
        batches(None, PROT_T5, "span4")
    with pytest.raises(ProtlmError, match="No such file"):
        batches(str(tmp_path / "none.fa"), PROT_BERT, "tokens")
    empty = tmp_path / "empty.fa"
    Path(empty).touch()
    with pytest.raises(ProtlmError, match="is empty"):
        batches(str(empty), PROT_BERT, "tokens")
