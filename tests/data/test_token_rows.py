"""Corruption against what the papers say of it, by counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data import orders
from protlm_jax.data.token_rows import (
    HIDDEN,
    RANDOM_SHARE,
    SPAN_TASKS,
    Alphabet,
    prott5_noise,
    span_noise,
)
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_T5, RESIDUES

each = pytest.mark.parametrize("kind", SPAN_TASKS)
FIRST, LAST = 127, 28  # <extra_id_0> and <extra_id_99>
Pair = tuple[list[int], list[int]]
N = 400_000


def letters_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def noised(letters: np.ndarray, seed: int, share: float = RANDOM_SHARE) -> np.ndarray:
    """ProtT5's inputs of rows of 1,000 residues."""
    rows = letters.reshape(-1, 1000)
    return prott5_noise(rows, orders.keys_of(orders.key_of(seed), np.arange(len(rows))), share)


def within(observed: float, expected: float, draws: float) -> bool:
    """Whether a share of `draws` trials lies within four standard errors."""
    return abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray]:
    targets = np.random.default_rng(0).choice(letters_of(AMINO_ACIDS), N)
    return targets.reshape(-1, 1000), noised(targets, 7)


def test_prott5_has_the_shares_of_the_model_card(noisy):
    targets, inputs = noisy
    changed, hidden = inputs != targets, inputs == HIDDEN
    assert within(changed.mean(), 0.15, N)
    assert within(hidden.mean(), 0.135, N)
    assert within(hidden[changed].mean(), 0.9, changed.sum())


def test_random_residues_are_uniform_over_the_other_nineteen(noisy):
    targets, inputs = noisy
    swapped = (inputs != targets) & (inputs != HIDDEN)
    table = np.zeros((256, 256))
    np.add.at(table, (targets[swapped], inputs[swapped]), 1)
    acids = letters_of(AMINO_ACIDS)
    table = table[np.ix_(acids, acids)]
    expected = swapped.sum() / 380
    assert table.sum() == swapped.sum() and not table.diagonal().any()
    off = table[~np.eye(20, dtype=bool)]
    chi2 = ((off - expected) ** 2 / expected).sum()
    assert abs(chi2 - 379) < 4 * np.sqrt(2 * 379)


def test_positions_are_chosen_independently(noisy):
    targets, inputs = noisy
    chosen = (inputs != targets).astype(float)
    assert within((chosen[:, 1:] * chosen[:, :-1]).mean(), 0.15**2, N)
    assert within((chosen[1:] * chosen[:-1]).mean(), 0.15**2, N)


def test_rare_residues_are_noised_too_and_never_drawn():
    targets = np.resize(letters_of("XUBZO"), N)
    inputs = noised(targets, 1).reshape(-1)
    changed = inputs != targets
    assert within(changed.mean(), 0.15, N)
    drawn = inputs[changed & (inputs != HIDDEN)]
    assert set(drawn.tolist()) == set(letters_of(AMINO_ACIDS).tolist())


def test_a_random_residue_is_always_another_one_and_held_out_there_is_none():
    targets = np.full(N, ord("A"), np.uint8)
    # A draw that may come back to the residue itself would change only 0.15 * 19 / 20 of them.
    inputs = noised(targets, 2, share=1.0).reshape(-1)
    assert within((inputs != targets).mean(), 0.15, N) and HIDDEN not in inputs
    inputs = noised(targets, 2, share=0.0).reshape(-1)
    assert set(np.unique(inputs).tolist()) == {ord("A"), HIDDEN}
    assert within((inputs != targets).mean(), 0.15, N)


def corrupt(kind: str, proteins: list[np.ndarray], seed: int = 0) -> list[Pair]:
    """Inputs and targets of some proteins, as ids."""
    letter_of = {int(PROT_T5.letter_table[ord(c)]): ord(c) for c in RESIDUES}
    letters = np.array([letter_of[i] for p in proteins for i in p.tolist()], np.uint8)
    sizes = np.array(list(map(len, proteins)))
    keys = orders.keys_of(orders.key_of(seed), np.arange(len(proteins)))
    inputs, shown, targets, asked = span_noise(letters, sizes, keys, SPAN_TASKS[kind])
    ids = Alphabet(PROT_T5).ids
    assert len(inputs) == shown.sum() and len(targets) == asked.sum()
    return [
        (a.tolist(), b.tolist())
        for a, b in zip(
            np.split(ids(inputs), np.cumsum(shown)[:-1]),
            np.split(ids(targets), np.cumsum(asked)[:-1]),
            strict=True,
        )
    ]


def spans_of(targets: list[int]) -> list[list[int]]:
    """What stands behind each sentinel, after checking that they are counted down from 127."""
    starts = [i for i, token in enumerate(targets) if token >= LAST]
    assert [targets[i] for i in starts] == list(range(FIRST, FIRST - len(starts), -1))
    assert starts[0] == 0
    return [targets[a + 1 : b] for a, b in itertools.pairwise([*starts, len(targets)])]


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The protein: each sentinel of the inputs replaced by what stands behind it in the targets."""
    spans = spans_of(targets)
    sentinels = [token for token in inputs if token >= LAST]
    assert sentinels == list(range(FIRST, FIRST - len(sentinels), -1))
    protein: list[int] = []
    for token in inputs:
        protein += [token] if token < LAST else spans[FIRST - token]
    return protein


def rounded(residues: int, density: float, mean_length: float) -> tuple[int, int]:
    """Hidden residues and spans as T5 rounds them: half to even, in float32."""
    hidden = int(np.round(np.float32(residues) * np.float32(density)))
    hidden = min(max(hidden, 1), residues - 1)
    return hidden, max(int(np.round(np.float32(hidden) / np.float32(mean_length))), 1)


@each
@settings(deadline=None, max_examples=25)
@given(
    proteins=st.lists(st.text(RESIDUES, min_size=1, max_size=300), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_inputs_and_targets_give_back_each_protein(kind, proteins, seed):
    ids = [PROT_T5.encode(p, specials=False) for p in proteins]
    for protein, (inputs, targets) in zip(ids, corrupt(kind, ids, seed), strict=True):
        assert restored(inputs, targets) == protein.tolist()
        spans = spans_of(targets)
        if len(protein) == 1:
            assert (inputs, targets) == (protein.tolist(), [FIRST])
            continue
        hidden, count = rounded(len(protein), *((0.15, 3) if kind == "span3" else (0.2, 1)))
        assert sum(map(len, spans)) == hidden and len(spans) == count and all(spans)
        assert inputs[0] < LAST <= inputs[-1], "begins with what is shown, ends with what is hidden"
        assert all(a < LAST or b < LAST for a, b in itertools.pairwise(inputs))


def test_the_shares_are_those_of_the_papers():
    proteins = [np.resize(PROT_T5.amino_acid_ids, n) for n in range(200, 500)]
    residues = sum(map(len, proteins))
    spans = {k: [s for _, t in corrupt(k, proteins) for s in spans_of(t)] for k in SPAN_TASKS}
    hidden = {k: sum(map(len, v)) for k, v in spans.items()}
    assert hidden["span3"] / residues == pytest.approx(0.15, abs=1e-3)
    assert hidden["span3"] / len(spans["span3"]) == pytest.approx(3.0, abs=0.03)
    assert hidden["ankh"] / residues == pytest.approx(0.20, abs=1e-3)
    assert set(map(len, spans["ankh"])) == {1}


def test_all_ways_to_cut_are_equally_likely():
    # 40 residues: 6 hidden in 2 spans (5 ways), 34 shown in 2 pieces (33 ways), independently.
    draws = 5 * 33 * 20
    pairs = corrupt("span3", [np.full(40, 3)] * draws, seed=5)
    table = np.zeros((33, 5))
    for inputs, targets in pairs:
        table[inputs.index(FIRST) - 1, len(spans_of(targets)[0]) - 1] += 1
    chi2 = ((table - 20) ** 2 / 20).sum()
    assert abs(chi2 - 164) < 4 * np.sqrt(2 * 164)
    assert ((table.sum(axis=0) - 660) ** 2 / 660).sum() < 20  # 4 degrees, p = 0.0005
    assert ((table.sum(axis=1) - 100) ** 2 / 100).sum() < 64  # 32 degrees, p = 0.0007


def test_partial_demasking_hides_all_places_alike():
    # 12 residues: 2 hidden, the last and any of the nine between the first and its neighbour.
    pairs = corrupt("ankh", [np.full(12, 3)] * 1800, seed=2)
    found = np.bincount([inputs.index(FIRST) for inputs, _ in pairs], minlength=11)
    assert found[0] == 0 == found[10:].sum()
    assert ((found[1:10] - 200) ** 2 / 200).sum() < 28  # chi square, 8 degrees, p = 0.0005


def test_the_examples_of_the_papers():
    # Ankh3's: M<0>AY<1>LI<2>SRG<3> asks for <0>K<1>V<2>N<3>P. No draw hides 4 of 12, so any that
    # hides K and P shows the form.
    protein = PROT_T5.encode("MKAYVLINSRGP", specials=False)
    pairs = corrupt("ankh", [protein] * 200)
    texts = {tuple(PROT_T5.decode(ids) for ids in pair) for pair in pairs}
    assert ("M<extra_id_0>AYVLINSRG<extra_id_1>", "<extra_id_0>K<extra_id_1>P") in texts
    # T5's rows: 512 tokens of inputs hold 568 of text, and then 114 of targets, </s> in each.
    assert SPAN_TASKS["span3"].longest(511, 511, 100) == 568
    assert SPAN_TASKS["span3"].longest(511, 113, 100) == 568
    assert SPAN_TASKS["span3"].longest(511, 112, 100) < 568
    assert sum(rounded(568, 0.15, 3)) == 113


def test_the_sentinels_bound_the_length():
    for kind, longest in (("span3", 2009), ("ankh", 502)):
        assert SPAN_TASKS[kind].longest(10_000, 10_000, 100) == longest
        protein = np.resize(PROT_T5.amino_acid_ids, longest + 1)
        ((inputs, targets),) = corrupt(kind, [protein[:-1]])
        assert restored(inputs, targets) == protein[:-1].tolist()
        assert min(token for token in targets if token > 27) == inputs[-1] == LAST


@each
def test_what_fits_is_all_that_fits(kind):
    noise = SPAN_TASKS[kind]
    density, mean_length = noise.density, noise.mean_length
    for inputs, targets, sentinels in itertools.product((2, 9, 60, 300), (2, 9, 60), (1, 5, 100)):
        longest = noise.longest(inputs, targets, sentinels)
        for residues in range(2, 700):
            hidden, spans = rounded(residues, density, mean_length)
            sizes = (residues - hidden + spans, hidden + spans, spans)
            fits = all(a <= b for a, b in zip(sizes, (inputs, targets, sentinels), strict=True))
            assert fits == (residues <= longest)


@each
def test_seeds_decide(kind):
    proteins = [PROT_T5.encode(AMINO_ACIDS * 5, specials=False)] * 10
    first, again, other = (corrupt(kind, proteins, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert len({tuple(inputs) for inputs, _ in first}) > 8, "two examples have different noise"
