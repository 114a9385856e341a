"""What later layers and the answer lose when a layer, or a part of one, is left out.

A skipped layer is the identity, a post-LN block's own norms included; a skipped sublayer adds
nothing, and norms that stand behind it still act. All are resumed from the cached stream before the
first layer that changes, so that a map of all layers costs half as many forwards as there are.

Source: Csordás et al. 2025, arXiv 2505.13898.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from protlm_jax.evaluation.depth.answers import differences
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import TINY, Subject, norm

Edit = Callable[[jax.Array], jax.Array]  # layer -> the stream after it, edited: [B, L, D]


def skips(subject: Subject, answers: bool, layers: bool, sublayers: bool) -> dict[str, Stat]:
    """Each layer, or each sublayer, left out in turn at the source positions (M3, M4).

        skip_effect_{s, m} = ||c_m - c'_m|| / max(||c_m||, 1e-6)

    with c'_m what layer m adds after layer s was skipped; mean and largest value over the target
    positions. The answers are compared by `differences`.

    Args:
        answers: whether the model has an answer to compare.
        layers, sublayers: which of the two; together they are one compiled loop.

    Returns:
        Of layers "skip_effect" (skipped, affected), zero where affected <= skipped, and
        "skip_<name>" (skipped) of the answers; of sublayers "sublayer_skip_effect" (sublayer,
        skipped, affected) and "sublayer_skip_<name>" (sublayer, skipped).

    Cost: of layers (N - 1) / 2 forwards and N heads; of each sublayer (N + 1) / 2, of a pre-LN
    block's last one (N - 1) / 2. An encoder that is read at its decoder takes N decoders beside.
    """
    edits: list[Edit] = [lambda layer: subject.streams[layer]] if layers else []
    if sublayers:
        edits += [_without(subject, index) for index in range(len(subject.sublayers))]
    found = _after_edits(subject, edits, answers)
    result = {}
    for name, stat in found.items():
        dims = ("skipped", "affected") if name == "effect" else ("skipped",)
        if layers:
            result[f"skip_{name}"] = jax.tree.map(lambda x: x[0], stat).named(*dims)
        if sublayers:
            rest = jax.tree.map(lambda x: x[int(layers) :], stat)
            result[f"sublayer_skip_{name}"] = rest.named("sublayer", *dims)
    return result


def local_effects(subject: Subject) -> dict[str, Stat]:
    """What each layer reads of each earlier one directly (M5; Csordás et al. 2025).

        local_effect_{s, m} = ||c_m - f_m(h_m - c_s)|| / max(||c_m||, 1e-6)

    with f_m(h) what layer m adds to a stream h: the clean stream without what layer s wrote, and no
    other layer answering to that. Mean and largest value over the target positions. Where a norm
    stands behind the addition, as in post-LN, h_m is no sum, and this is not defined.

    Returns:
        "local_effect" (skipped, affected), zero where affected <= skipped.

    Cost: (N - 1) / 2 forwards where every position is read; where few are, about half of that,
    since of the others a layer needs keys and values alone.
    """
    number = subject.num_layers
    pairs = [(s, m) for m in range(number) for s in range(m)]
    sources, affected = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))

    def one(pair: tuple[jax.Array, jax.Array]) -> Stat:
        source, layer = pair
        clean = subject.streams[layer]
        h = subject.positions.edit(clean, clean - subject.added(source))
        return _change(subject, layer, subject.layer_seen(layer, h) - subject.positions.at(h))

    found = jax.lax.map(one, (sources, affected))
    empty = jnp.zeros((number, number, subject.positions.proteins))
    full = jax.tree.map(lambda x: empty.at[sources, affected].set(x), found)
    return {"local_effect": full.named("skipped", "affected")}


def _without(subject: Subject, sublayer: int) -> Edit:
    """The stream after a layer one of whose sublayers adds nothing."""
    name, last = subject.sublayers[sublayer], sublayer == len(subject.sublayers) - 1
    if subject.pre_norm and last:  # nothing in the layer has read it
        return lambda layer: subject.streams[layer + 1] - subject.taps[name][layer]
    gate = jnp.ones(len(subject.sublayers)).at[sublayer].set(0.0)
    return lambda layer: subject.layer(layer, subject.streams[layer], gate)


def _after_edits(subject: Subject, edits: list[Edit], answers: bool) -> dict[str, Stat]:
    """Each edit at each layer: effects [edits, N, N, P] on later layers, answers [edits, N, P]."""
    number = subject.num_layers
    nothing = jnp.zeros((number, subject.positions.proteins))
    base = subject.answer(subject.streams[-1]) if answers else None

    def visit(effects: Stat, layer: jax.Array, before: Any, after: Any, _: Any) -> Any:
        added = subject.positions.at(after) - subject.positions.at(before)
        change = _change(subject, layer, added)
        return jax.tree.map(lambda all_, one: all_.at[layer].set(one), effects, change)

    def one(place: tuple[jax.Array, jax.Array]) -> dict[str, Stat]:
        edit, layer = place
        edited = jax.lax.switch(edit, edits, layer)
        h = subject.positions.edit(subject.streams[layer + 1], edited)
        final, effects = subject.resume(h, layer + 1, visit, Stat(nothing, nothing, nothing))
        if base is None:
            return {"effect": effects}
        return {"effect": effects, **differences(subject, base, subject.answer(final))}

    which, layer = jnp.divmod(jnp.arange(len(edits) * number), number)
    found = jax.lax.map(one, (which, layer))
    return jax.tree.map(lambda x: x.reshape(len(edits), number, *x.shape[1:]), found)


def _change(subject: Subject, layer: jax.Array, added: jax.Array) -> Stat:
    """||c_m - c'_m|| / ||c_m|| of what is read, [B, K, D], reduced."""
    clean = subject.seen[layer + 1] - subject.seen[layer]
    return subject.positions.reduce(norm(clean - added) / jnp.maximum(norm(clean), TINY), peak=True)
