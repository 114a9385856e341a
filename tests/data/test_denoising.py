"""ProtT5's noise against its stated shares, computed by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.data.denoising import prott5_corruption
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.vocabularies import PROT_T5, RESIDUES

N = 400_000


def corrupt(targets: np.ndarray, seed: int, **options: float) -> tuple[np.ndarray, np.ndarray]:
    """Targets and inputs of rows of 1,000 residues under SeqIO's seeds."""
    ds = tf.data.Dataset.from_tensor_slices({"targets": targets.reshape(-1, 1000)})
    with seqio.utils.map_seed_manager(seed):
        ds = seqio.map_over_dataset(num_seeds=1)(prott5_corruption(PROT_T5, **options))(ds)
    rows = list(ds.as_numpy_iterator())
    return np.stack([r["targets"] for r in rows]), np.stack([r["inputs"] for r in rows])


def within(observed: float, expected: float, draws: float) -> bool:
    """Whether a share of `draws` trials lies within four standard errors."""
    return abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return corrupt(rng.choice(PROT_T5.amino_acid_ids, N).astype(np.int32), 7)


def test_the_shares_are_those_of_the_model_card(noisy):
    targets, inputs = noisy
    changed, sentinel = inputs != targets, inputs == PROT_T5.mask_id
    assert inputs.dtype == np.int32
    assert within(changed.mean(), 0.15, N)
    assert within(sentinel.mean(), 0.135, N)
    assert within(sentinel[changed].mean(), 0.9, changed.sum())


def test_random_residues_are_uniform_over_the_other_nineteen(noisy):
    targets, inputs = noisy
    swapped = (inputs != targets) & (inputs != PROT_T5.mask_id)
    table = np.zeros((20, 20))
    rank = {token: i for i, token in enumerate(PROT_T5.amino_acid_ids.tolist())}
    for a, b in zip(targets[swapped].tolist(), inputs[swapped].tolist(), strict=True):
        table[rank[a], rank[b]] += 1
    expected = swapped.sum() / 380
    assert not table.diagonal().any()
    off = table[~np.eye(20, dtype=bool)]
    chi2 = ((off - expected) ** 2 / expected).sum()
    assert abs(chi2 - 379) < 4 * np.sqrt(2 * 379)


def test_positions_are_chosen_independently(noisy):
    targets, inputs = noisy
    chosen = (inputs != targets).astype(float)
    assert within((chosen[:, 1:] * chosen[:, :-1]).mean(), 0.15**2, N)
    assert within((chosen[1:] * chosen[:-1]).mean(), 0.15**2, N)


def test_rare_residues_are_noised_too_and_never_drawn():
    ids = PROT_T5.encode("XUBZO", specials=False)
    targets, inputs = corrupt(np.resize(ids, N).astype(np.int32), 1)
    changed = inputs != targets
    assert within(changed.mean(), 0.15, N)
    drawn = inputs[changed & (inputs != PROT_T5.mask_id)]
    assert set(drawn.tolist()) == set(PROT_T5.amino_acid_ids.tolist())


def test_seeds_decide():
    targets = np.resize(PROT_T5.encode(RESIDUES, specials=False), 10_000)
    first, again, other = (corrupt(targets, seed)[1] for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()
    assert (first[0] != first[1]).any(), "two rows of one data set have different noise"


def test_held_out_proteins_show_every_target_as_the_sentinel():
    targets, inputs = corrupt(np.full(N, 5, np.int32), 2, random_share=0.0)
    assert set(np.unique(inputs).tolist()) == {5, PROT_T5.mask_id}
    assert within((inputs != targets).mean(), 0.15, N)


def test_a_random_residue_is_always_another_one():
    # A draw that may come back to the residue itself would change only 0.15 * 19 / 20 of them.
    targets, inputs = corrupt(np.full(N, 5, np.int32), 2, random_share=1.0)
    assert within((inputs != targets).mean(), 0.15, N)
    assert PROT_T5.mask_id not in inputs
