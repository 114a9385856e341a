"""What a probe's numbers say, in words: above its controls or not, by how many standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from protlm_jax.evaluation.probes.results import ProbeResult
from protlm_jax.report.sections import name

Difference = Mapping[str, Any]

_CLEAR = 2.0  # standard errors from which a difference is called one


def headline(result: ProbeResult) -> str:
    """One or two sentences on the first target, with the head that validation prefers."""
    target = next(iter(result.benchmark["targets"]))
    head = preferred_head(result, target)
    against = {v: d for v in result.views(head, target) if (d := versus(result, head, v, target))}
    if not against:
        return ""
    view, (control, difference) = next(iter(against.items()))
    score = result.written(result.score(head, "model", view, target), target)
    test = title(result, view)
    if result.is_classes(target):
        unit = f"{result.benchmark['level']}s"
        read = f"With the {name(head)}, {name(target)} is right for {score}\u00a0% of the {unit}"
        read += f" of {test}"
        gap = f"{100 * abs(difference['value']):.1f} points"
    else:
        read = f"With the {name(head)}, {name(target)} of {test} has a rank correlation of {score}"
        gap = f"{abs(difference['value']):.3f}"
    attrs = result.data.attrs
    read += f", read from layer {result.layer(head, 'model')} of {attrs['num_layers']}"
    read += " (chosen on validation)" if result.data.sizes["layer"] > 1 else ""
    side = "above" if difference["value"] >= 0 else "below"
    first = (
        f"{read}: {gap} {side} {name(control)}, the strongest control "
        f"({errors_in_words(difference)})."
    )
    return f"{first} {_overall(result, against)}" if len(against) > 1 else first


def leads(result: ProbeResult) -> list[tuple[str, str]]:
    """The lead over random weights of each head, on the first test set and target, with words."""
    target = next(iter(result.benchmark["targets"]))
    points = f"{name(target)} points" if result.is_classes(target) else f"{name(target)}, Spearman"
    found = []
    for head in result.heads:
        views = result.views(head, target)
        if "random" not in result.inputs(head) or not views:
            continue
        if lead := result.minus(head, "random", views[0], target):
            value = result.written(lead, target, "+").partition(" ")[0]
            test = title(result, views[0])
            found.append((value, f"{points} over random weights, {name(head)}, {test}"))
    return found


def preferred_head(result: ProbeResult, target: str) -> str:
    """The head whose mean validation score, at the layer chosen there, is highest."""

    def on_validation(head: str) -> float:
        layer = result.layer(head, "model")
        scores = result.array("valid", head=head, input="model", layer=layer, target=target)
        known = scores[np.isfinite(scores)]
        return float(known.mean()) if known.size else -2.0  # below any score

    return max(result.heads, key=on_validation)


def versus(result: ProbeResult, head: str, view: str, target: str) -> tuple[str, Difference] | None:
    """The control that comes closest to the model, or farthest ahead, and the paired difference."""
    found = [
        (control, difference)
        for control in result.inputs(head)[1:]
        if (difference := result.minus(head, control, view, target))
    ]
    return min(found, key=lambda pair: float(pair[1]["value"] or 0.0), default=None)


def title(result: ProbeResult, view: str) -> str:
    """A test set's name for people."""
    return str(result.benchmark["views"][view]["title"])


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _overall(result: ProbeResult, against: Mapping[str, tuple[str, Difference]]) -> str:
    """Which test sets lie on which side of the strongest control."""
    groups: dict[str, list[str]] = {"leads": [], "trails": [], "cannot be told from": []}
    for view, (_, difference) in against.items():
        apart = errors_apart(difference) or 0.0
        side = "leads" if apart >= _CLEAR else "trails" if apart <= -_CLEAR else None
        words = f"{title(result, view)} ({_errors(difference)})"
        groups[side or "cannot be told from"].append(words)
    clauses: list[str] = []
    for verb, found in groups.items():
        if found:
            control = "it" if clauses else "the strongest control"
            clauses.append(f"{verb} {control} on {listed(found)}")
    return f"Counted in standard errors, this model {', and '.join(clauses)}."


def errors_apart(difference: Difference) -> float | None:
    """A paired difference in its standard errors; None where it has no error bar."""
    value, error = difference["value"], difference["standard_error"]
    return float(value / error) if error else None


def errors_in_words(difference: Difference) -> str:
    """The size of a paired difference: "3.1 standard errors", or that there is no error bar."""
    unit = "" if errors_apart(difference) is None else " standard errors"
    return f"{_errors(difference)}{unit}"


def _errors(difference: Difference) -> str:
    apart = errors_apart(difference)
    if apart is None:
        return "no error bar"
    return f"{abs(apart):.0f}" if abs(apart) >= 10 else f"{abs(apart):.1f}"
