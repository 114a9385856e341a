"""The registry of measurements: what each computes, what it costs, and where it is defined.

To add one: a function, subject -> quantities (or sweep -> quantities), and a line in METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import ablation, similarity, stream
from protlm_jax.evaluation.depth.ablation import block_sizes
from protlm_jax.evaluation.depth.gradients import gradients
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.evaluation.depth.sweep import depths_of
from protlm_jax.evaluation.depth.tuned_lens import tuned_lens
from protlm_jax.models.stacked import Stacked


@dataclass(frozen=True)
class Metric:
    """One kind of measurement.

    Attributes:
        measure: what computes it, by `how`.
        forwards: (layers, sublayers) -> its cost beside the base pass, in forwards of the stack,
            where the residues that are read are 15 % of all.
        needs: "streams" alone, a stream that is a "sum" (no norm behind the addition), an "answer"
            read from a stream, or the stack that `head` reads ("lens").
        layers: the least number for which it is defined.
        how: "alone", measure(subject) -> quantities of a batch; "together", measure(subject, names)
            of all metrics with this function, as one compiled loop; "sample", measure(subject,
            points) -> streams that are kept; "sweep", measure(sweep) over all batches.
    """

    measure: Callable[..., dict[str, Any]]
    forwards: Callable[[int, int], float]
    needs: Literal["streams", "sum", "answer", "lens"] = "streams"
    layers: int = 1
    how: Literal["alone", "together", "sample", "sweep"] = "alone"


def _deletions(n: int, k: int) -> float:
    return sum((n - size) ** 2 / (2 * n) for size in block_sizes(n))


def _reversals(n: int, k: int) -> float:
    return sum((n * n - size * size) / (2 * n) for size in block_sizes(n))


METRICS: dict[str, Metric] = {
    "contributions": Metric(stream.contributions, lambda n, k: 0.0),
    "angles": Metric(stream.angles, lambda n, k: 0.0),
    "similarity": Metric(similarity.sample, lambda n, k: 0.0, how="sample"),
    "logit_lens": Metric(stream.logit_lens, lambda n, k: 0.1, "lens"),
    "skips": Metric(ablation.skips, lambda n, k: (n - 1) / 2, how="together"),
    "sublayer_skips": Metric(ablation.skips, lambda n, k: k * (n + 1) / 2 - 1, how="together"),
    "local_effects": Metric(ablation.local_effects, lambda n, k: (n - 1) / 4, "sum", 2),
    "swaps": Metric(ablation.rearranged, lambda n, k: (n + 1) / 2, "answer", 2, "together"),
    "repeats": Metric(ablation.rearranged, lambda n, k: (n + 3) / 2, "answer", 1, "together"),
    "block_deletions": Metric(ablation.rearranged, _deletions, "answer", 3, "together"),
    "reversals": Metric(ablation.rearranged, _reversals, "answer", 3, "together"),
    "erasure": Metric(
        ablation.erasure, lambda n, k: len(depths_of(n)) * 2.5, "answer", how="sweep"
    ),
    "gradients": Metric(gradients, lambda n, k: len(depths_of(n)) * 24.0, "answer", how="sweep"),
    "tuned_lens": Metric(tuned_lens, lambda n, k: 2.0, "lens", how="sweep"),
}
DEFAULT = (
    *("contributions", "angles", "similarity", "logit_lens"),
    *("skips", "sublayer_skips", "local_effects", "swaps"),
)


def measure(
    subject: Subject, *, metrics: tuple[str, ...], points: int = 0
) -> tuple[dict[str, Stat], dict[str, jax.Array]]:
    """What is measured of one batch after one base pass: quantities, and the sample of streams.

    Args:
        metrics: names that are defined on the stack, see `why_not`; those of a sweep are left out.
        points: how many positions "similarity" takes of this batch.
    """
    found, sample = stream.own(subject) if subject.answers else {}, {}
    for name in metrics:
        if METRICS[name].how == "alone":
            found |= METRICS[name].measure(subject)
        elif METRICS[name].how == "sample":
            sample = METRICS[name].measure(subject, points)
    together: dict[Callable[..., Any], list[str]] = {}
    for name in metrics:
        if METRICS[name].how == "together":
            together.setdefault(METRICS[name].measure, []).append(name)
    for function, names in together.items():
        found |= function(subject, names)
    return found, sample


def resolve(wanted: str | Iterable[str]) -> tuple[str, ...]:
    """Names of metrics: of "default", "all", or a list.

    Raises:
        ProtlmError: a name does not exist.
    """
    if wanted == "default":
        return DEFAULT
    if wanted == "all":
        return tuple(METRICS)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in METRICS:
            raise ProtlmError(
                f"there is no depth metric {name!r}; choose default, all, or some of "
                f"{', '.join(METRICS)}"
            )
    return tuple(dict.fromkeys(names))


def forwards(names: Iterable[str], layers: int, sublayers: int) -> float:
    """What metrics cost together, in forwards of the stack, the base pass among them."""
    return 1 + sum(METRICS[name].forwards(layers, sublayers) for name in names)


def why_not(name: str, model: Stacked, stack: str, num_layers: int) -> str | None:
    """Why a metric is not defined on a stack of a model; None where it is."""
    metric, read = METRICS[name], model.readouts[0]
    if num_layers < metric.layers:
        return f"needs {metric.layers} layers, and there are {num_layers}"
    if metric.needs == "sum" and not model.config.adds_alone:
        return (
            "a norm stands behind what each layer adds, so that the stream is no sum of what "
            "earlier layers wrote"
        )
    if metric.needs in ("answer", "lens") and not read.reads_stream:
        return f"the model {read.silence}"
    if metric.needs == "lens" and stack != read.stack:
        return f"`head` reads the {read.stack}, not the {stack}"
    return None
