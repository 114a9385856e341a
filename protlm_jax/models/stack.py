"""A row of blocks as data: parameters stacked by layer, run whole, by program, or from a depth on.

`init_stack` makes the parameters of N blocks with a leading "layers" axis, `run_stack` scans over
them, and `resume_stack` runs the suffix from a cached stream. Which layer runs when, and how much
of it counts, is a `LayerProgram`: traced arrays, so that one compiled function serves every skip,
swap, repetition and early exit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_kernels import KEPT
from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.between import (
    at_layer,
    dropped,
    layer_params,
    prepared,
    skip_of,
    with_skip,
)
from protlm_jax.models.block import Block, BlockContext, Stream, Taps
from protlm_jax.models.merging import merged
from protlm_jax.models.programs import LayerProgram

Params = Any

# A short row is unrolled: the compiler then need not copy what backward reads into stacked arrays
# (an eighth of a step of four layers on CPU), and compiling takes no longer.
UNROLL_UP_TO = 6

Visit = Callable[[Any, jax.Array, jax.Array, jax.Array, Taps], Any]


def init_stack(rng: jax.Array, block: Block) -> Params:
    """Parameters of a row of independent blocks, every leaf [layers, ...] and named so.

    Where all layers share one block's parameters the leading size is 1.
    """
    inputs = block.example_inputs()
    keys = jax.random.split(rng, 1 if block.config.share_layers else block.num_layers)
    stacked = jax.vmap(lambda key: block.init(key, *inputs)["params"])(keys)
    return jax.tree.map(
        lambda box: box.add_axis(0, {nn.PARTITION_NAME: "layers"}),
        stacked,
        is_leaf=lambda leaf: isinstance(leaf, NamedAxes),
    )


def run_stack(
    block: Block,
    params: Params,
    h: Stream,
    context: BlockContext,
    *,
    program: LayerProgram | None = None,
    dropout_rng: jax.Array | None = None,
) -> tuple[Stream, Taps]:
    """Runs a row of blocks.

    Args:
        block: the block, unbound.
        params: as made by `init_stack`.
        h: [batch, length, d_model], or a pair of such streams.
        context: shared by all blocks, but for `past`, of which each takes its own.
        program: which layers, in which order, how strongly; None runs each once, in order.
        dropout_rng: key of this stack's dropout; None is deterministic.

    Returns:
        The stream after the last block, and the taps of every step, stacked: [steps, batch,
        length, d_model] each. Taps that nobody reads cost nothing under jit.
    """

    context = prepared(block, params, h, context)

    def step(
        h: Stream, layer: Params, past: Any, skip: Any, position: Any, index: Any, gate: Any
    ) -> Any:
        rngs = {}
        if dropout_rng is not None:
            rngs = {"dropout": jax.random.fold_in(dropout_rng, position)}
            gate = dropped(block, index, gate, rngs["dropout"])
        own = dataclasses.replace(context, past=past, layer=index, skips=skip)
        own_params = {"params": merged(layer)}
        return block.apply(own_params, h, own, gate, dropout_rng is None, rngs=rngs)

    step = _rematerialised(step, block.config.remat)
    positions = jnp.arange(block.num_layers if program is None else program.order.shape[0])

    if program is None:
        # Parameters travel as scanned inputs: their gradient is then written once per layer, where
        # indexing would add into the whole stack at each of them. Those that all layers share stay
        # outside: taken inside, backward would keep a copy of them for each layer.
        shared = layer_params(params, 0) if block.config.share_layers else None

        def plain(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Taps]:
            (h, skips), (layer, past, index) = carry, xs
            skip = skip_of(block, skips, index)
            h, taps = step(h, shared or layer, past, skip, index, index, None)
            return (h, with_skip(skips, index, h)), taps

        (h, _), taps = jax.lax.scan(
            plain,
            (h, context.skips),
            (None if shared else params, context.past, positions),
            unroll=block.num_layers if block.num_layers <= UNROLL_UP_TO else 1,
        )
        return h, taps

    def programmed(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Taps]:
        (before, skips), (position, past, index, gate, keep) = carry, xs
        skip, layer = skip_of(block, skips, index), layer_params(params, index)
        after, taps = step(before, layer, past, skip, position, index, gate)
        h = jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, before)
        return (h, with_skip(skips, index, h)), taps

    xs = (positions, context.past, program.order, program.gate, program.keep)
    (h, _), taps = jax.lax.scan(programmed, (h, context.skips), xs)
    return h, taps


def resume_stack(
    block: Block,
    params: Params,
    h: Stream,
    context: BlockContext,
    start: jax.Array,
    visit: Visit,
    carry: Any,
    program: LayerProgram | None = None,
) -> tuple[Stream, Any]:
    """Runs blocks `start` to the last from a given stream; `start` may be traced.

    Args:
        h: [batch, length, d_model], the stream before block `start`.
        context: `prepared`, with the streams for long skips of the layers before, where there are
            such and `start` is not 0.
        visit: (carry, layer index, stream before, stream after, taps) -> carry, called at each
            block; measurements are reduced here instead of stored.
        carry: initial value of what `visit` accumulates.
        program: runs instead, from its step `start` on; a step that is not kept costs nothing, and
            is not visited.

    Returns:
        The stream after the last block and the final carry. Has no reverse-mode gradient.
    """

    context = prepared(block, params, h, context)
    # What leaves the layer before `start` is the stream that is given.
    state = (h, with_skip(context.skips, start - 1, h), carry)

    def body(index: jax.Array, state: Any, gate: Any = None) -> Any:
        before, skips, carry = state
        own = dataclasses.replace(context, skips=skips)
        after, taps = apply_layer(block, params, before, own, index, gate)
        return after, with_skip(skips, index, after), visit(carry, index, before, after, taps)

    if program is None:
        h, _, carry = jax.lax.fori_loop(start, block.num_layers, body, state)
        return h, carry

    def step(position: jax.Array, state: Any) -> Any:
        layer, gate = program.order[position], program.gate[position]

        def skipped(state: Any) -> Any:
            before, skips, carry = state
            return before, with_skip(skips, layer, before), carry

        return jax.lax.cond(program.keep[position], lambda s: body(layer, s, gate), skipped, state)

    h, _, carry = jax.lax.fori_loop(start, program.steps, step, state)
    return h, carry


def apply_layer(
    block: Block,
    params: Params,
    h: Stream,
    context: BlockContext,
    index: jax.Array | int,
    gate: jax.Array | None = None,
) -> tuple[Stream, Taps]:
    """Runs one layer of a stack, which may be traced, on any stream; see `Block.__call__`."""
    context = at_layer(block, context, index)
    return block.apply({"params": layer_params(params, index)}, h, context, gate)


def _rematerialised(step: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """What backward recomputes: nothing, all but the matrix products and what a fused kernel of
    attention mixed (which is small beside them, and costs all of attention anew), or everything."""
    if policy == "none":
        return step
    saved = None
    if policy == "minimal":
        policies = jax.checkpoint_policies
        saved = policies.save_from_both_policies(
            policies.checkpoint_dots_with_no_batch_dims, policies.save_only_these_names(KEPT)
        )
    return jax.checkpoint(step, policy=saved, prevent_cse=False)
