"""`edited`: what a model answers under layer programs of your own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import answers
from protlm_jax.evaluation.depth.analyse import in_float32
from protlm_jax.evaluation.depth.batches import Asked, prepare
from protlm_jax.evaluation.depth.positions import Positions, Stat
from protlm_jax.evaluation.depth.programs import under_programs
from protlm_jax.evaluation.depth.results import dataset
from protlm_jax.evaluation.depth.streaming import arguments, over_batches
from protlm_jax.evaluation.depth.subject import observe
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.stack import LayerProgram


def edited(
    loaded: LoadedModel,
    sequences: Mapping[str, str],
    programs: Mapping[str, LayerProgram],
    *,
    stack: str | None = None,
    length: int | None = None,
    seed: int = 0,
) -> xarray.Dataset:
    """The answer under each of some layer programs, compared with the model's own, in float32.

        full = LayerProgram.full(12)
        found = edited(model, proteins, {"3 out": full.skip(3), "5 and 6": full.swap(5, 6)})
        found["edit_kl"].sel(program="3 out")

    Args:
        loaded: a model that answers from its stream.
        sequences: id -> sequence; 15 % of each protein's residues are asked, as in `analyse`.
        programs: by a name for each; they run at every position.
        stack: which stack runs them; None for the one that the answer is read from.
        length: tokens in a row; None takes the position table's size, or 256.
        seed: of the choice of hidden residues.

    Returns:
        "edit_<name>" (program) for every name of `answers.differences`, and "base_nll" and
        "base_accuracy", the model's own.

    Raises:
        ProtlmError: the model's answer is not read from its stream, a program is not made for the
            stack, or no protein has a residue to hide.

    Cost: of each program its steps from its first change on; one compilation for programs of as
    many steps and as many of them.
    """
    readout = loaded.model.readouts[0]
    if not readout.reads_stream:
        raise ProtlmError(f"{loaded.name} does not answer from the stream that programs change")
    stack = stack or readout.stack
    block, _ = loaded.model.bind({"params": loaded.params}).rows(stack)
    for name, program in programs.items():
        _require_layers(name, program, block.num_layers, f"the {stack} of {loaded.name}")
    loaded = in_float32(loaded)
    proteins = prepare(loaded, sequences, length, seed)
    stacked = LayerProgram.stack(list(programs.values()))

    def measured(batch: Asked) -> tuple[dict[str, Stat], None]:
        with jax.default_matmul_precision("float32"):
            found = _measure(*arguments(loaded, batch, "asked"), stack, stacked)
        return jax.device_get(found), None

    quantities, _ = over_batches(loaded, proteins, measured, "programs")
    labels = {"program": tuple(programs), "protein": proteins.names}
    return dataset(quantities, labels, model=loaded.name, stack=stack, layers=block.num_layers)


def _require_layers(name: str, program: LayerProgram, number: int, whose: str) -> None:
    last = int(program.order.max())
    if last >= number:
        raise ProtlmError(
            f"program {name!r} runs layer {last}, but {whose} has {number}, counted from 0: begin "
            f"with LayerProgram.full({number})"
        )


@functools.partial(jax.jit, static_argnames=("model", "stack"))
def _measure(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    stack: str,
    programs: LayerProgram,
) -> dict[str, Stat]:
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    changed = under_programs(subject, programs)
    return answers.own(subject) | {f"edit_{name}": stat for name, stat in changed.items()}
