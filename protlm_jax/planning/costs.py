"""FLOPs and HBM bytes of one execution of an instruction of a compiled program (HLO).

FLOPs are those of products (dot, and convolution, which the TPU compiler makes of products), a
multiply-add counted as two, without the zeros that a convolution puts between or around its inputs.
Bytes are what an instruction outside of fusions reads and writes in HBM: all operands and results,
but only the slice where an array is sliced or updated in place. `compiled.cost_analysis()` does not
serve: it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from protlm_jax.planning.hlo import Computation, Instruction, Program, numbers

# Operations that move no data by themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("conditional", "call", "partition-id", "replica-id", "optimization-barrier"),
}
_SLICING = ("dynamic-slice", "slice", "gather")
# Products of queries and keys in each of Pallas' splash attention kernels.
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_PASSES = {"highest": 6, "high": 3}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution on one device."""

    flops: int  # of products
    passed: int  # flops times passes of the matrix unit: 3 with Precision.HIGH, 6 with HIGHEST
    bytes: int  # through HBM
    cycles: int  # as the TPU compiler estimates them; 0 where it does not


def cost(program: Program, where: str, instruction: Instruction) -> Cost:
    """The cost of an instruction of the computation `where`, not itself inside of a fusion.

    What it calls is included, unless it is a loop, a branch or a call.
    """
    products = [(instruction, where)] if instruction.operation not in _FREE else []
    if instruction.operation == "fusion" or instruction.operation.startswith("async"):
        products = [(i, n) for name in instruction.called for _, n, i in program.executed(name)]
    counted = [(flops(i, program.computations[n]),
                _PASSES.get(i.attribute(r"operand_precision=\{(\w+)") or "", 1))
               for i, n in products]  # fmt: skip
    return Cost(
        flops=sum(count for count, _ in counted),
        passed=sum(count * passes for count, passes in counted),
        bytes=traffic(program, where, instruction),
        cycles=int(instruction.attribute(r'estimated_cycles":"(\d+)"') or 0),
    )


def flops(instruction: Instruction, computation: Computation) -> int:
    """FLOPs of a product with operands in `computation`; 0 for other instructions."""
    if instruction.operation == "custom-call":
        return _kernel(instruction, computation)
    if instruction.operation not in ("dot", "convolution"):
        return 0
    left, right = (computation[name].results[0].shape for name in instruction.operands[:2])
    (result,) = instruction.results
    if instruction.operation == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2 * math.prod(result.shape) * math.prod(left[d] for d in numbers(contracted))
    return 2 * _convolution(instruction, left, right, result.shape)


def _kernel(instruction: Instruction, computation: Computation) -> int:
    """FLOPs of an attention kernel, skipped blocks included; 0 for other kernels."""
    products = [count for name, count in _KERNELS.items() if instruction.name.startswith(name)]
    if not products:
        return 0
    arrays = [array for name in instruction.operands for array in computation[name].results[:1]]
    query, key = [a.shape for a in arrays if len(a.shape) > 2 and a.dtype in ("bf16", "f32")][:2]
    return 2 * products[0] * math.prod(query) * key[-2]


def traffic(program: Program, where: str, instruction: Instruction) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    operation = instruction.operation
    if operation in _FREE or operation.endswith("-done"):
        return 0
    computation = program.computations[where]
    operands = [computation[name] for name in instruction.operands if name in computation]
    written = instruction.off_chip_bytes
    if operation == "fusion":
        fused = program.computations[instruction.called[0]]
        arguments = _parameters(fused)
        reads = sum(
            min(operand.off_chip_bytes, _read(program, fused, arguments[number]))
            for number, operand in enumerate(operands)
        )
        return reads + min(written, _written(fused))
    if operation in _SLICING:
        return 2 * written
    if operation in ("dynamic-update-slice", "scatter"):
        return 2 * min((operand.off_chip_bytes for operand in operands[1:]), default=0)
    if operation == "copy-start":  # its results are the copy and its operand again
        return sum(array.bytes for array in instruction.results[:2] if array.off_chip)
    if operation.endswith("-start"):
        written = max((a.bytes for a in instruction.results if a.off_chip), default=0)
    return sum(operand.off_chip_bytes for operand in operands) + written


def _parameters(computation: Computation) -> dict[int, Instruction]:
    parameters = (i for i in computation.values() if i.operation == "parameter")
    return {int(i.attributes): i for i in parameters}


def _read(program: Program, fused: Computation, parameter: Instruction) -> int:
    """Bytes that a fusion reads of an operand: only the slices of one that is sliced."""
    total = 0
    for user in (i for i in fused.values() if parameter.name in i.operands):
        place = user.operands.index(parameter.name)
        if user.operation == "bitcast":
            total += _read(program, fused, user)
        elif user.operation in _SLICING and not place:
            total += user.bytes
        elif user.operation == "dynamic-update-slice" and not place:
            continue  # updated in place
        elif user.operation == "fusion":
            inner = program.computations[user.called[0]]
            total += _read(program, inner, _parameters(inner)[place])
        else:
            return parameter.bytes
    return min(total, parameter.bytes)


def _written(fused: Computation) -> int:
    """Bytes that a fusion writes: only the update where an array is updated in place."""
    (root,) = (i for i in fused.values() if i.root)
    total = 0
    for name in root.operands if root.operation == "tuple" else (root.name,):
        made = fused[name]
        while made.operation == "bitcast":
            made = fused[made.operands[0]]
        if made.operation == "dynamic-update-slice":
            made = fused[made.operands[1]]
        total += made.bytes
    return total


def _convolution(
    instruction: Instruction,
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Multiply-adds of a convolution, without those with a padded or dilated zero."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    of_left, of_right, of_result = labels.groups()
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(part.split("=") for part in window.split())
    total = left[of_left.index("b")] * right[of_right.index("i")] * right[of_right.index("o")]
    for dim in range(len(left) - 2):
        sizes = (
            shape[order.index(str(dim))]
            for shape, order in ((left, of_left), (right, of_right), (result, of_result))
        )
        stride, padding, spread, kernel_spread = (
            int(fields[name].split("x")[dim].split("_")[0]) if name in fields else default
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        total *= pairs(*sizes, stride, padding, spread, kernel_spread)
    return total // int(instruction.attribute(r"batch_group_count=(\d+)") or 1)


@functools.lru_cache(maxsize=4096)
def pairs(
    size: int, kernel: int, out: int, stride: int, padding: int, spread: int, kernel_spread: int
) -> int:
    """How many (output place, kernel place) pairs meet an input along one dimension.

    `size`, `kernel` and `out` are those of input, kernel and output; `padding` zeros precede the
    input; `spread` and `kernel_spread` are distances of neighbours in input and kernel.
    """
    first = np.arange(out)[:, None] * stride - padding
    places = first + np.arange(kernel)[None] * kernel_spread
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())
