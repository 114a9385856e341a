"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protlm_jax.evaluation import statistics


def heldout(result: dict[str, Any]) -> str:
    """The held-out losses, and the model's difference from each baseline."""
    model, baselines = result["model"], result["baselines"]
    rows = [("model", _error(model["nll"]), f"{100 * model['accuracy']['value']:.1f} %")]
    rows += [(name.replace("_", " "), _error(b["nll"]), "") for name, b in baselines.items()]
    lines = [
        f"{result['targets']:,} hidden residues of {result['proteins']:,} held-out proteins",
        *_table(("", "nats per residue", "accuracy"), rows),
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
        *_table(("", "nats per residue"), rows),
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


def depth(result: dict[str, Any]) -> str:
    """Per layer: what it adds, and what is lost without it."""
    lines = [f"{result['hidden_residues']:,} hidden residues of {result['proteins']:,} proteins"]
    for stack, measured in result["stacks"].items():
        output, lens = measured["skip_output"], measured["logit_lens"]
        header = ["layer", "|c|/|h|", "cos(c, h)"]
        header += ["skip: KL", "skip: dNLL", "skip: top-1"] if output else []
        header += ["lens NLL"] if lens else []
        rows = []
        for layer, relative in enumerate(measured["relative_contribution"]["layer"]):
            row = [str(layer), "-", "-"]
            if relative is not None:  # None: there is no stream yet to compare with
                row = [str(layer), f"{relative:.3f}", f"{measured['cosine']['layer'][layer]:+.3f}"]
            if output:
                row += [f"{output['kl'][layer]:.4f}", f"{output['delta_nll'][layer]:+.4f}"]
                row += [f"{100 * output['top1_agreement'][layer]:.0f} %"]
            row += [f"{lens['nll'][layer]:.3f}"] if lens else []
            rows.append(tuple(row))
        lines += ["", stack, *_table(tuple(header), rows)]
        if not output:
            lines.append(f"effects on the answer: not defined ({result['positions']})")
        score = measured["depth_score"]["relative"]
        if score is not None:
            lines.append(f"depth score {score:.2f} (0: first layers matter most, 1: last)")
    return "\n".join(lines)


def _error(estimate: dict[str, Any] | None) -> str:
    return statistics.written(estimate, 4)


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  " + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]
