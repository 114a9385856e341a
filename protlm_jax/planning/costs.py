"""What one execution of an instruction of a compiled program takes, read from its text (HLO).

`compiled.cost_analysis()` counts the body of a loop once, so it cannot serve.

FLOPs are those of products (dot, and convolution, which is what products are on a TPU), a
multiply-add counted as two; zeros that a convolution puts between or around its inputs do not
count. Bytes through HBM are what an instruction that is not part of a fusion reads and writes: all
of its operands and results, but of an array of which a slice is read or replaced in place the slice
alone, and nothing of what lives beside the units. Inside of a fusion nothing passes through HBM.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from protlm_jax.planning.hlo import Computation, Instruction, Program

# What moves no data by itself.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("conditional", "call", "partition-id", "replica-id", "optimization-barrier"),
}
_SLICING = ("dynamic-slice", "slice", "gather")
# Pallas' splash attention: products of queries and keys in each of its kernels.
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_PASSES = {"highest": 6, "high": 3}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution on one device.

    Attributes:
        flops: of products.
        passed: flops times how often the matrix unit goes over them. It multiplies in bfloat16; a
            product asked for with Precision.HIGH takes three passes, with HIGHEST six.
        bytes: through HBM.
        cycles: how long the TPU compiler itself expects it to run; 0 where it does not say.
    """

    flops: int
    passed: int
    bytes: int
    cycles: int


def cost(program: Program, where: str, instruction: Instruction) -> Cost:
    """The cost of an instruction, with what it calls unless it is a loop, a branch or a call.

    Args:
        program: all of it.
        where: name of the computation in which the instruction stands.
        instruction: one that is not inside of a fusion.
    """
    computation = program.computations[where]
    products = [(instruction, computation)] if instruction.operation not in _FREE else []
    if instruction.operation == "fusion" or instruction.operation.startswith("async"):
        inside = [(n, i) for name in instruction.called for _, n, i in program.executed(name)]
        products = [(i, program.computations[name]) for name, i in inside]
    counted = [(flops(i, among), _passes(i)) for i, among in products]
    cycles = instruction.attribute(r'estimated_cycles":"(\d+)"')
    return Cost(
        flops=sum(count for count, _ in counted),
        passed=sum(count * passes for count, passes in counted),
        bytes=traffic(program, where, instruction),
        cycles=int(cycles or 0),
    )


def flops(instruction: Instruction, among: Computation) -> int:
    """Of a product, a multiply-add counted as two; 0 for all else.

    Args:
        instruction: any.
        among: its computation, in which its operands stand.
    """
    if instruction.operation == "custom-call":
        return _kernel(instruction, among)
    if instruction.operation not in ("dot", "convolution"):
        return 0
    left, right = (among[name].results[0].shape for name in instruction.operands[:2])
    (result,) = instruction.results
    if instruction.operation == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2 * math.prod(result.shape) * math.prod(left[d] for d in _numbers(contracted))
    return 2 * _convolution(instruction, left, right, result.shape)


def _kernel(instruction: Instruction, among: Computation) -> int:
    """Of an attention kernel, blocks that it leaves out counted too; of others nothing is known."""
    products = [count for name, count in _KERNELS.items() if instruction.name.startswith(name)]
    if not products:
        return 0
    arrays = [array for name in instruction.operands for array in among[name].results[:1]]
    query, key = [a.shape for a in arrays if len(a.shape) > 2 and a.dtype in ("bf16", "f32")][:2]
    return 2 * products[0] * math.prod(query) * key[-2]


def traffic(program: Program, where: str, instruction: Instruction) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    operation = instruction.operation
    if operation in _FREE or operation.endswith("-done"):
        return 0
    computation = program.computations[where]
    operands = [computation[name] for name in instruction.operands if name in computation]
    written = sum(array.bytes for array in instruction.results if array.off_chip)
    if operation == "fusion":
        (fused,) = (program.computations[name] for name in instruction.called)
        arguments = _parameters(fused)
        reads = sum(
            min(_off_chip(operand), _read(program, fused, arguments[number]))
            for number, operand in enumerate(operands)
        )
        return reads + min(written, _written(fused))
    if operation in _SLICING:
        return 2 * written
    if operation in ("dynamic-update-slice", "scatter"):
        return 2 * min(map(_off_chip, operands[1:]), default=0)
    if operation == "copy-start":  # makes the copy, and names its operand again
        return sum(array.bytes for array in instruction.results[:2] if array.off_chip)
    if operation.endswith("-start"):
        written = max((a.bytes for a in instruction.results if a.off_chip), default=0)
    return sum(map(_off_chip, operands)) + written


def _off_chip(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.results if array.off_chip)


def _parameters(computation: Computation) -> dict[int, Instruction]:
    parameters = (i for i in computation.values() if i.operation == "parameter")
    return {int(i.attributes): i for i in parameters}


def _read(program: Program, fused: Computation, parameter: Instruction) -> int:
    """Bytes of an operand of a fusion that are read: of one that is sliced, the slices."""
    total = 0
    for user in (i for i in fused.values() if parameter.name in i.operands):
        place = user.operands.index(parameter.name)
        if user.operation == "bitcast":
            total += _read(program, fused, user)
        elif user.operation in _SLICING and not place:
            total += user.bytes
        elif user.operation == "dynamic-update-slice" and not place:
            continue  # replaced in place
        elif user.operation == "fusion":
            (inner,) = (program.computations[name] for name in user.called)
            total += _read(program, inner, _parameters(inner)[place])
        else:
            return parameter.bytes
    return min(total, parameter.bytes)


def _written(fused: Computation) -> int:
    """Bytes of a fusion's results that are written: of one replaced in part, the part."""
    (root,) = (i for i in fused.values() if i.root)
    names = root.operands if root.operation == "tuple" else (root.name,)
    total = 0
    for name in names:
        made = fused[name]
        while made.operation == "bitcast":
            made = fused[made.operands[0]]
        if made.operation == "dynamic-update-slice":
            made = fused[made.operands[1]]
        total += made.bytes
    return total


def _passes(instruction: Instruction) -> int:
    asked = instruction.attribute(r"operand_precision=\{(\w+)") or ""
    return _PASSES.get(asked, 1)


def _convolution(
    instruction: Instruction,
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Multiply-adds of a convolution that are not with a zero it made up."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    of_left, of_right, of_result = labels.groups()
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(part.split("=") for part in window.split())
    total = left[of_left.index("b")] * right[of_right.index("i")] * right[of_right.index("o")]
    for dim in range(len(left) - 2):
        label = str(dim)

        def of(name: str, default: str, dim: int = dim) -> str:
            return fields[name].split("x")[dim] if name in fields else default

        padding = of("pad", "0_0").split("_")[0]
        total *= pairs(
            left[of_left.index(label)],
            right[of_right.index(label)],
            result[of_result.index(label)],
            int(of("stride", "1")),
            int(padding),
            int(of("lhs_dilate", "1")),
            int(of("rhs_dilate", "1")),
        )
    return total // int(instruction.attribute(r"batch_group_count=(\d+)") or 1)


@functools.lru_cache(maxsize=4096)
def pairs(
    size: int, kernel: int, out: int, stride: int, padding: int, spread: int, kernel_spread: int
) -> int:
    """How many pairs of an output's place and a kernel's place meet an input along one dimension.

    Args:
        size, kernel, out: sizes of input, kernel and output.
        stride: of the kernel over the input.
        padding: zeros before the input.
        spread, kernel_spread: distance of neighbours in the input and in the kernel.
    """
    first = np.arange(out)[:, None] * stride - padding
    places = first + np.arange(kernel)[None] * kernel_spread
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
