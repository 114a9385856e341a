"""Attention on one GPU: each backend against the reference, in value, gradient and time.

    python benchmarks/gpu_attention.py               # needs a GPU
    python benchmarks/gpu_attention.py --rehearse    # anywhere, in seconds, without cuDNN

Random queries, keys and values in bfloat16; the reference computes in float32 from the same
numbers. An error is ||found - reference|| / ||reference||, of the output and of the gradients of a
random projection of it. Cases: what the families ask of attention (segments of packed rows, causal
order, a bias as T5's). The last column is the time of forward and backward together, compiled.

cuDNN gets segments as a mask, [rows, 1, length, length], through its bias. Whether that costs, the
case "one segment, no mask" shows beside it: the same call without any mask.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.attention import BACKENDS
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.process.platforms import expect_no_tpu

Attend = Callable[[jax.Array, jax.Array, jax.Array, AttentionContext], jax.Array]


@dataclass(frozen=True)
class Case:
    """One call of attention.

    Attributes:
        name: for people.
        rows, length, heads, head_dim: of queries, keys and values.
        proteins: segments in a row.
        causal, biased: as the family asks.
    """

    name: str
    rows: int
    length: int
    heads: int
    head_dim: int
    proteins: int = 4
    causal: bool = False
    biased: bool = False


CASES = (
    Case("ProtT5-XL, packed, bias", 16, 512, 32, 128, biased=True),
    Case("ESM-2 650M, packed", 16, 1024, 20, 64),
    Case("ESM-2 650M, one segment", 16, 1024, 20, 64, proteins=1),
    Case("ESM-2 8M, packed", 64, 512, 20, 16),
    Case("ProGen2, packed, causal", 16, 1024, 16, 96, causal=True),
)
TINY = (
    Case("packed", 2, 64, 2, 16),
    Case("packed, causal", 2, 64, 2, 16, causal=True),
    Case("packed, bias", 2, 64, 2, 16, biased=True),
)


def inputs(case: Case) -> tuple[tuple[jax.Array, ...], AttentionContext]:
    """Random q (scaled), k, v [B, L, H, K] bfloat16, and what attention is asked."""
    rng = np.random.default_rng(0)
    shape = (case.rows, case.length, case.heads, case.head_dim)
    q, k, v = (rng.standard_normal(shape, np.float32) for _ in range(3))
    q *= case.head_dim**-0.5
    cuts = np.sort(rng.integers(1, case.length, (case.rows, case.proteins - 1)), axis=1)
    segments = 1 + (np.arange(case.length) >= cuts[..., None]).sum(axis=1)
    bias = rng.standard_normal((1, case.heads, case.length, case.length), np.float32)
    context = AttentionContext(
        jnp.asarray(segments, jnp.int32),
        jnp.asarray(segments, jnp.int32),
        jnp.asarray(bias) if case.biased else None,
        case.causal,
    )
    return tuple(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), context


def attends(name: str) -> Attend:
    """A backend; "unmasked" is cuDNN's call without mask or bias."""
    if name == "unmasked":
        return lambda q, k, v, context: jax.nn.dot_product_attention(
            q, k, v, scale=1.0, is_causal=context.causal, implementation="cudnn"
        )
    return lambda q, k, v, context: BACKENDS[name](q, k, v, context, lambda weights: weights)


def with_gradients(attend: Attend) -> Callable[..., tuple[jax.Array, ...]]:
    """Output and gradients of q, k, v, compiled; nothing large is a constant of the program."""

    @jax.jit
    def run(
        tensors: tuple[jax.Array, ...], context: AttentionContext, projection: jax.Array
    ) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, context), *tensors)
        return (out, *pull(projection.astype(out.dtype)))

    return run


def error(found: jax.Array, exact: jax.Array) -> float:
    a, b = (np.asarray(x, np.float64) for x in (found, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def seconds(run: Callable[[], tuple[jax.Array, ...]]) -> float:
    """Median of 5 rounds of 10 calls."""
    jax.block_until_ready(run())
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10):
            found = run()
        jax.block_until_ready(found)
        rounds.append((time.perf_counter() - began) / 10)
    return float(np.median(rounds))


def compare(case: Case, names: tuple[str, ...]) -> None:
    """Prints a row of the table for each backend."""
    tensors, context = inputs(case)
    projection = jax.random.normal(jax.random.key(1), tensors[0].shape, jnp.float32)
    with jax.default_matmul_precision("float32"):
        wide = tuple(x.astype(jnp.float32) for x in tensors)
        exact = with_gradients(attends("reference"))(wide, context, projection)
        exact = tuple(np.asarray(x) for x in exact)
    for name in names:
        if name == "unmasked" and (case.proteins > 1 or case.biased):
            continue
        try:
            run = partial(with_gradients(attends(name)), tensors, context, projection)
            errors = [error(f, e) for f, e in zip(run(), exact, strict=True)]
            took = f"{1e3 * seconds(run):.3f}"
        except Exception as failure:  # a backend that fails is a row of the table, too
            print(f"| {case.name} | {name} | failed: {str(failure).splitlines()[0][:120]} |")
            continue
        print(f"| {case.name} | {name} | {' | '.join(f'{e:.1e}' for e in errors)} | {took} |")
        if not max(errors) < 2e-2:
            print(f"| {case.name} | {name} | WRONG: an error above 2e-2 |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny cases, without cuDNN")
    arguments = parser.parse_args()
    expect_no_tpu()
    device = jax.devices()[0]
    print(f"device: {device.device_kind} ({device.platform}); jax {jax.__version__}\n")
    print("| case | backend | output | dq | dk | dv | ms, forward and backward |")
    print("|---|---|---|---|---|---|---|")
    cases, names = CASES, ("cudnn", "unmasked", "xla")
    if arguments.rehearse:
        cases, names = TINY, ("xla",)
    for case in cases:
        compare(case, names)


if __name__ == "__main__":
    main()
