"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.tables import Table


def heldout(result: dict[str, Any]) -> str:
    """The held-out losses, and the model's difference from each baseline."""
    model, baselines = result["model"], result["baselines"]
    rows = [("model", _error(model["nll"]), f"{100 * model['accuracy']['value']:.1f} %")]
    rows += [(name.replace("_", " "), _error(b["nll"]), "") for name, b in baselines.items()]
    lines = [
        f"{result['targets']:,} hidden residues of {result['proteins']:,} held-out proteins",
        Table(("", "nats per residue", "accuracy"), rows).text(),
    ]
    return "\n".join([*lines, *_differences(result), result["protocol"]])


def detection(result: dict[str, Any]) -> str:
    """The discriminator's cross-entropy beside the entropies of its labels, and its AUROC."""
    model = result["model"]
    rows = [("discriminator", _error(model["nll"]))]
    rows += [(n.replace("_", " "), _error(b["nll"])) for n, b in result["baselines"].items()]
    lines = [
        f"{result['residues']:,} residues of {result['proteins']:,} held-out proteins, "
        f"{100 * result['replaced']:.1f} % of them replaced",
        Table(("", "nats per residue"), rows).text(),
        *_differences(result),
        f"AUROC {_error(model['auroc'])}; at probability 1/2 accuracy {model['accuracy']:.3f}, "
        f"precision {_share(model['precision'])}, recall {_share(model['recall'])}",
    ]
    return "\n".join([*lines, result["protocol"]])


def _differences(result: dict[str, Any]) -> list[str]:
    """The model minus each baseline, in standard errors where there is one."""
    lines = []
    for name, difference in result["model_minus"].items():
        verdict = "better" if difference["value"] < 0 else "worse"
        if error := difference["standard_error"]:
            verdict = f"{abs(difference['value']) / error:.1f} standard errors {verdict}"
        lines.append(f"model - {name.replace('_', ' ')}: {difference['value']:+.4f} ({verdict})")
    if any(difference["standard_error"] is None for difference in result["model_minus"].values()):
        lines.append(statistics.NO_ERROR)
    return lines


def _error(estimate: dict[str, Any] | None) -> str:
    return statistics.written(estimate, 4)


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
