"""Stacked optimizers against plain optax on a tree that was unstacked by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.training.optimizers import (
    OptimizerConfig,
    averaged,
    build_optimizer,
    is_decayed,
    layer_statistics,
    opt_state_axes,
)

LAYERS, D, HEADS, KV, F, VOCAB = 3, 128, 4, 40, 192, 30
WIDTH = HEADS * KV
SHAPES: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "embedder/token": ((VOCAB, D), ("vocab", "embed")),
    "embedder/position": ((144, D), ("positions", "embed")),
    "encoder/attention/query/kernel": ((LAYERS, D, HEADS, KV), ("layers", "embed", "heads", "kv")),
    "encoder/attention/query/bias": ((LAYERS, HEADS, KV), ("layers", "heads", "kv")),
    "encoder/attention/type": ((LAYERS, 2, HEADS, KV), ("layers", "types", "heads", "kv")),
    "encoder/attention/out/kernel": ((LAYERS, HEADS, KV, D), ("layers", "heads", "kv", "embed")),
    "encoder/attention/out/bias": ((LAYERS, D), ("layers", "embed")),
    "encoder/attention_norm/scale": ((LAYERS, D), ("layers", "embed")),
    "encoder/mlp/wi/kernel": ((LAYERS, D, F), ("layers", "embed", "mlp")),
    "encoder/mlp/wo/kernel": ((LAYERS, F, D), ("layers", "mlp", "embed")),
    "shared/mlp/wi/kernel": ((1, D, F), ("layers", "embed", "mlp")),  # ALBERT: one for all layers
    "shared/mlp_norm/scale": ((1, D), ("layers", "embed")),
    "encoder_relative_bias": ((32, HEADS), ("relpos_buckets", "heads")),
    "head/dense/kernel": ((D, D), ("embed", "embed")),
    "head/bias": ((VOCAB,), ("vocab",)),
}
DECAYED = {
    "embedder/token",
    "embedder/position",
    "encoder/attention/query/kernel",
    "encoder/attention/type",
    "encoder/attention/out/kernel",
    "shared/mlp/wi/kernel",
    "encoder/mlp/wi/kernel",
    "encoder/mlp/wo/kernel",
    "head/dense/kernel",
}
LAYER_SCALES = np.array([0.01, 1.0, 10.0])  # a thousand between the first layer and the last
RATE = 3e-3


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        inside = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{name}/") if inside else {prefix + name: value}
    return flat


AXES = nest({path: names for path, (_, names) in SHAPES.items()})


def random_tree(seed: int, scales: np.ndarray = LAYER_SCALES) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    flat = {}
    for path, (shape, names) in SHAPES.items():
        value = generator.standard_normal(shape)
        if names[0] == "layers":
            value *= scales[: shape[0]].reshape(-1, *[1] * (len(shape) - 1))
        flat[path] = jnp.asarray(value, jnp.float32)
    return nest(flat)


def parameters() -> dict[str, Any]:
    params = random_tree(0)
    bias = params["encoder"]["attention"]["query"]["bias"]
    params["encoder"]["attention"]["query"]["bias"] = bias.at[0].set(0.0)  # as a bias begins
    return params


def unstack(tree: dict[str, Any]) -> dict[str, jax.Array]:
    """One matrix or vector per layer, heads and kv joined: {"path@layer": array}."""
    flat = {}
    for path, value in flatten(tree).items():
        names = SHAPES[path][1]
        layers = value if names[0] == "layers" else value[None]
        for i, layer in enumerate(layers):
            if path.endswith("query/kernel"):
                layer = layer.reshape(D, WIDTH)
            elif path.endswith("query/bias"):
                layer = layer.reshape(WIDTH)
            elif path.endswith("attention/type"):
                layer = layer.reshape(2, WIDTH)
            elif path.endswith("out/kernel"):
                layer = layer.reshape(WIDTH, D)
            flat[f"{path}@{i}"] = layer
    return flat


def plain(name: str) -> optax.GradientTransformation:
    mask = {key: key.split("@")[0] in DECAYED for key in unstack(parameters())}
    if name == "adafactor":  # optax.adafactor's defaults are T5's
        return optax.adafactor(schedule)
    if name == "muon":  # of single matrices; the rest by AdamW
        matrices = {k: ("encoder" in k and "kernel" in k) or "shared/mlp/wi" in k for k in mask}
        rms = optax.stateless(lambda g, _: jax.tree.map(lambda x: 0.2 * max(x.shape) ** 0.5 * x, g))
        sides = optax.contrib.MuonDimensionNumbers()
        muon = optax.chain(
            optax.contrib.scale_by_muon(
                beta=0.95, weight_dimension_numbers=lambda g: jax.tree.map(lambda _: sides, g)
            ),
            rms,
        )
        kinds = {key: "muon" if there else "adamw" for key, there in matrices.items()}
        links = {"muon": muon, "adamw": optax.scale_by_adam(0.9, 0.999, 1e-6)}
        return optax.chain(
            optax.partition(links, kinds),
            optax.add_decayed_weights(0.01, mask),
            optax.scale_by_learning_rate(schedule),
        )
    if name == "adamw":
        return optax.adamw(schedule, 0.9, 0.999, 1e-6, weight_decay=0.01, mask=mask)
    return optax.chain(  # as Google's LAMB: neither decay nor trust ratio for norms and biases
        optax.scale_by_adam(0.9, 0.999, 1e-6),
        optax.add_decayed_weights(0.01, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(schedule),
    )


def schedule(count: jax.Array) -> jax.Array:
    return RATE / (1.0 + count)


def ours(name: str, **changes: Any) -> optax.GradientTransformation:
    decay = 0.0 if name == "adafactor" else 0.01
    config = OptimizerConfig(**({"name": name, "weight_decay": decay} | changes))
    return build_optimizer(config, schedule, AXES)


def trajectory(optimizer: optax.GradientTransformation, view: Any) -> list[dict[str, jax.Array]]:
    """The updates of four steps on the same gradients; layers' scales change from step to step."""
    params = view(parameters())
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    updates = []
    for i in range(4):
        grads = view(random_tree(i + 1, np.roll(LAYER_SCALES, i)))
        update, state = step(grads, state, params)
        params = optax.apply_updates(params, update)
        updates.append(update)
    return updates


def first_update(optimizer: optax.GradientTransformation, grads: Any, params: Any) -> Any:
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def largest_error(actual: dict[str, jax.Array], expected: dict[str, jax.Array]) -> float:
    """Of max|difference| / max|expected| over the tensors of single layers."""
    assert actual.keys() == expected.keys()
    errors = [np.abs(actual[k] - expected[k]).max() / np.abs(expected[k]).max() for k in expected]
    return float(max(errors))


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_stacked_update_is_the_unstacked_one(name: str) -> None:
    expected = trajectory(plain(name), unstack)
    actual = trajectory(ours(name), lambda tree: tree)
    for i in range(4):
        assert largest_error(unstack(actual[i]), expected[i]) < 1e-6, f"step {i}"


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_plain_optax_on_stacked_parameters_is_not(name: str) -> None:
    naive = optax.adafactor(schedule) if name == "adafactor" else optax.lamb(schedule)
    expected = trajectory(plain(name), unstack)
    actual = trajectory(naive, lambda tree: tree)
    assert largest_error(unstack(actual[0]), expected[0]) > 0.5


def test_the_average_is_that_of_the_parameters_after_each_update() -> None:
    plain, with_average = ours("adamw"), ours("adamw", ema=0.5)
    params, expected = parameters(), parameters()
    states = [optimizer.init(params) for optimizer in (plain, with_average)]
    assert averaged(states[1], params) is params
    for i in range(12):
        grads = random_tree(i)
        update, states[0] = jax.jit(plain.update)(grads, states[0], params)
        same, states[1] = jax.jit(with_average.update)(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, update, same)
        params = optax.apply_updates(params, update)
        keep = min(0.5, i / (i + 10))
        expected = jax.tree.map(lambda a, p, k=keep: k * a + (1 - k) * p, expected, params)
    average = averaged(states[1], params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), average, expected
    )
    axes = opt_state_axes(jax.eval_shape(with_average.init, params), params, AXES)
    assert axes[0].average == AXES


def test_weight_decay_is_by_name() -> None:
    chosen = {path for path in SHAPES if is_decayed(tuple(path.split("/")))}
    assert chosen == DECAYED
    params, grads = parameters(), random_tree(1)
    for name in ("adamw", "adafactor"):
        with_decay, without = (
            first_update(optimizer, grads, params)
            for optimizer in (ours(name, weight_decay=0.5), ours(name, weight_decay=0.0))
        )
        flat = flatten(params)
        for path, change in flatten(jax.tree.map(jnp.subtract, with_decay, without)).items():
            expected = -RATE * 0.5 * flat[path] if path in DECAYED else jnp.zeros_like(flat[path])
            np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-7)


def test_global_norm_is_clipped_over_all_layers() -> None:
    grads, params = random_tree(1), parameters()
    norm = optax.tree.norm(grads)
    clipped = jax.tree.map(lambda g: g * (0.5 / norm), grads)
    expected = first_update(ours("lamb"), clipped, params)
    actual = first_update(ours("lamb", clip_norm=0.5), grads, params)
    assert largest_error(unstack(actual), unstack(expected)) < 1e-5


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ProtlmError, match="'sgd' is unknown"):
        ours("sgd")


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_state_axes_of_each_kind() -> None:
    params = jax.eval_shape(parameters)
    query = ("encoder", "attention", "query")
    adam = opt_state_axes(jax.eval_shape(ours("lamb").init, params), params, AXES)[0]
    assert adam.mu == AXES and adam.nu == AXES and adam.count == ()
    muon = opt_state_axes(jax.eval_shape(ours("muon").init, params), params, AXES)[0]
    moments = muon.inner_states["muon"].inner_state[0].mu
    assert _at(moments, (*query, "kernel")) == ("layers", "embed", "heads", "kv")
    factored = opt_state_axes(jax.eval_shape(ours("adafactor").init, params), params, AXES)[0]
    assert _at(factored.v_row, (*query, "kernel")) == ("layers", "embed")
    assert _at(factored.v_col, (*query, "kernel")) == ("layers", "heads")
    assert _at(factored.v, (*query, "kernel")) == ()
    assert _at(factored.v, (*query, "bias")) == ("layers", "heads")
    assert factored.v["encoder_relative_bias"] == ("relpos_buckets", "heads")


def test_axes_of_a_square_matrix_follow_its_values() -> None:
    """Rows and columns of a square matrix have one shape: only the values tell them apart."""
    axes = {"kernel": ("embed", "mlp")}
    params = {"kernel": jnp.ones((128, 128))}
    grads = {"kernel": jnp.ones((128, 128)) * jnp.arange(128.0)[:, None]}  # varies along embed
    optimizer = build_optimizer(OptimizerConfig("adafactor", 0.0), schedule, axes)
    _, (state, *_) = optimizer.update(grads, optimizer.init(params), params)
    names = opt_state_axes(optimizer.init(params), params, axes)[0]
    assert np.std(state.v_row["kernel"]) > 0 and names.v_row["kernel"] == ("embed",)
    assert np.std(state.v_col["kernel"]) == 0 and names.v_col["kernel"] == ("mlp",)


def test_layer_statistics() -> None:
    params, grads, updates = parameters(), random_tree(1), random_tree(2, np.ones(LAYERS))
    params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
    result = jax.jit(lambda *trees: layer_statistics(*trees, AXES))(grads, updates, params)
    groups = {path.split("/")[0] for path in SHAPES}
    assert result.keys() == {
        f"layers/{group}/{name}" for group in groups for name in ("grad_norm", "update_ratio")
    }

    def norm(tree: Any, layer: int) -> float:
        flat = [np.asarray(x[layer], np.float64).ravel() for x in jax.tree.leaves(tree["encoder"])]
        return float(np.linalg.norm(np.concatenate(flat)))

    for i in range(LAYERS):
        expected = norm(grads, i)
        np.testing.assert_allclose(result["layers/encoder/grad_norm"][i], expected, rtol=1e-5)
        ratio = norm(updates, i) / norm(params, i)
        np.testing.assert_allclose(result["layers/encoder/update_ratio"][i], ratio, rtol=1e-5)
    assert result["layers/embedder/grad_norm"].shape == ()
    assert result["layers/head/update_ratio"] == 0  # weights that are all zero have no ratio


def test_layer_statistics_of_a_model_within_the_model() -> None:
    """ELECTRA's generator has a stack and a head of its own."""
    nested = {"encoder": parameters()["encoder"], "generator": parameters()}
    axes = {"encoder": AXES["encoder"], "generator": AXES}
    result = layer_statistics(nested, nested, nested, axes)
    inner = layer_statistics(parameters(), parameters(), parameters(), AXES)
    for name, value in inner.items():
        place = name.replace("layers/", "layers/generator/")
        np.testing.assert_array_equal(result[place], value)
    assert len(result) == len(inner) + 2
