"""What ESM-2 has of its own: rotations, token dropout by protein, and contacts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from protlm_jax.config.run import OptimizerConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.models import positions
from protlm_jax.models.contacts import corrected, pairs_of
from protlm_jax.models.families.esm2 import esm2_config, token_dropout
from protlm_jax.models.positions import rotary_frequencies, rotate, rotation
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.vocabularies import ESM2, get_vocabulary

RNG = np.random.default_rng(0)
MASK = ESM2.hiding_id


def test_a_rotation_turns_pairs_of_halves() -> None:
    """Against complex numbers, pair by pair."""
    frequencies = np.asarray(rotary_frequencies(6))
    np.testing.assert_allclose(frequencies, [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], rtol=1e-6)
    x = RNG.standard_normal((2, 5, 3, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 300, 2, 0, 1]], np.int32)
    found = rotate(jnp.asarray(x), rotation(positions, jnp.asarray(frequencies)))
    angle = positions[..., None, None] * frequencies
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("head_dim", [6, 10])
def test_a_tpu_turns_by_a_product_and_gives_the_same_bits(
    dtype: str, neighbours: bool, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of heads of 10 the first six entries turn."""
    x = jnp.asarray(RNG.standard_normal((2, 5, 3, head_dim)), dtype)
    turn = rotation(np.arange(10).reshape(2, 5), rotary_frequencies(6), neighbours)
    run = jax.jit(lambda x: jax.vjp(lambda x: rotate(x, turn), x)[1](x)[0])
    elsewhere = rotate(x, turn), run(x)
    monkeypatch.setattr(positions, "device_kind", lambda: "TPU v4")
    jax.clear_caches()
    text = str(jax.make_jaxpr(lambda x: rotate(x, turn))(x))
    assert "dot_general" in text and "split" not in text
    np.testing.assert_array_equal(rotate(x, turn), elsewhere[0])
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    gradient = np.asarray(elsewhere[1], np.float32)
    run = jax.jit(lambda x: jax.vjp(lambda x: rotate(x, turn), x)[1](x)[0])
    np.testing.assert_allclose(np.asarray(run(x), np.float32), gradient, atol=tolerance)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = RNG.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    frequencies = rotary_frequencies(8)

    def score(at: int, seen: int) -> float:
        turn = [rotation(np.array([[i]], np.int32), frequencies) for i in (at, seen)]
        return float(jnp.sum(rotate(q, turn[0]) * rotate(k, turn[1])))

    assert score(3, 9) == pytest.approx(score(103, 109), abs=1e-3)
    assert abs(score(3, 9) - score(9, 3)) > 1e-2


def test_an_odd_head_cannot_be_turned() -> None:
    with pytest.raises(ProtlmError, match="head_dim is 5; rotary positions need it even"):
        esm2_config(d_model=10, num_layers=1, num_heads=2, head_dim=5, d_ff=8)


def test_each_protein_is_scaled_by_its_own_share_of_masks() -> None:
    """Two proteins and padding in a row, another row without a mask, one all masked."""
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8, [5, 5, 3, 3, 3, 3, 3, 3]], np.int32)
    masked = np.zeros(segments.shape, bool)
    masked[0, [1, 5, 6, 7]] = True
    masked[2, :3] = True
    found = np.asarray(token_dropout(jnp.asarray(masked), jnp.asarray(segments)))
    a, b, c = 0.88 / (3 / 4), 0.88 / (1 / 3), 0.88 / (5 / 6)
    expected = [[a, 0, a, a, b, 0, 0, 0], [0.88] * 8, [0, 0, 0, c, c, c, c, c]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def with_masks(members: list[int], length: int) -> zoo.Batch:
    """Rows of the zoo with the third and fourth residue of protein 1 and one of the others hidden:
    another share of masks in every protein."""
    batch = zoo.row("esm2", members, length)
    tokens, segments, positions = (batch[k] for k in ("input_tokens", "segment_ids", "positions"))
    watched = segments == members.index(1) + 1
    hidden = np.where(watched, (positions == 2) | (positions == 3), positions == 1)
    return batch | {"input_tokens": np.where(hidden & (segments > 0), MASK, tokens)}


def test_masked_proteins_are_the_same_packed_and_alone(assert_close) -> None:
    """The share of <mask> is the protein's, not the row's: streams, logits and contacts."""
    loaded = zoo.loaded("esm2")

    @jax.jit
    def seen(batch: zoo.Batch) -> dict[str, jax.Array]:
        run = functools.partial(loaded.model.apply, {"params": loaded.params})
        h, context = run(batch, method="embed")
        out, taps = run(h, context, method="stack")
        streams = jnp.moveaxis(taps["encoder"]["stream"], 0, 2)  # [B, L, N, D]
        contacts = run(batch, method="contacts")
        return {"stream": streams, "logits": run(out, method="head"), "contacts": contacts}

    alone = seen(with_masks([1], 9))
    packed = {name: x[:, zoo.WATCHED] for name, x in seen(with_masks([0, 1, 2], zoo.ROW)).items()}
    # Off its own protein a residue has no contacts.
    outside = np.delete(np.asarray(packed["contacts"]), np.r_[zoo.WATCHED], axis=2)
    assert outside.max() == 0
    packed["contacts"] = packed["contacts"][:, :, zoo.WATCHED]
    for name, expected in alone.items():
        assert_close(packed[name], expected, 1e-5, name)
    assert np.asarray(alone["contacts"]).min() > 0

    stream = np.asarray(alone["stream"])[0]
    assert (stream[[2, 3], 0] == 0).all() and (np.abs(stream[[2, 3], 1:]).max(-1) > 0).all()
    token = np.asarray(loaded.params["token"])[with_masks([1], 9)["input_tokens"][0]]
    assert_close(stream[[0, 1, 4], 0], token[[0, 1, 4]] * 0.88 / (7 / 9), 1e-6)


def test_without_token_dropout_a_mask_is_a_token_like_others(assert_close) -> None:
    loaded = zoo.loaded("esm2")
    config = loaded.config.replace(token_dropout=False)
    model = dataclasses.replace(loaded.model, config=config, parent=None)
    batch = with_masks([1], 9)
    h, _ = model.apply({"params": loaded.params}, batch, method="embed")
    assert_close(h["encoder"], loaded.params["token"][batch["input_tokens"]], 1e-6)


def test_the_frequencies_of_the_checkpoint_count(assert_close) -> None:
    """Those of the parameters turn the heads, not those that a formula gives."""
    loaded = zoo.loaded("esm2")
    batch = zoo.row("esm2", [1], 9)
    apply = jax.jit(loaded.model.apply)
    logits = apply({"params": loaded.params}, batch)
    moved = batch | {"positions": batch["positions"] + 40}
    assert_close(apply({"params": loaded.params}, moved), logits, 1e-4)
    stopped = loaded.params | {"frequencies": jnp.zeros_like(loaded.params["frequencies"])}
    assert np.abs(np.asarray(apply({"params": stopped}, batch) - logits)).max() > 1e-2


def test_correction_of_maps_against_plain_loops() -> None:
    """Two proteins in a row, the first between special tokens."""
    segments = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0]], np.int32)
    counted = np.array([[0, 1, 1, 1, 0, 1, 1, 1, 0]], bool)
    maps = RNG.random((1, 2, 9, 9)).astype(np.float32)
    pairs = pairs_of(jnp.asarray(counted), jnp.asarray(segments))
    found = np.asarray(corrected(jnp.asarray(maps), pairs))
    expected = np.zeros_like(maps)
    for residues in ([1, 2, 3], [5, 6, 7]):
        for head in range(2):
            own = maps[0, head][np.ix_(residues, residues)]
            own = own + own.T
            product = own.sum(0)[:, None] * own.sum(1)[None] / own.sum()
            expected[0, head][np.ix_(residues, residues)] = own - product
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_training_leaves_what_no_gradient_reaches(name: str) -> None:
    """Neither weight decay nor a trust ratio moves the frequencies and the contact head."""
    loaded = zoo.loaded("esm2")
    kept = {k: loaded.params[k] for k in ("frequencies", "contact_head", "token")}
    axes = {
        "frequencies": ("frequencies",),
        "contact_head": {"kernel": ("layers", "heads"), "bias": ("answers",)},
        "token": ("vocab", "embed"),
    }
    optimizer = build_optimizer(OptimizerConfig(name, weight_decay=0.1), lambda step: 0.1, axes)
    nothing = jax.tree.map(jnp.zeros_like, kept)
    updates, _ = optimizer.update(nothing, optimizer.init(kept), kept)
    assert np.abs(updates["token"]).max() > 0
    for part in ("frequencies", "contact_head"):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates[part])), part


def test_the_vocabulary_is_that_of_the_published_file() -> None:
    """The 33 lines of vocab.txt, by the places that anybody knows by heart."""
    assert get_vocabulary("esm2") is ESM2 and ESM2.size == 33
    assert ESM2.decode(ESM2.encode("LAGC")) == "<cls>LAGC<eos>"
    assert ESM2.encode("LAGCXBUZO").tolist() == [0, 4, 5, 6, 23, 24, 25, 26, 27, 28, 2]
    assert ESM2.tokens[29:] == (".", "-", "<null_1>", "<mask>")
