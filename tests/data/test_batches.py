"""Batches from token files: every protein once per epoch, and any batch for any number of hosts."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from prepared_data import proteins, write_prepared

from protlm_jax.data import batches as module
from protlm_jax.data import orders
from protlm_jax.data.batches import TokenBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.pipeline import open_batches
from protlm_jax.data.splits import heldout_records, is_heldout
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import (
    AMINO_ACIDS,
    PROT_BERT,
    PROT_T5,
    PROT_TXL,
    PROT_XLNET,
    Vocabulary,
)

Batch = dict[str, np.ndarray]
VOCABULARIES = {"tokens": PROT_BERT, "prott5": PROT_T5, "span3": PROT_T5, "ankh": PROT_T5}
VOCABULARIES["stream"] = PROT_TXL
every_road = pytest.mark.parametrize("task", VOCABULARIES)
LENGTH, ROWS = 48, 8


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    """300 proteins of 3 to 120 residues; rows of 48 have room for 46."""
    return proteins(np.random.default_rng(4).integers(3, 120, 300).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sequences: dict[str, str]) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared"), sequences)


def batches(folder: Path, task: str = "tokens", split: str = "train", **options) -> TokenBatches:
    settings = {"seed": 0, "batch_size": ROWS, "rows": None}
    settings |= {k: options.pop(k) for k in settings.keys() & options.keys()}
    config = DataConfig(prepared=str(folder), task=task, **{"length": LENGTH} | options)
    return open_batches(config, VOCABULARIES[task], split=split, **settings)


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def pieces(batch: Batch, vocabulary: Vocabulary, name: str = "input_tokens", ids: str = "") -> list:
    """The text of each segment, row by row, without its specials."""
    found = []
    for row, segments in zip(batch[name], batch[f"{ids}segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            text = vocabulary.decode(row[segments == segment])
            found.append(text.removeprefix("[CLS]").removesuffix("[SEP]").removesuffix("</s>"))
    return found


def one_epoch(iterator: TokenBatches, epoch: int) -> list[str]:
    """All pieces of an epoch, with a batch size that does not divide its rows."""
    rows, size = iterator.plan.rows, ROWS
    found = []
    for number in range(epoch * rows // size, ((epoch + 1) * rows - 1) // size + 1):
        batch = iterator.batch(number)
        keep = [
            i for i in range(size) if number * size + i in range(epoch * rows, (epoch + 1) * rows)
        ]
        found += pieces({k: v[keep] for k, v in batch.items()}, PROT_BERT)
    return found


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("task", ["tokens", "prott5", "span3", "ankh"])
def test_batches_have_the_contracted_form(folder: Path, task: str, pack: bool, split: str) -> None:
    vocabulary, prefix = VOCABULARIES[task], "" if task == "tokens" else "encoder_"
    iterator = batches(folder, task, split, pack=pack)
    most: list[int] = []
    for batch in itertools.islice(iterator, 4):
        for value in batch.values():
            assert value.shape == (ROWS, LENGTH) and value.dtype == np.int32
        ids, tokens = batch[f"{prefix}segment_ids"], batch[f"{prefix}input_tokens"]
        assert ((ids > 0) == (tokens != vocabulary.pad_id)).all()
        most.append(ids.max())
        for row, places in zip(ids, batch[f"{prefix}positions"], strict=True):
            used = row[row > 0]
            assert (np.diff(used) >= 0).all() and (row[len(used) :] == 0).all()
            for segment in range(1, row.max() + 1):
                assert places[row == segment].tolist() == list(range((row == segment).sum()))
            assert not places[row == 0].any()
        if prefix:  # a protein is the same segment of both rows
            assert np.array_equal(ids.max(axis=1), batch["decoder_segment_ids"].max(axis=1))
    assert max(most) > 1 if pack else max(most) == 1


def test_a_golden_batch(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, {"a": "MKTU", "b": "GG"}, heldout_percent=0.0)
    batch = batches(folder, length=11, batch_size=1).batch(0)
    assert batch["input_tokens"].tolist() == [[2, 21, 12, 15, 25, 3, 2, 7, 7, 3, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0]]
    kept = write_prepared(
        tmp_path / "keep", {"a": "MKTU"}, heldout_percent=0.0, rare_residues="keep"
    )
    for policy, expected in (("X", 25), ("keep", 26)):
        batch = batches(kept, length=11, batch_size=1, rare_residues=policy).batch(0)
        assert batch["input_tokens"][0, 4] == expected
    other = batches(kept, "prott5", length=11, batch_size=1, rare_residues="keep").batch(0)
    assert other["decoder_target_tokens"].tolist() == [[19, 14, 11, 26, 1, 0, 0, 0, 0, 0, 0]]
    assert other["decoder_input_tokens"].tolist() == [[0, 19, 14, 11, 26, 0, 0, 0, 0, 0, 0]]
    assert other["decoder_loss_weights"].tolist() == [[1] * 5 + [0] * 6]


def test_vocabularies_of_any_form_are_served(tmp_path: Path) -> None:
    """Two tokens after a protein; more ids than a byte has; 0 is a residue and not padding."""
    folder = write_prepared(tmp_path, {"a": "MAT"}, heldout_percent=0.0)
    config = DataConfig(prepared=str(folder), length=7)
    many = (*(f"<{i}>" for i in range(300)), *AMINO_ACIDS, "X")
    wide = Vocabulary("wide", many, 7, 1, 2, (299,), ())
    how = {"split": "train", "seed": 0, "batch_size": 1}
    zero = Vocabulary("zero", (*AMINO_ACIDS, "X", "<c>", "<m>", "<p>"), 23, 20, 22, (21,), (21,))
    for vocabulary in (PROT_XLNET, wide, zero):
        batch = next(open_batches(config, vocabulary, **how))
        expected = vocabulary.encode("MAT").tolist()
        padding = [vocabulary.pad_id] * (7 - len(expected))
        assert batch["input_tokens"].tolist() == [expected + padding]


def test_batches_never_change(folder: Path) -> None:
    """With other ones, the states of old checkpoints mean other batches: raise FORMAT."""
    golden = {"tokens": "be718949b7bd", "prott5": "389e6516cdde", "stream": "d406d1cd2a8b"}
    golden |= {"span3": "558028749cf6", "ankh": "a62735ecb419"}
    for task, expected in golden.items():
        iterator = batches(folder, task, seed=3)
        digest = blake2b(digest_size=6)
        for batch in itertools.islice(iterator, 20):
            for name in sorted(batch):
                digest.update(name.encode() + batch[name].tobytes())
        assert digest.hexdigest() == expected, task


def test_an_epoch_holds_each_protein_once(folder: Path, sequences: dict[str, str]) -> None:
    iterator = batches(folder)
    training = [s for s in sequences.values() if not is_heldout(s, 25.0)]
    short = Counter(s for s in training if len(s) <= LENGTH - 2)
    long = [s for s in training if len(s) > LENGTH - 2]
    orders_seen, crops = [], Counter[str]()
    for epoch in range(3):
        found = one_epoch(iterator, epoch)
        assert len(found) == len(training)
        assert not short - Counter(found)
        cropped = list((Counter(found) - short).elements())
        assert all(len(piece) == LENGTH - 2 for piece in cropped)
        owners = [[i for i, s in enumerate(long) if piece in s] for piece in cropped]
        assert sorted(owner[0] for owner in owners) == list(range(len(long)))
        crops.update(cropped)
        orders_seen.append(found)
    assert len({tuple(found) for found in orders_seen}) == 3
    assert len(crops) > 2.5 * len(long)  # other crops each time
    assert iterator.counts.proteins == len(training) and iterator.counts.longer == len(long)
    assert iterator.counts.residues == sum(map(len, training))


def test_neighbours_change_between_epochs(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(15, 25, 200).tolist()
    iterator = batches(write_prepared(tmp_path, proteins(lengths)))
    pairs = []
    for epoch in range(2):
        rows = range(epoch * iterator.plan.rows, (epoch + 1) * iterator.plan.rows)
        places, starts, _ = iterator._plan(np.array(rows))
        by_row: dict[int, list[int]] = {}
        for row, start in zip(places.tolist(), starts.tolist(), strict=True):
            by_row.setdefault(row, []).append(start)
        pairs.append({frozenset(p) for v in by_row.values() for p in itertools.combinations(v, 2)})
    assert len(pairs[0]) > 60 and len(pairs[0] & pairs[1]) < 0.2 * len(pairs[0])


def test_crops_begin_anywhere(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, proteins([20]), heldout_percent=0.0)
    iterator = batches(folder, length=12, batch_size=1)
    (sequence,) = proteins([20]).values()
    drawn = Counter(sequence.index(pieces(iterator.batch(i), PROT_BERT)[0]) for i in range(550))
    assert set(drawn) == set(range(11))
    assert sum((n - 50) ** 2 / 50 for n in drawn.values()) < 29.6  # chi-squared, 10 dof, p = 0.001


@pytest.mark.parametrize("rule", ["chunk", "drop"])
def test_long_proteins_follow_the_rule(folder: Path, sequences: dict[str, str], rule: str) -> None:
    iterator = batches(folder, long_proteins=rule)
    room, expected = LENGTH - 2, Counter[str]()
    for sequence in sequences.values():
        count = -(-len(sequence) // room)
        if is_heldout(sequence, 25.0) or (rule == "drop" and count > 1):
            continue
        cuts = [i * len(sequence) // count for i in range(count + 1)]
        expected.update(sequence[a:b] for a, b in itertools.pairwise(cuts))
    for epoch in range(2):
        assert Counter(one_epoch(iterator, epoch)) == expected
    assert iterator.counts.longer > 50


@pytest.mark.parametrize("task", ["tokens", "prott5"])
def test_held_out_batches_are_one_pass_over_every_residue(folder: Path, task: str) -> None:
    name, ids = ("input_tokens", "") if task == "tokens" else ("decoder_target_tokens", "decoder_")
    vocabulary = VOCABULARIES[task]
    found: list[str] = []
    iterators = [batches(folder, task, "heldout", seed=seed) for seed in (0, 5)]
    for batch, same in zip(*iterators, strict=True):
        assert equal(batch, same)
        found += pieces(batch, vocabulary, name, ids)
    room = LENGTH - vocabulary.num_specials
    expected = []
    for record in heldout_records(DataConfig(prepared=str(folder))):
        size, count = len(record.sequence), -(-len(record.sequence) // room)
        cuts = [i * size // count for i in range(count + 1)]
        expected += [record.sequence[a:b] for a, b in itertools.pairwise(cuts)]
    assert sorted(found) == sorted(expected) and len(found) > 50
    assert next(iterators[0], None) is None
    assert batch[f"{ids}segment_ids"][-1].max() == 0 or len(found) % ROWS == 0


def test_prott5_hides_and_swaps_in_training_and_only_hides_held_out(tmp_path: Path) -> None:
    """The shares are those of test_token_rows."""
    folder = write_prepared(tmp_path, proteins([400] * 60), heldout_percent=20.0)
    for split, swaps in (("train", True), ("heldout", False)):
        batch = next(batches(folder, "prott5", split, length=402, batch_size=8))
        inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        changed = inputs != targets
        assert 0.1 < changed[targets > 2].mean() < 0.2 and not changed[targets <= 2].any()
        assert (inputs[changed] != PROT_T5.hiding_id).any() == swaps
        used = [row for row in changed if row.any()]
        assert len({row.tobytes() for row in used}) == len(used) > 4, "each row has its own noise"


@every_road
def test_any_number_of_hosts_makes_the_same_batches_and_goes_on_as_another(
    folder: Path, task: str
) -> None:
    """20 random stops; at each, hosts of one number take up the state of hosts of another."""
    random_ = random.Random(0)
    whole = batches(folder, task)
    expected = [next(whole) for _ in range(60)]
    stops = sorted(random_.sample(range(1, 55), 20))
    states: dict[int, bytes] = {}
    for count in (1, 2, 4):
        hosts = [batches(folder, task, rows=range(h, ROWS, count)) for h in range(count)]
        for number in range(60):
            if number in stops and (number not in states or random_.random() < 0.5):
                states[number] = random_.choice(hosts).state()
            for host, iterator in enumerate(hosts):
                mine = {k: v[host::count] for k, v in expected[number].items()}
                assert equal(next(iterator), mine)
    for stop in stops:
        count = random_.choice((1, 2, 4))
        for host in range(count):
            rows = range(host * ROWS // count, (host + 1) * ROWS // count)
            again = batches(folder, task, rows=rows)
            again.restore(states[stop])
            for number in range(stop, stop + 3):
                mine = {k: v[rows.start : rows.stop] for k, v in expected[number].items()}
                assert equal(next(again), mine), (stop, count, host)


@every_road
def test_held_out_hosts_end_together(folder: Path, task: str) -> None:
    whole = list(batches(folder, task, "heldout"))
    shares = [list(batches(folder, task, "heldout", rows=range(h, ROWS, 4))) for h in range(4)]
    assert [len(share) for share in shares] == [len(whole)] * 4 and len(whole) > 2
    for host, share in enumerate(shares):
        for mine, batch in zip(share, whole, strict=True):
            assert equal(mine, {name: value[host::4] for name, value in batch.items()})


def test_a_late_batch_costs_what_an_early_one_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: how many rows and proteins are shuffled for one batch."""
    work: list[int] = []
    shuffle = orders.shuffled_many
    monkeypatch.setattr(
        orders, "shuffled_many", lambda i, c, k: (work.append(len(i)), shuffle(i, c, k))[1]
    )
    monkeypatch.setattr(module, "AHEAD", 0)
    needed = []
    for number in (100, 1_000_000):
        iterator = batches(folder)
        state = iterator.state()
        assert b"batch" not in state  # compressed: rewritten through the iterator itself
        iterator._move_to({"batch": number})
        moved = iterator.state()
        work.clear()
        again = batches(folder)
        again.restore(moved)
        batch = next(again)
        needed.append(sum(work))
        assert equal(batch, iterator.batch(number))
    assert abs(needed[0] - needed[1]) < 0.1 * needed[0] and needed[0] < 4 * module.PLANNED


def test_the_identity_is_that_of_the_data(folder: Path, tmp_path: Path, sequences) -> None:
    iterator = batches(folder)
    first = next(iterator)
    state = iterator.state()
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    again = batches(moved, heldout_percent=7.0)  # without meaning here
    assert equal(next(again), first)
    again.restore(state)
    assert equal(next(again), next(iterator))
    for change in ({"seed": 1}, {"length": 64}, {"batch_size": 4}, {"long_proteins": "chunk"}):
        with pytest.raises(ProtlmError, match="cannot be continued exactly"):
            batches(folder, **change).restore(state)
    fewer = dict(list(sequences.items())[:-1])
    other = write_prepared(tmp_path / "other", fewer)
    with pytest.raises(ProtlmError, match="cannot be continued exactly"):
        batches(other).restore(state)


def test_an_iterator_that_has_read_ahead_goes_on_where_it_is_told(folder: Path) -> None:
    used, fresh = batches(folder), batches(folder)
    first = [next(used) for _ in range(3)]
    state = fresh.state()
    used.restore(state)
    assert used.state() == state
    assert all(equal(next(used), batch) for batch in first)


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProtlmError, match=r"data\.fasta .* data\.prepared .* both given"):
        DataConfig(fasta="a.fa", prepared="b")
    with pytest.raises(ProtlmError, match="'cut'; choose one of crop, chunk, drop"):
        DataConfig(long_proteins="cut")
    with pytest.raises(ProtlmError, match="does not exist; make it with protlm prepare"):
        batches(tmp_path / "none")
    with pytest.raises(ProtlmError, match="is read from a local disk: copy it there first"):
        batches("gs://bucket/uniref50")
    folder = write_prepared(tmp_path / "all", proteins([30, 40]), heldout_percent=0.0)
    with pytest.raises(ProtlmError, match="holds no protein out; prepare it with --heldout"):
        batches(folder, split="heldout")
    with pytest.raises(ProtlmError, match="no protein fits a row of data.length=20"):
        batches(folder, length=20, long_proteins="drop")
    with pytest.raises(ProtlmError, match="without U, Z, O and B: prepare it again"):
        batches(folder, rare_residues="keep")
    without_x = Vocabulary("bare", ("-", *AMINO_ACIDS), 0, 0, None, (), ())
    odd = write_prepared(tmp_path / "odd", {"a": "MKX"}, heldout_percent=0.0)
    config = DataConfig(prepared=str(odd))
    with pytest.raises(ProtlmError, match="1 residues are 'X', which has no id in bare"):
        open_batches(config, without_x, split="train", seed=0, batch_size=2)
    shard = next((folder / "tokens").glob("train-00001*"))
    shard.unlink()
    with pytest.raises(ProtlmError, match=rf"{shard.name} is missing"):
        batches(folder)
