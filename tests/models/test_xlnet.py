"""XLNet's two streams against PyTorch's, with the same weights, permutation mask and memory.

The content stream alone is compared through files in tests/huggingface/test_logits.py.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from protlm_jax import models
from protlm_jax.huggingface.convert import EXCHANGES, params_from, tensors
from protlm_jax.objectives.base import cross_entropy
from protlm_jax.vocabularies import PROT_XLNET

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = np.array([12, 7, 9])
B, L = len(LENGTHS), 12
REAL = np.arange(L)[None] < LENGTHS[:, None]
RNG = np.random.default_rng(0)
EXCHANGE = EXCHANGES["xlnet"]
CLS = PROT_XLNET.suffix_ids[-1]


def proteins() -> np.ndarray:
    """Residues, <sep><cls>, padding on the right: [B, L] int32."""
    tokens = RNG.choice(PROT_XLNET.amino_acid_ids, (B, L))
    for row, length in enumerate(LENGTHS):
        tokens[row, length - 2 : length] = PROT_XLNET.suffix_ids
    return np.where(REAL, tokens, PROT_XLNET.pad_id).astype(np.int32)


TOKENS = proteins()
BATCH = {"input_tokens": TOKENS, "segment_ids": REAL.astype(np.int32)}
RANKS = 1 + np.argsort(RNG.random((B, L)), axis=1)
RESIDUE = np.isin(TOKENS, PROT_XLNET.amino_acid_ids)
ORDER = np.where(RESIDUE & (np.arange(L) % 5 != 2), RANKS, 0).astype(np.int32)
PLACES = np.array([RNG.permutation(np.flatnonzero(row)[:4]) for row in ORDER > 0], np.int32)
ANSWERS = np.take_along_axis(TOKENS, PLACES, axis=1)


@functools.cache
def network() -> Any:
    loaded = zoo.loaded("xlnet")
    fields = EXCHANGE.to_config(loaded.config)
    model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**fields)).eval()
    state = {name: torch.tensor(array) for name, array in tensors(EXCHANGE, loaded.params)}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.tie_weights()
    return model


def their_inputs(order: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """The same question in their terms: who may not see whom, and one-hot rows of the asked."""
    hidden = (order[:, None, :] > 0) & (order[:, None, :] >= order[:, :, None])
    return {
        "input_ids": torch.tensor(TOKENS).long(),
        "attention_mask": torch.tensor(REAL).float(),
        "token_type_ids": torch.tensor(2 * np.isin(TOKENS, CLS)).long(),
        "perm_mask": torch.tensor(hidden).float(),
        "target_mapping": torch.tensor(np.eye(L)[places]).float(),
    }


def apply(batch: dict[str, Any], method: str = "__call__") -> Any:
    loaded = zoo.loaded("xlnet")
    run = jax.jit(functools.partial(loaded.model.apply, method=method))
    return run({"params": loaded.params}, batch)


@functools.cache
def both_ways() -> tuple[Any, ...]:
    """Streams before each block and after the last, and gradients: ours, then theirs."""
    loaded = zoo.loaded("xlnet")

    def loss(params: Any) -> tuple[jax.Array, Any]:
        bound = functools.partial(loaded.model.apply, {"params": params})
        h, context = bound({**BATCH, "order": ORDER, "targets": PLACES}, method="embed")
        out, taps = bound(h, context, method="stack")
        streams = jax.tree.map(
            lambda before, last: jnp.concatenate([before, last[None]]),
            taps["encoder"]["stream"],
            out["encoder"],
        )
        return jnp.sum(cross_entropy(bound(out, method="head"), jnp.asarray(ANSWERS))), streams

    gradients, streams = jax.jit(jax.grad(loss, has_aux=True))(loaded.params)

    model = network()
    caught: list[tuple[np.ndarray, np.ndarray]] = []

    def catch(pair: Any) -> None:
        caught.append(tuple(x.detach().permute(1, 0, 2).numpy() for x in pair[:2]))

    layers = model.transformer.layer
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: catch(args))]
    hooks += [layer.register_forward_hook(lambda _, args, out: catch(out)) for layer in layers]
    logits = model(**their_inputs(ORDER, PLACES)).logits
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(ANSWERS).long().flatten(), reduction="sum"
    ).backward()
    named = dict(model.named_parameters())
    abstract = models.abstract_params(loaded.model)
    expected = params_from(EXCHANGE, abstract, lambda name: named[name].grad.numpy())
    return streams, gradients, caught, expected


def test_both_streams_of_every_block_are_those_of_torch(assert_close) -> None:
    (content, query), _, caught, _ = both_ways()
    assert len(content) == len(query) == len(caught) == zoo.ZOO["xlnet"].config.num_layers + 1
    for depth, (a, b) in enumerate(zip(content, (pair[0] for pair in caught), strict=True)):
        assert_close(np.asarray(a)[REAL], b[REAL], 1e-4, f"content before block {depth}")
    for depth, (a, b) in enumerate(zip(query, (pair[1] for pair in caught), strict=True)):
        assert_close(a, b, 1e-4, f"query before block {depth}")


def test_every_gradient_is_that_of_torch(assert_close) -> None:
    _, gradients, _, expected = both_ways()
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    found = jax.tree_util.tree_leaves_with_path(gradients)
    for (path, a), b in zip(found, jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.abs(b).max() > 0, name
        parts = zip(a, b, strict=True) if name.startswith("encoder") else [(a, b)]
        for layer, (mine, reference) in enumerate(parts):
            assert_close(mine, reference, 1e-4, f"{name}, layer {layer}")


def test_queries_at_some_places_are_those_at_all_places(assert_close) -> None:
    everywhere = apply({**BATCH, "order": ORDER})
    some = apply({**BATCH, "order": ORDER, "targets": PLACES})
    assert everywhere.shape == (B, L, PROT_XLNET.size)
    assert_close(some, np.take_along_axis(np.asarray(everywhere), PLACES[..., None], 1), 1e-5)


def test_hidden_residues_are_targets_that_do_not_see_each_other(assert_close) -> None:
    """What evaluation asks, in their terms: nobody sees any hidden residue."""
    ours = np.asarray(apply({**BATCH, "hidden": ORDER > 0}))
    everywhere = np.tile(np.arange(L), (B, 1))
    with torch.no_grad():
        theirs = network()(**their_inputs((ORDER > 0).astype(int), everywhere)).logits.numpy()
    assert_close(ours[ORDER > 0], theirs[ORDER > 0], 1e-4)
    swapped = np.where(ORDER > 0, RNG.choice(PROT_XLNET.amino_acid_ids, (B, L)), TOKENS)
    blind = apply({**BATCH, "input_tokens": swapped.astype(np.int32), "hidden": ORDER > 0})
    np.testing.assert_array_equal(np.asarray(blind)[ORDER > 0], ours[ORDER > 0])


def test_padding_on_the_left_is_padding_on_the_right(assert_close) -> None:
    """Theirs stands on the left by default; distances are relative, so nothing changes."""
    ours = np.asarray(apply(BATCH, "hidden"))
    rolled = [np.roll(row, L - length) for row, length in zip(TOKENS, LENGTHS, strict=True)]
    ids = torch.tensor(np.stack(rolled)).long()
    real = REAL[:, ::-1].copy()
    with torch.no_grad():
        theirs = network().transformer(
            ids, attention_mask=torch.tensor(real).float(), token_type_ids=2 * (ids == CLS).long()
        )
    for row, length in enumerate(LENGTHS):
        expected = theirs.last_hidden_state[row, L - length :].numpy()
        assert_close(ours[row, :length], expected, 1e-4)


def test_a_memory_is_seen_as_torch_sees_it(assert_close) -> None:
    """Two rows of one protein; the second remembers the last four tokens of the first."""
    loaded = zoo.loaded("xlnet")
    model = models.build(loaded.config.replace(memory_length=4))
    recur = jax.jit(functools.partial(model.apply, method="recur"))
    segments = np.full((B, L), 7, np.int32)
    first = {"input_tokens": RNG.choice(PROT_XLNET.residue_ids, (B, L)), "segment_ids": segments}
    second = {"input_tokens": TOKENS, "segment_ids": segments, "order": ORDER, "targets": PLACES}
    _, carry = recur({"params": loaded.params}, first, model.initial_carry(B))
    logits, after = recur({"params": loaded.params}, second, carry)
    forgetful, _ = recur({"params": loaded.params}, second, model.initial_carry(B))
    with torch.no_grad():
        ids = torch.tensor(first["input_tokens"]).long()
        types = torch.zeros_like(ids)
        mems = network().transformer(ids, token_type_ids=types, use_mems=True).mems
        inputs = their_inputs(ORDER, PLACES) | {"attention_mask": torch.ones(B, L)}
        theirs = network()(**inputs, mems=[mem[-4:] for mem in mems]).logits
    assert_close(logits, theirs.numpy(), 1e-4)
    assert np.abs(np.asarray(logits - forgetful)).max() > 1e-2
    assert after["past"].shape == (B, loaded.config.num_layers, 4, loaded.config.d_model)
    # Another protein's memory is not seen.
    other = carry | {"past_segments": carry["past_segments"] + 1}
    assert_close(recur({"params": loaded.params}, second, other)[0], forgetful, 1e-5)
