"""What can be measured, what it costs, and where it is not defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.depth import answers, contributions, programs, skips
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.models.stacked import Stacked

Needs = Literal["streams", "sum", "answer", "lens"]


@dataclass(frozen=True)
class Metric:
    """One kind of measurement.

    Attributes:
        measure: subject -> quantities; None for what `measure.measure` sees to itself.
        forwards: (layers, sublayers) -> its cost beside the base pass, in forwards of the stack,
            where the residues that are read are 15 % of all.
        needs: "streams" alone, a stream that is a "sum" (no norm behind the addition), an "answer"
            read from a stream, or the stack that `head` reads ("lens").
        layers: the least number that it makes sense for.
        streamed: whether it is reduced batch by batch in the compiled program; the others go
            through the proteins on their own.
    """

    measure: Callable[[Subject], dict[str, Stat]] | None
    forwards: Callable[[int, int], float]
    needs: Needs = "streams"
    layers: int = 1
    streamed: bool = True


METRICS: dict[str, Metric] = {
    "contributions": Metric(contributions.contributions, lambda n, k: 0.0),
    "angles": Metric(contributions.angles, lambda n, k: 0.0),
    "similarity": Metric(None, lambda n, k: 0.0),
    "logit_lens": Metric(answers.logit_lens, lambda n, k: 0.1, "lens"),
    "skips": Metric(None, lambda n, k: (n - 1) / 2),
    "sublayer_skips": Metric(None, lambda n, k: k * (n + 1) / 2 - 1),
    "local_effects": Metric(skips.local_effects, lambda n, k: (n - 1) / 4, "sum", layers=2),
    "swaps": Metric(None, lambda n, k: (n + 1) / 2, "answer", layers=2),
    "repeats": Metric(None, lambda n, k: (n + 3) / 2, "answer"),
    "block_deletions": Metric(
        None,
        lambda n, k: sum((n - size) ** 2 / (2 * n) for size in programs.block_sizes(n)),
        "answer",
        layers=3,
    ),
    "reversals": Metric(
        None,
        lambda n, k: sum((n * n - size * size) / (2 * n) for size in programs.block_sizes(n)),
        "answer",
        layers=3,
    ),
    "erasure": Metric(None, lambda n, k: len(depths_of(n)) * 2.5, "answer", streamed=False),
    "gradients": Metric(None, lambda n, k: len(depths_of(n)) * 24.0, "answer", streamed=False),
    "tuned_lens": Metric(None, lambda n, k: 2.0, "lens", streamed=False),
}
DEFAULT = (
    *("contributions", "angles", "similarity", "logit_lens"),
    *("skips", "sublayer_skips", "local_effects", "swaps"),
)


def depths_of(num_layers: int) -> tuple[int, ...]:
    """The depths at which costly measurements look: at most eight, evenly spaced, 0 among them."""
    return tuple(sorted({num_layers * i // 8 for i in range(8)}))


def resolve(wanted: str | Iterable[str]) -> tuple[str, ...]:
    """Names of metrics: of "default", "all", or a list.

    Raises:
        ProtlmError: for a name that does not exist.
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
    if metric.needs == "sum" and model.config.norm_placement != "pre":
        return (
            "a norm stands behind what each layer adds, so that the stream is no sum of what "
            "earlier layers wrote"
        )
    if metric.needs in ("answer", "lens") and not read.reads_stream:
        return f"the model {read.silence}"
    if metric.needs == "lens" and stack != read.stack:
        return f"`head` reads the {read.stack}, not the {stack}"
    return None
