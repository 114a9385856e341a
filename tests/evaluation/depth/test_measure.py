"""The compiled measurements against a slow reference: layers one at a time, sums in plain NumPy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax import models
from protlm_jax.evaluation.depth.measure import measure
from protlm_jax.models.block import Block
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.vocabularies import get_vocabulary

SIZES = {"d_model": 16, "num_layers": 3, "num_heads": 2, "head_dim": 8, "d_ff": 32}
BERT = bert_config(**SIZES, max_positions=16, initializer_range=0.3)
CONFIGS = {
    "post-LN": BERT,
    "pre-LN": BERT.replace(norm_placement="pre"),
    "encoder-decoder": t5_config(**SIZES, num_decoder_layers=4),
}
CASES = [("post-LN", "encoder"), ("pre-LN", "encoder")]
CASES += [("encoder-decoder", "encoder"), ("encoder-decoder", "decoder")]


class Example:
    """A model, a batch with padding and hidden residues, and the model's layers unstacked."""

    def __init__(self, name: str) -> None:
        config = CONFIGS[name]
        self.model = models.build(config)
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32),
            models.init_params(self.model, seed=0),
        )
        vocabulary = get_vocabulary(config.vocabulary)
        self.amino_acids = np.asarray(vocabulary.amino_acid_ids)
        real = np.arange(10)[None] < np.array([[10], [6], [8]])
        targets = np.where(real, rng.choice(self.amino_acids, real.shape), 0)
        self.targets = targets.astype(np.int32)
        self.hidden = real & (rng.random(real.shape) < 0.4)
        shown = np.where(self.hidden, vocabulary.mask_id, targets)
        sides = {
            "segment_ids": real.astype(np.int32),
            "positions": np.tile(np.arange(10), (3, 1)).astype(np.int32),
        }
        if config.num_decoder_layers:
            self.batch = {f"{s}_{k}": v for s in self.model.stack_names for k, v in sides.items()}
            before = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
            self.batch |= {"encoder_input_tokens": shown, "decoder_input_tokens": before}
        else:
            self.batch = {"input_tokens": shown, **sides}
        self.batch = {k: jnp.asarray(v, jnp.int32) for k, v in self.batch.items()}
        self.blocks = {s: Block(config, cross=s == "decoder") for s in self.model.stack_names}
        self.step = jax.jit(
            lambda params, h, context, stack: self.blocks[stack].apply(
                {"params": params}, h, context
            ),
            static_argnames="stack",
        )
        self.call = functools.partial(
            jax.jit(self.model.apply, static_argnames="method"), {"params": self.params}
        )

    def measured(self, stack: str, params: Any = None, rows: slice = slice(None)) -> Any:
        return jax.device_get(
            measure(
                self.model,
                self.params if params is None else params,
                {k: v[rows] for k, v in self.batch.items()},
                jnp.asarray(self.targets[rows]),
                jnp.asarray(self.hidden[rows]),
                jnp.asarray(self.amino_acids),
                stack=stack,
            )
        )

    def forward(self, skip: tuple[str, int] | None = None, stop: int | None = None):
        """Streams and taps of every stack by plain loops, and the answer [targets, 20].

        Args:
            skip: (stack, layer) that is left out: the stream goes on as it was.
            stop: depth of the last stack at which the answer is read.
        """
        streams: dict[str, list] = {}
        taps: dict[str, list] = {}
        ends, context = self.call(self.batch, method="embed")
        for stack in self.model.stack_names:
            context = self.call(ends, context, method="connect")
            h = ends[stack]
            streams[stack], taps[stack] = [np.asarray(h, np.float64)], []
            number = jax.tree.leaves(self.params[stack])[0].shape[0]
            for layer in range(number):
                params = jax.tree.map(lambda p, layer=layer: p[layer], self.params[stack])
                if (stack, layer) != skip:
                    h, tapped = self.step(params, h, context[stack], stack)
                    taps[stack].append({k: np.asarray(v, np.float64) for k, v in tapped.items()})
                streams[stack].append(np.asarray(h, np.float64))
            ends = {**ends, stack: h}
        if stop is not None:
            ends = {**ends, stack: jnp.asarray(streams[stack][stop], jnp.float32)}
        logits = np.asarray(self.call(ends, method="head"), np.float64)[self.hidden]
        wide = np.exp(logits[:, self.amino_acids])
        return streams, taps, wide / wide.sum(axis=1, keepdims=True)


example = functools.cache(Example)


def length(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(axis=-1) ** 0.5


def differs(ex: Example, base: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How one answer differs from another, summed over the targets."""
    true = ex.targets[ex.hidden][:, None] == ex.amino_acids[None]
    return {
        "l2": length(other - base).sum(),
        "kl": (other * np.log(other / base)).sum(),
        "top1_agreement": float((other.argmax(1) == base.argmax(1)).sum()),
        "nll": -np.log(other[true]).sum(),
    }


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_contributions_are_ratios_and_cosines_of_what_is_added(name, stack, assert_close) -> None:
    ex = example(name)
    found = ex.measured(stack)
    streams, taps, _ = ex.forward()
    expected: dict[str, list] = {"layer": []}
    for layer, tapped in enumerate(taps[stack]):
        before, after = streams[stack][layer : layer + 2]
        pairs = {"layer": (after - before, before)}
        h = before
        for sub in ex.blocks[stack].sublayers:
            pairs[sub] = (tapped[sub], tapped[f"{sub}_onto"])
            if name != "post-LN":  # there the next sublayer finds the sum as it is
                np.testing.assert_allclose(tapped[f"{sub}_onto"], h, atol=1e-4)
                h = h + tapped[sub]
        for key, (added, onto) in pairs.items():
            a, b = added[ex.hidden], onto[ex.hidden]
            cosine = (a * b).sum(-1) / (length(a) * length(b))
            expected.setdefault(key, []).append([(length(a) / length(b)).sum(), cosine.sum()])
    assert set(found["relative_contribution"]) == set(expected) == set(found["cosine"])
    for key, rows in expected.items():
        relative, cosine = np.transpose(rows)
        assert_close(found["relative_contribution"][key], relative, 1e-4, key)
        assert_close(found["cosine"][key], cosine, 1e-4, key)
    norms = [length(h[ex.hidden]).sum() for h in streams[stack]]
    assert_close(found["stream_norm"], norms, 1e-5)
    assert found["count"] == ex.hidden.sum()


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_skipping_a_layer_changes_later_layers_and_the_answer(name, stack, assert_close) -> None:
    """The skipped layer is the identity, norms included; an encoder is read at the decoder."""
    ex = example(name)
    found = ex.measured(stack)
    clean, _, base = ex.forward()
    number = len(clean[stack]) - 1
    expected = np.zeros((number, number))
    outputs = []
    for skipped in range(number):
        streams, _, answer = ex.forward(skip=(stack, skipped))
        outputs.append(differs(ex, base, answer))
        for layer in range(skipped + 1, number):
            usual = clean[stack][layer + 1] - clean[stack][layer]
            change = usual - (streams[stack][layer + 1] - streams[stack][layer])
            ratio = length(change[ex.hidden]) / length(usual[ex.hidden])
            expected[skipped, layer] = ratio.sum()
    assert_close(found["skip_map"], expected, 1e-6)
    assert (expected[np.triu_indices(number, 1)] > 0.01 * ex.hidden.sum()).all()
    for key in outputs[0]:
        assert_close(found["skip_output"][key], [o[key] for o in outputs], 1e-4, key)
    assert found["base_nll"] == pytest.approx(differs(ex, base, base)["nll"], rel=1e-5)


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_the_logit_lens_is_the_head_at_every_depth(name, stack, assert_close) -> None:
    ex = example(name)
    found = ex.measured(stack)
    if (name, stack) == ("encoder-decoder", "encoder"):
        assert "logit_lens" not in found, "no head reads this stack"
        return
    streams, _, base = ex.forward()
    depths = [differs(ex, base, ex.forward(stop=depth)[2]) for depth in range(len(streams[stack]))]
    for key in depths[0]:
        assert_close(found["logit_lens"][key], [d[key] for d in depths], 1e-4, key)
    assert found["logit_lens"]["kl"][-1] == pytest.approx(0, abs=1e-5)
    assert found["logit_lens"]["top1_agreement"][-1] == ex.hidden.sum()


def silenced(params: Any, stack: str, layer: int) -> Any:
    """One layer's sublayers add nothing."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        silent = names.startswith(f"{stack}/") and ("/out/" in names or "/wo/" in names)
        return leaf.at[layer].set(0.0) if silent else leaf

    return jax.tree_util.tree_map_with_path(one, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize(("name", "stack"), CASES)
def test_a_silent_layer_is_missed_by_nobody_in_pre_ln(name: str, stack: str) -> None:
    """In post-LN its norms still act, so that leaving it out changes something."""
    ex = example(name)
    found = ex.measured(stack, silenced(ex.params, stack, 1))
    count = ex.hidden.sum()
    for sub in ex.blocks[stack].sublayers:
        assert found["relative_contribution"][sub][1] == 0
        assert found["cosine"][sub][1] == 0
        assert found["relative_contribution"][sub][0] > 0
    if name == "post-LN":
        assert found["relative_contribution"]["layer"][1] > 0.01 * count
        assert found["skip_output"]["kl"][1] > 1e-4 * count
        return
    assert found["relative_contribution"]["layer"][1] == 0
    assert found["skip_map"][1].max() < 1e-4 * count < found["skip_map"][0].max()
    assert found["skip_output"]["l2"][1] < 1e-5 * count
    assert found["skip_output"]["top1_agreement"][1] == count


def test_rows_are_measured_on_their_own(assert_close) -> None:
    """The sums of a batch are those of its rows alone."""
    ex = example("post-LN")
    rows = [ex.measured("encoder", rows=slice(i, i + 1)) for i in range(3)]
    total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *rows)
    assert_close(ex.measured("encoder"), total, 1e-5)
