"""Sentences on what changes when layers are left out, exchanged, or erased.

Each is "" where its measurement is missing or its condition fails; see `reading`.
"""

from __future__ import annotations

import numpy as np

from protlm_jax.evaluation.depth.evidence import any_of, leader, quantity, side, tail, written
from protlm_jax.evaluation.depth.headlines import NEGLIGIBLE
from protlm_jax.evaluation.depth.results import Measured, minus

NEEDLESS = 0.01  # nats: below this, one residue's stream is called not needed


def late_layers(measured: Measured) -> str:
    """How many of the last layers change the answer by less than NEGLIGIBLE, one at a time."""
    kl, number = quantity(measured, "skip_kl"), measured.num_layers
    if kl is None:
        return ""
    draws = kl.drawn()
    run, bound = tail(draws, NEGLIGIBLE)
    if run:
        some = f"Each of the last {run}" if run > 1 else "The last"
        who = f"Each of the {number} layers" if run == number else f"{some} of {number} layers"
        return (
            f"{who} changes the answer by less than {NEGLIGIBLE} nats when it is left out alone "
            f"(97.5 % bound of the largest: {written(bound)})."
        )
    last = written(kl.values[-1], draws[:, -1])
    if side(draws[:, -1], NEGLIGIBLE) > 0:
        return f"No layer at the end is idle: without the last, the answer changes by {last} nats."
    return (
        f"Whether the last layer changes the answer by less than {NEGLIGIBLE} nats cannot be told: "
        f"{last}."
    )


def dearest(measured: Measured) -> str:
    """The layer whose loss costs most, or those among which it cannot be told."""
    changed, base = (quantity(measured, name) for name in ("skip_nll", "base_nll"))
    if changed is None or base is None:
        return ""
    rise = minus(changed, base)
    values, draws = rise.values, rise.drawn()
    top, rivals = leader(values, draws)

    def cost(layer: int) -> str:
        return written(values[layer], draws[:, layer])

    if side(draws[:, top]) <= 0:
        return (
            "No layer raises the loss by an amount that can be told from 0 when it is left out "
            f"(most: layer {top}, {cost(top)} nats)."
        )
    if not rivals:
        second = int(np.argsort(-np.delete(values, top))[0])
        second += second >= top
        return (
            f"Leaving out layer {top} costs most: the loss rises by {cost(top)} nats; next is "
            f"layer {second} with {cost(second)}."
        )
    if len(rivals) < min(4, len(values) // 2):
        costs = any_of([cost(layer) for layer in (top, *rivals)])
        return (
            f"Leaving out layer {any_of([top, *rivals], 'or')} costs most; which of them cannot be "
            f"told: the loss rises by {costs} nats."
        )
    return (
        f"Which layer costs most cannot be told: without layer {top} the loss rises by {cost(top)} "
        f"nats, and {len(rivals)} others are within the interval of the difference."
    )


def sublayers(measured: Measured) -> str:
    """Which part of a layer the answer needs most."""
    kl, names = quantity(measured, "sublayer_skip_kl"), measured.coords.get("sublayer", ())
    if kl is None or len(names) < 2:
        return ""
    values, draws = kl.values.mean(axis=-1), kl.drawn().mean(axis=-1)
    top, rivals = leader(values, draws)
    words = {str(n): "the MLP" if n == "mlp" else str(n).replace("_", " ") for n in names}
    costs = any_of([f"{words[str(n)]} {written(values[i], draws[:, i])}"
                    for i, n in enumerate(names)])  # fmt: skip
    verdict = (
        f"Silencing {words[str(names[top])]} of a layer changes the answer most"
        if not rivals
        else "Which part of a layer the answer needs most cannot be told"
    )
    return f"{verdict}: in the mean over layers, {costs} nats."


def order(measured: Measured) -> str:
    """How far from the end neighbours can be exchanged, or run twice."""
    clauses = []
    for name, what in (("swap_kl", "two neighbours exchanged"), ("repeat_kl", "a layer run twice")):
        kl = quantity(measured, name)
        run = tail(kl.drawn(), NEGLIGIBLE)[0] if kl is not None else 0
        if kl is not None and run:
            clauses.append(f"{what} in any of the last {run} of {len(kl.values)} places")
    if not clauses:
        return ""
    return f"Less than {NEGLIGIBLE} nats is also what the answer changes by with {any_of(clauses)}."


def blocks(measured: Measured) -> str:
    """The largest block of neighbours that can go."""
    kl, sizes = quantity(measured, "delete_kl"), measured.coords.get("size", ())
    if kl is None:
        return ""
    bound = np.quantile(kl.drawn(), 0.975, axis=0)
    for row in reversed(range(len(sizes))):
        small = np.flatnonzero(bound[row] < NEGLIGIBLE)
        if len(small):
            at = int(small[np.argmin(bound[row][small])])
            change = written(kl.values[row, at], kl.drawn()[:, row, at])
            return (
                f"Of blocks of {any_of(sizes)} neighbours, the largest that can be left out at "
                f"less than {NEGLIGIBLE} nats is layers {at} to {at + sizes[row] - 1}: {change} "
                "(found and measured on the same proteins)."
            )
    return ""


def needed(measured: Measured) -> str:
    """From which depth on a visible residue can be erased."""
    kl, depths = quantity(measured, "erasure_kl"), measured.coords.get("at_depth", ())
    if kl is None:
        return ""
    run, bound = tail(kl.drawn(), NEEDLESS)
    if not run:
        return ""
    return (
        f"From depth {depths[-run]} of {measured.num_layers} on, the stream of a visible residue "
        f"can be erased at less than {NEEDLESS} nats (97.5 % bound: {written(bound)}; looked at "
        f"depths {any_of(depths)})."
    )
