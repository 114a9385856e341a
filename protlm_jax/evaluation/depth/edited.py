"""`edited`: what a model answers under layer programs of your own."""

from __future__ import annotations

from collections.abc import Mapping

import xarray

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth.ablation import under_programs
from protlm_jax.evaluation.depth.batches import in_float32, prepare
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.results import dataset
from protlm_jax.evaluation.depth.stream import own
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.evaluation.depth.sweep import Sweep
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
        sequences, length, seed: as of `analyse`.
        programs: by a name for each; they run at every position.
        stack: which stack runs them; None for the one that the answer is read from.

    Returns:
        "edit_<name>" (program) for every name of `stream.differences`, and "base_nll" and
        "base_accuracy", the model's own.

    Raises:
        ProtlmError: the model's answer is not read from its stream, a program is not made for the
            stack, or no protein has a residue to hide.
    """
    readout = loaded.model.readouts[0]
    if not readout.reads_stream:
        raise ProtlmError(f"{loaded.name} does not answer from the stream that programs change")
    loaded = in_float32(loaded)
    sweep = Sweep(loaded, prepare(loaded, sequences, length, seed), stack or readout.stack)
    number, _ = sweep.shape
    for name, program in programs.items():
        if (last := int(program.order.max())) >= number:
            raise ProtlmError(
                f"program {name!r} runs layer {last}, but the {sweep.stack} of {loaded.name} has "
                f"{number}, counted from 0: begin with LayerProgram.full({number})"
            )
    stacked = LayerProgram.stack(list(programs.values()))
    quantities, _ = sweep.sums(
        lambda batch: (sweep.run(_answers, sweep.shown(batch), stacked), None), "programs"
    )
    labels = {"program": tuple(programs), "protein": sweep.proteins.names}
    return dataset(quantities, labels, model=loaded.name, stack=sweep.stack, layers=number)


def _answers(subject: Subject, programs: LayerProgram) -> dict[str, Stat]:
    changed = under_programs(subject, programs)
    return own(subject) | {f"edit_{name}": stat for name, stat in changed.items()}
