"""A row of blocks as data: parameters stacked by layer, run whole, by program, or from a depth on.

`init_stack` makes the parameters of N blocks with a leading "layers" axis, `run_stack` scans over
them, and `resume_stack` runs the suffix from a cached stream. Which layer runs when, and how much
of it counts, is a `LayerProgram`: traced arrays, so that one compiled function serves every skip,
swap, repetition and early exit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.attention_kernels import KEPT
from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.block import Block, BlockContext, Stream, Taps
from protlm_jax.models.merging import merged

Params = Any

# A short row is unrolled: the compiler then need not copy what backward reads into stacked arrays
# (an eighth of a step of four layers on CPU), and compiling takes no longer.
UNROLL_UP_TO = 6

Visit = Callable[[Any, jax.Array, jax.Array, jax.Array, Taps], Any]


@flax.struct.dataclass
class LayerProgram:
    """What a stack runs, step by step.

    Attributes:
        order: [steps] int32, the layer that runs at each step.
        gate: [steps, sublayers] float32, multiplies what each sublayer adds (0 ablates it; norms
            that stand after the addition still act).
        keep: [steps] bool; False makes the step the identity, the block's own norms included.
    """

    order: jax.Array
    gate: jax.Array
    keep: jax.Array

    @classmethod
    def full(cls, num_layers: int, num_sublayers: int = 2) -> LayerProgram:
        """Every layer once, in order: what training runs."""
        return cls(
            order=jnp.arange(num_layers, dtype=jnp.int32),
            gate=jnp.ones((num_layers, num_sublayers), jnp.float32),
            keep=jnp.ones((num_layers,), bool),
        )

    def skip(self, *steps: int) -> LayerProgram:
        """These steps become the identity."""
        return dataclasses.replace(self, keep=self.keep.at[jnp.asarray(steps)].set(False))

    def ablate(self, step: int, sublayer: int) -> LayerProgram:
        """One sublayer of one step adds nothing."""
        return dataclasses.replace(self, gate=self.gate.at[step, sublayer].set(0.0))

    def swap(self, first: int, second: int) -> LayerProgram:
        """Two steps exchange the layers they run."""
        order = self.order.at[first].set(self.order[second]).at[second].set(self.order[first])
        return dataclasses.replace(self, order=order)

    def exit(self, depth: int) -> LayerProgram:
        """Only the first `depth` steps run."""
        return dataclasses.replace(self, keep=self.keep & (jnp.arange(self.steps) < depth))

    def repeat(self, step: int, times: int = 2) -> LayerProgram:
        """One step runs so many times in a row; the program grows by `times` - 1 steps."""
        rows = np.repeat(np.arange(self.steps), np.where(np.arange(self.steps) == step, times, 1))
        return jax.tree.map(lambda field: field[rows], self)

    def reverse(self, start: int, stop: int) -> LayerProgram:
        """Steps `start` to `stop` - 1 run their layers in the opposite order."""
        return dataclasses.replace(
            self, order=self.order.at[start:stop].set(self.order[start:stop][::-1])
        )

    def pad(self, steps: int) -> LayerProgram:
        """The same program in so many steps: those added are the identity."""
        rows = jnp.minimum(jnp.arange(steps), self.steps - 1)
        padded = jax.tree.map(lambda field: field[rows], self)
        return dataclasses.replace(padded, keep=padded.keep & (jnp.arange(steps) < self.steps))

    @staticmethod
    def stack(programs: Sequence[LayerProgram]) -> LayerProgram:
        """Programs as one, every field [programs, steps, ...]: what one compiled map runs."""
        steps = max(program.steps for program in programs)
        padded = [program.pad(steps) for program in programs]
        return jax.tree.map(lambda *fields: jnp.stack(fields), *padded)

    @property
    def steps(self) -> int:
        return self.keep.shape[0]

    @property
    def first_change(self) -> jax.Array:
        """The first step that is not that of the full program; `steps` where none is."""
        plain = self.keep & (self.order == jnp.arange(self.steps)) & (self.gate == 1).all(axis=-1)
        return jnp.argmin(jnp.append(plain, False))


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

    def step(h: Stream, layer: Params, past: Any, index: jax.Array, gate: Any) -> Any:
        rngs = {}
        if dropout_rng is not None:
            rngs = {"dropout": jax.random.fold_in(dropout_rng, index)}
        own = dataclasses.replace(context, past=past)
        own_params = {"params": merged(layer)}
        return block.apply(own_params, h, own, gate, dropout_rng is None, rngs=rngs)

    step = _rematerialised(step, block.config.remat)
    positions = jnp.arange(block.num_layers if program is None else program.order.shape[0])

    if program is None:
        # Parameters travel as scanned inputs: their gradient is then written once per layer, where
        # indexing would add into the whole stack at each of them. Those that all layers share stay
        # outside: taken inside, backward would keep a copy of them for each layer.
        shared = layer_params(params, 0) if block.config.share_layers else None

        def plain(h: Stream, xs: tuple[Any, ...]) -> tuple[Stream, Taps]:
            layer, past, index = xs
            return step(h, shared or layer, past, index, None)

        return jax.lax.scan(
            plain,
            h,
            (None if shared else params, context.past, positions),
            unroll=block.num_layers if block.num_layers <= UNROLL_UP_TO else 1,
        )

    def programmed(h: Stream, xs: tuple[Any, ...]) -> tuple[Stream, Taps]:
        position, past, index, gate, keep = xs
        after, taps = step(h, layer_params(params, index), past, position, gate)
        return jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, h), taps

    xs = (positions, context.past, program.order, program.gate, program.keep)
    return jax.lax.scan(programmed, h, xs)


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
        visit: (carry, layer index, stream before, stream after, taps) -> carry, called at each
            block; measurements are reduced here instead of stored.
        carry: initial value of what `visit` accumulates.
        program: runs instead, from its step `start` on; a step that is not kept costs nothing, and
            is not visited.

    Returns:
        The stream after the last block and the final carry. Has no reverse-mode gradient.
    """

    def body(index: jax.Array, state: tuple[Stream, Any], gate: Any = None) -> tuple[Stream, Any]:
        before, carry = state
        after, taps = apply_layer(block, params, before, context, index, gate)
        return after, visit(carry, index, before, after, taps)

    if program is None:
        return jax.lax.fori_loop(start, block.num_layers, body, (h, carry))

    def step(position: jax.Array, state: tuple[Stream, Any]) -> tuple[Stream, Any]:
        layer, gate = program.order[position], program.gate[position]
        return jax.lax.cond(
            program.keep[position], lambda s: body(layer, s, gate), lambda s: s, state
        )

    return jax.lax.fori_loop(start, program.steps, step, (h, carry))


def apply_layer(
    block: Block,
    params: Params,
    h: Stream,
    context: BlockContext,
    index: jax.Array | int,
    gate: jax.Array | None = None,
) -> tuple[Stream, Taps]:
    """Runs one layer of a stack, which may be traced, on any stream; see `Block.__call__`."""
    own = dataclasses.replace(context, past=layer_params(context.past, index))
    return block.apply({"params": layer_params(params, index)}, h, own, gate)


def layer_params(params: Params, index: jax.Array | int) -> Params:
    """Parameters of one layer of a stack; of the only one where all layers share it."""

    def take(leaf: jax.Array) -> jax.Array:
        last = leaf.shape[0] - 1
        return jax.lax.dynamic_index_in_dim(leaf, jnp.minimum(index, last), keepdims=False)

    return jax.tree.map(take, params)


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
