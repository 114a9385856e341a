"""What a probe's numbers say, in words: above its controls or not, by how many standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.report.sections import name

Results = Mapping[str, Any]

_CLEAR = 2.0  # standard errors from which a difference is called one


def headline(result: Results) -> str:
    """One or two sentences on the first target, with the head that validation prefers."""
    target = next(iter(result["benchmark"]["targets"]))
    head = preferred_head(result, target)
    model = result["heads"][head]["inputs"]["model"]
    views = [v for v in views_of(result, head, target) if versus(result, head, v, target)]
    if not views:
        return ""
    view = views[0]
    control, difference = versus(result, head, view, target) or ("", {})
    side = "above" if difference["value"] >= 0 else "below"
    score = written(model["tests"][view][target]["pooled"], result, target)
    first = (
        f"{_read(result, target, head, title(result, view), score)}{_from(result, model)}: "
        f"{_gap(difference, result, target)} {side} {name(control)}, the strongest control "
        f"({errors_in_words(difference)})."
    )
    return f"{first} {_overall(result, head, target, views)}" if len(views) > 1 else first


def leads(result: Results) -> list[tuple[str, str]]:
    """The lead over random weights of each head, on the first test set and target, with words."""
    target = next(iter(result["benchmark"]["targets"]))
    points = f"{name(target)} points" if is_classes(result, target) else f"{name(target)}, Spearman"
    found = []
    for head, outcome in result["heads"].items():
        views = views_of(result, head, target)
        against = outcome["model_minus"].get("random", {})
        if views and (lead := against.get(views[0], {}).get(target)):
            value = written(lead, result, target, signed=True).partition(" ")[0]
            test = title(result, views[0])
            found.append((value, f"{points} over random weights, {name(head)}, {test}"))
    return found


def preferred_head(result: Results, target: str) -> str:
    """The head whose mean validation score, at the layer chosen there, is highest."""

    def on_validation(head: str) -> float:
        model = result["heads"][head]["inputs"]["model"]
        scores = model["valid"][target][model["best_layer"]["index"]]
        return fmean([s for s in scores if s is not None] or [-2.0])  # below any score

    return max(result["heads"], key=on_validation)


def views_of(result: Results, head: str, target: str) -> list[str]:
    """The test sets that have labels of a target, in the order of the benchmark."""
    tests = result["heads"][head]["inputs"]["model"]["tests"]
    return [v for v, scored in tests.items() if (scored.get(target) or {}).get("pooled")]


def versus(result: Results, head: str, view: str, target: str) -> tuple[str, Results] | None:
    """The control that comes closest to the model, or farthest ahead, and the paired difference."""
    found = [
        (control, by_view[view][target])
        for control, by_view in result["heads"][head]["model_minus"].items()
        if by_view.get(view, {}).get(target)
    ]
    return min(found, key=lambda pair: pair[1]["value"]) if found else None


def title(result: Results, view: str) -> str:
    """A test set's name for people."""
    return str(result["benchmark"].get("views", {}).get(view, {}).get("title") or name(view))


def is_classes(result: Results, target: str) -> bool:
    return bool(result["benchmark"]["targets"][target]["kind"] == "classes")


def written(estimate: Results | None, result: Results, target: str, *, signed: bool = False) -> str:
    """A score with its standard error: percent of classes read right, or a rank correlation."""
    scale, digits = (100, 1) if is_classes(result, target) else (1, 3)
    return statistics.written(estimate, digits, scale=scale, sign="+" if signed else "")


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _read(result: Results, target: str, head: str, test: str, score: str) -> str:
    if is_classes(result, target):
        found = f"{name(target)} is right for {score}\u00a0% of the {result['benchmark']['level']}s"
        return f"With the {name(head)}, {found} of {test}"
    return f"With the {name(head)}, {name(target)} of {test} has a rank correlation of {score}"


def _from(result: Results, model: Results) -> str:
    words = f", read from layer {model['best_layer']['layer']} of {result['num_layers']}"
    return f"{words} (chosen on validation)" if len(result["layers"]) > 1 else words


def _gap(difference: Results, result: Results, target: str) -> str:
    size = abs(difference["value"])
    return f"{100 * size:.1f} points" if is_classes(result, target) else f"{size:.3f}"


def _overall(result: Results, head: str, target: str, views: Sequence[str]) -> str:
    """Which test sets lie on which side of the strongest control."""
    groups: dict[str, list[str]] = {"above": [], "below": [], "even": []}
    for view in views:
        _, difference = versus(result, head, view, target) or ("", {})
        apart = errors_apart(difference) or 0.0
        side = "above" if apart >= _CLEAR else "below" if apart <= -_CLEAR else "even"
        groups[side].append(f"{title(result, view)} ({_errors(difference)})")
    verbs = {"above": "leads", "below": "trails", "even": "cannot be told from"}
    clauses: list[str] = []
    for side, found in groups.items():
        if found:
            control = "it" if clauses else "the strongest control"
            clauses.append(f"{verbs[side]} {control} on {listed(found)}")
    return f"Counted in standard errors, this model {', and '.join(clauses)}."


def errors_apart(difference: Results) -> float | None:
    """A paired difference in its standard errors; None where it has no error bar."""
    value, error = difference["value"], difference["standard_error"]
    return float(value / error) if error else None


def errors_in_words(difference: Results) -> str:
    """The size of a paired difference: "3.1 standard errors", or that there is no error bar."""
    unit = "" if errors_apart(difference) is None else " standard errors"
    return f"{_errors(difference)}{unit}"


def _errors(difference: Results) -> str:
    apart = errors_apart(difference)
    if apart is None:
        return "no error bar"
    return f"{abs(apart):.0f}" if abs(apart) >= 10 else f"{abs(apart):.1f}"
