"""Layer programs and resume against plain loops over unstacked layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.stack import LayerProgram, init_stack, resume_stack, run_stack

SIZES = {"d_model": 16, "num_layers": 8, "num_heads": 2, "head_dim": 8, "d_ff": 32}
# More layers than are unrolled, so that the scan is what is tested.
CONFIGS = {
    "post": bert_config(**SIZES, initializer_range=0.2),
    "pre": t5_config(**SIZES, num_decoder_layers=8, dropout_rate=0.0),
}


@functools.cache
def stack(placement: str):
    config = CONFIGS[placement]
    block = Block(config, parent=None)
    tree = jax.jit(init_stack, static_argnums=1)(jax.random.key(0), block)
    params = jax.tree.map(lambda box: box.value, tree, is_leaf=lambda x: hasattr(x, "names"))
    # Fresh norms are idempotent, trained ones are not.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    segments = jnp.ones((2, 6), jnp.int32)
    context = BlockContext(AttentionContext(segments, segments))
    h = jax.random.normal(jax.random.key(1), (2, 6, config.d_model))
    return block, params, h, context


def layers(params) -> list:
    """The layers as separate trees."""
    return [jax.tree.map(lambda p, i=i: p[i], params) for i in range(SIZES["num_layers"])]


def loop(block, params, h, context, order, gates=None):
    """The reference: a Python loop."""
    unstacked = layers(params)
    for step, index in enumerate(order):
        gate = None if gates is None else gates[step]
        h, _ = block.apply({"params": unstacked[index]}, h, context, gate)
    return h


PROGRAMS = {
    "full": (lambda p: p, [0, 1, 2, 3, 4, 5, 6, 7]),
    "skip": (lambda p: p.skip(3), [0, 1, 2, 4, 5, 6, 7]),
    "skip two": (lambda p: p.skip(0, 7), [1, 2, 3, 4, 5, 6]),
    "swap": (lambda p: p.swap(2, 5), [0, 1, 5, 3, 4, 2, 6, 7]),
    "exit": (lambda p: p.exit(3), [0, 1, 2]),
    "reverse": (lambda p: p.reverse(0, 8), [7, 6, 5, 4, 3, 2, 1, 0]),
    "reverse some": (lambda p: p.reverse(2, 6), [0, 1, 5, 4, 3, 2, 6, 7]),
    "chained": (lambda p: p.skip(3).swap(5, 6).exit(7), [0, 1, 2, 4, 6, 5]),
    "repeat": (lambda p: p.replace(order=p.order.at[:].set(2)), [2] * 8),
}


@pytest.mark.parametrize("placement", CONFIGS)
def test_programs_equal_loops_with_one_compilation(placement: str, assert_close) -> None:
    block, params, h, context = stack(placement)
    traces = []

    @jax.jit
    def run(program):
        traces.append(1)
        return run_stack(block, params, h, context, program=program)[0]

    for name, (edit, order) in PROGRAMS.items():
        expected = loop(block, params, h, context, order)
        assert_close(run(edit(LayerProgram.full(8))), expected, 2e-6, name)
    assert len(traces) == 1


@pytest.mark.parametrize("placement", CONFIGS)
def test_training_path_equals_full_program(placement: str, assert_close) -> None:
    block, params, h, context = stack(placement)
    plain, taps = run_stack(block, params, h, context)
    programmed, other = run_stack(block, params, h, context, program=LayerProgram.full(8))
    assert_close((plain, taps), (programmed, other), 2e-6)


def test_ablating_all_sublayers_is_a_skip_in_pre_ln_and_not_in_post_ln() -> None:
    for placement, same in (("pre", True), ("post", False)):
        block, params, h, context = stack(placement)
        program = LayerProgram.full(8)
        skipped, _ = run_stack(block, params, h, context, program=program.skip(4))
        ablated, _ = run_stack(block, params, h, context, program=program.ablate(4, 0).ablate(4, 1))
        assert bool(np.allclose(skipped, ablated, atol=1e-4)) is same


def test_taps_add_up_in_pre_ln(assert_close) -> None:
    block, params, h, context = stack("pre")
    out, taps = run_stack(block, params, h, context)
    streams = jnp.concatenate([taps["stream"], out[None]])
    added = taps["attention"] + taps["mlp"]
    assert_close(streams[1:] - streams[:-1], added, 1e-5)
    assert_close(taps["mlp_onto"], taps["stream"] + taps["attention"], 1e-6)


@pytest.mark.parametrize("placement", CONFIGS)
@pytest.mark.parametrize("start", [0, 3, 8])
def test_resume_runs_the_suffix(placement: str, start: int, assert_close) -> None:
    block, params, h, context = stack(placement)

    def visit(carry, index, before, after, taps):
        return carry.at[index].set(jnp.sum(taps["mlp"]))

    run = jax.jit(lambda s: resume_stack(block, params, h, context, s, visit, jnp.zeros(8)))
    final, visited = run(jnp.asarray(start))
    expected = loop(block, params, h, context, range(start, 8))
    assert_close(final, expected, 2e-6)
    assert (np.asarray(visited)[:start] == 0).all() and (np.asarray(visited)[start:] != 0).all()


@pytest.mark.parametrize("policy", ["minimal", "full"])
def test_rematerialisation_changes_memory_and_not_gradients(policy: str, assert_close) -> None:
    _, params, h, context = stack("pre")

    def gradient(remat: str):
        block = Block(CONFIGS["pre"].replace(remat=remat), parent=None)
        return jax.grad(lambda p: jnp.sum(run_stack(block, p, h, context)[0] ** 2))

    with jax.ensure_compile_time_eval():
        recomputing = str(jax.make_jaxpr(gradient(policy))(params))
        assert "remat" in recomputing or "checkpoint" in recomputing
        assert "remat" not in str(jax.make_jaxpr(gradient("none"))(params))
    assert_close(jax.jit(gradient(policy))(params), jax.jit(gradient("none"))(params), 1e-4)


@pytest.mark.parametrize("placement", CONFIGS)
def test_resume_runs_a_program_from_its_first_change(placement: str, assert_close) -> None:
    """Stacked programs of one compilation, a longer one among them, from cached streams."""
    block, params, h, context = stack(placement)
    full = LayerProgram.full(8)
    programs = {
        "nothing": (full, list(range(8)), 9),
        "repeat": (full.repeat(3), [0, 1, 2, 3, 3, 4, 5, 6, 7], 4),
        "skip": (full.skip(5, 6), [0, 1, 2, 3, 4, 7], 5),
        "swap": (full.swap(6, 7), [0, 1, 2, 3, 4, 5, 7, 6], 6),
    }
    _, taps = run_stack(block, params, h, context)
    streams = jnp.concatenate([taps["stream"], loop(block, params, h, context, range(8))[None]])

    def visit(carry, index, before, after, taps):
        return carry.at[index].add(1)

    def one(program):
        start = program.first_change
        before = streams[jnp.minimum(start, 8)]
        counts = jnp.zeros(8, int)
        return start, *resume_stack(block, params, before, context, start, visit, counts, program)

    found = jax.jit(lambda p: jax.lax.map(one, p))(
        LayerProgram.stack([program for program, _, _ in programs.values()])
    )
    for start, final, counts, (name, (_, order, first)) in zip(
        *found, programs.items(), strict=True
    ):
        # Padded to nine steps: a program that changes nothing differs in the last, which is none.
        assert start == (8 if name == "nothing" else first)
        assert_close(final, loop(block, params, h, context, order), 2e-6, name)
        expected = np.bincount(order[int(start) :], minlength=8)
        assert np.array_equal(counts, expected), name


def test_a_gate_is_a_change_and_the_full_program_has_none() -> None:
    full = LayerProgram.full(4)
    assert full.first_change == 4
    assert full.ablate(2, 1).first_change == 2
    assert full.exit(3).first_change == 3
    assert full.repeat(1, 3).order.tolist() == [0, 1, 1, 1, 2, 3]
    assert full.pad(6).keep.tolist() == [True] * 4 + [False] * 2
