"""Counts are exact, add up in any order, and come back from the file as they were."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protlm_jax.data.prepare import manifest
from protlm_jax.data.prepare.manifest import RecordCounts, Tally
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.prepared import Prepared
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import digest_of_json
from protlm_jax.vocabularies import RESIDUES

sequences = st.lists(st.text(RESIDUES, min_size=1, max_size=30), max_size=20)
NOTHING = {"file": None, "bytes": 0, "blake2b": ""}


@given(sequences=sequences)
def test_a_tally_counts_lengths_and_letters(sequences):
    told = Tally.of(sequences).describe()
    assert told["proteins"] == len(sequences) and told["residues"] == sum(map(len, sequences))
    assert told["longest"] == max(map(len, sequences), default=0)
    assert dict(map(tuple, told["lengths"])) == Counter(map(len, sequences))
    assert told["lengths"] == sorted(told["lengths"])
    assert {k: v for k, v in told["residue_counts"].items() if v} == Counter("".join(sequences))


def part(rng: random.Random) -> RecordCounts:
    counts = RecordCounts(
        splits={"train": Tally.of("ACD"), "heldout": Tally.of(["WY"] * rng.choice([0, 1]))}
    )
    for _ in range(rng.randrange(12)):
        counts.dropped["too_long"].note((rng.randrange(3), rng.randrange(100)), "p")
    kept = sum(tally.lengths.total() for tally in counts.splits.values())
    counts.read = kept + counts.dropped["too_long"].count
    return counts


@given(seed=st.integers(0, 1000))
def test_counts_add_up_in_any_order(seed):
    rng = random.Random(seed)
    parts = [part(rng) for _ in range(6)]
    totals = []
    for _ in range(2):
        rng.shuffle(parts)
        totals.append(manifest.total(parts))
    first, second = totals
    assert first.dropped == second.dropped and first.read == second.read
    assert first.splits["heldout"].describe() == second.splits["heldout"].describe()
    everything = sorted(e for p in parts for e in p.dropped["too_long"].examples)
    assert first.dropped["too_long"].examples == everything[: manifest.EXAMPLES]


def test_a_record_that_got_lost_is_noticed():
    counts = RecordCounts(read=4, splits={"train": Tally.of("ACD"), "heldout": Tally()})
    with pytest.raises(AssertionError, match="1 records are neither"):
        built(counts)


def built(counts: RecordCounts) -> dict:
    plan = PreparePlan("fasta", "r1", (), Path("out"), SelectionRules(), True, False, 1, 1)
    source = {"name": "a.fa", "bytes": 1, "sha256": "0"}
    return manifest.build(plan, counts, sources=[source], tokens={}, records={}, heldout=NOTHING)


def test_the_file_gives_back_what_was_counted(tmp_path):
    counts = RecordCounts(
        read=4, splits={"train": Tally.of(["AC", "MK"]), "heldout": Tally.of(["W"])}
    )
    counts.dropped["too_long"].note((0, 7), "long one")
    told = built(counts)
    text = manifest.to_text(told)
    digest = digest_of_json(told)
    assert json.loads(text) == told | {"digest": digest} and '"lengths": [[2, 2]]' in text
    (tmp_path / "manifest.json").write_text(text)
    prepared = Prepared.open(tmp_path)
    assert prepared.splits["train"].lengths.tolist() == [[2, 2]]
    assert prepared.splits["heldout"].residue_counts["W"] == 1
    assert prepared.manifest["dropped"] == {"too_long": {"count": 1, "examples": ["long one"]}}


def test_nothing_left_to_train_on_is_an_error():
    counts = RecordCounts(read=3, splits={"train": Tally(), "heldout": Tally.of(["W"])})
    for line in (1, 5):
        counts.dropped["too_short"].note((0, line), "p")
    with pytest.raises(ProtlmError, match=r"of 3 records no .*too_short 2, held out 1"):
        built(counts)
