"""The sums of an objective as metrics that T5X adds up over microbatches, steps and hosts."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from t5x import metrics as t5x_metrics

from protlm_jax.objectives import Score

Metrics = dict[str, clu_metrics.Metric]


@flax.struct.dataclass
class Perplexity(clu_metrics.Average):
    """exp of a mean negative log-likelihood in nats."""

    def compute(self) -> Any:
        return jnp.exp(super().compute())


def metrics_of(score: Score, batch: dict[str, jax.Array]) -> Metrics:
    """The numbers of `Objective.summary`, the loss, and how fast it goes.

    Means are over residues, not over steps: two steps of unequal weight count by their weight.

    Args:
        score: of a batch.
        batch: the features that were scored; "segment_ids" mark what is padding.
    """
    metrics: Metrics = {"loss": _average(score.loss_sum, score.weight_sum)}
    for name, total in score.metrics.items():
        if not name.endswith("_sum"):
            continue
        group = name.rpartition("/")[0]
        count = score.metrics[f"{group}/count"]
        metrics[name.removesuffix("_sum")] = _average(total, count)
        if name.endswith("/nll_sum"):
            metrics[f"{group}/perplexity"] = Perplexity(total=total, count=count)
    filled = {name: ids > 0 for name, ids in batch.items() if name.endswith("segment_ids")}
    for name, mask in filled.items():
        part = name.removesuffix("segment_ids") + "tokens"
        metrics[f"non_padding_fraction/{part}"] = _average(jnp.sum(mask), mask.size)
    tokens = jnp.sum(next(iter(filled.values())))
    metrics |= {
        "timing/seconds": t5x_metrics.Time(),
        "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
        "timing/tokens_per_second": t5x_metrics.TimeRate.from_model_output(numerator=tokens),
    }
    return metrics


def _average(total: Any, count: Any) -> clu_metrics.Average:
    return clu_metrics.Average(
        total=jnp.asarray(total, jnp.float32), count=jnp.asarray(count, jnp.float32)
    )
