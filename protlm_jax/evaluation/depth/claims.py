"""What measurements show: one table of claims, each a number, its interval, and a verdict.

A claim holds where the 95 % interval of its number, by a bootstrap over proteins, lies on its side
of the threshold. It is about one set of weights on these proteins. The same seed draws the same
proteins for every number, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray

from protlm_jax.evaluation import statistics
from protlm_jax.evaluation.depth.results import Quantity, by_noise, drawn, quantity
from protlm_jax.evaluation.depth.scores import ENOUGH, GUESS, centre, per_layer_effect, reached
from protlm_jax.evaluation.statistics import Bootstrapped
from protlm_jax.evaluation.tables import Table

NEGLIGIBLE = 0.05  # nats: a smaller change of the answer is called small
NEEDLESS = 0.01  # nats: below this, the stream of one residue is not needed
HALF = 0.5
FEW = 30  # proteins below which an interval is called rough

YES, NO, OPEN = "yes", "no", "undecided"
WORDS = {
    "loss": "loss, nats",
    "accuracy": "share of residues predicted right",
    "depth_score": "depth score: centre of the effects on later layers, 0 (first) to (N-2)/(N-1)",
    "answer_depth_score": "depth score of the effects on the answer",
    "small_share": f"share of layers whose skip changes the answer by less than {NEGLIGIBLE} nats",
    "half_depth": "share of the layers after which the logit lens has half of the answer",
    "exit_depth": f"share of the layers after which it has {ENOUGH:.0%} of the answer",
    "late_contribution": "norm of what a layer of the second half adds, relative to the stream",
}
TREND = ("depth_score", "small_share", "exit_depth", "late_contribution")


@dataclass(frozen=True)
class Claim:
    """A row of the table."""

    name: str  # of the number; the same for every model
    claim: str  # in words
    value: float
    low: float | None  # ends of the 95 % interval, where there is one
    high: float | None
    threshold: float | None = None  # what the number is compared with
    verdict: str = ""  # YES, NO, OPEN, or of a change higher, lower, the same


def claims(results: xarray.Dataset, control: xarray.Dataset | None = None) -> list[Claim]:
    """Of one stack; of what was not measured there are none.

    Args:
        results: of `analyse`, without levels of noise.
        control: the same of a re-initialised copy, measured on the same proteins.
    """
    found = headlines(results)
    rows = [Claim(name, WORDS[name], x.value, *_ends(x)) for name, x in found.items()]
    if "loss" in found:
        words = "the loss is below that of a blind guess, ln 20"
        rows.append(_compared("knows", words, found["loss"], -1, GUESS))
    if results.attrs["layers"] > 2:
        if "depth_score" in found:
            words = "the layers' effects have their centre in the first half"
            rows.append(_compared("early_centre", words, found["depth_score"], -1, HALF))
        rows += [row for finder in _FINDERS for row in finder(results)]
    if control is not None:
        ends = "this model - its re-initialised copy"
        rows += _differences(headlines(control), found, ends, "control_")
    return rows


def headlines(results: xarray.Dataset, seed: int = 0) -> dict[str, Bootstrapped]:
    """The numbers that sum up a stack, as far as they were measured and are defined; see WORDS."""
    found = {}
    for name, (source, of) in _HEADLINES.items():
        x = quantity(results, source)
        if x is None or results.attrs["layers"] < 2:
            continue
        draws = drawn(x, seed)
        nothing = np.isnan(draws).reshape(len(draws), -1).all(axis=1)
        head = Bootstrapped(
            float(of(x.mean)), np.where(nothing, np.nan, of(draws)), x.total.shape[-1]
        )
        # A number that is defined of some draws alone is none of the model.
        if not math.isnan(head.value) and (nothing.all() or _enough(head.drawn)):
            found[name] = head
    return found


def trends(stacks: Sequence[xarray.Dataset]) -> list[tuple[str, list[Claim]]]:
    """How the headlines of a family change from its shallowest to its deepest model.

    Returns:
        (family and stack, claims) of each with models of different depths, controls left out.
        Models that share a depth are no trend: the first of each depth counts.
    """
    families: dict[tuple[str, str], list[xarray.Dataset]] = {}
    for one in stacks:
        if not one.attrs.get("control_of"):
            families.setdefault((one.attrs["family"], one.attrs["stack"]), []).append(one)
    found = []
    for (family, stack), models in sorted(families.items()):
        models.sort(key=lambda one: int(one.attrs["layers"]))
        first, last = models[0], models[-1]
        if first.attrs["layers"] != last.attrs["layers"]:
            ends = f"{last.attrs['layers']} layers - {first.attrs['layers']} layers"
            found.append((f"{family}, {stack}", _between(first, last, ends)))
    return found


def noise_claims(results: xarray.Dataset) -> list[Claim]:
    """How the headlines change from the lowest to the highest level of noise."""
    levels = sorted(by_noise(results), key=lambda pair: pair[0] or 0.0)
    (low, first), (high, last) = levels[0], levels[-1]
    if low is None or low == high:
        return []
    return _between(first, last, f"{high:g} hidden - {low:g} hidden")


def table(rows: Sequence[Claim], control: Sequence[Claim] = ()) -> Table:
    """For terminals and pages; the numbers of a control beside, where they are the same ones."""
    theirs = {row.name: row for row in control}
    columns = ["claim", "value", "95 % interval", "threshold", "verdict"]
    cells: list[list[Any]] = [
        [row.claim, row.value, span(row.low, row.high), row.threshold, row.verdict or None]
        for row in rows
    ]
    if theirs:
        columns.insert(3, "re-initialised")
        for row, line in zip(rows, cells, strict=True):
            other = theirs.get(row.name)
            line.insert(3, other.value if other and other.claim == row.claim else None)
    return Table(columns, cells)


def span(low: float | None, high: float | None) -> str | None:
    """An interval as text."""
    return None if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _between(first: xarray.Dataset, last: xarray.Dataset, ends: str) -> list[Claim]:
    """`_differences` of two datasets, paired if they have the same proteins."""
    if first["protein"].values.tolist() == last["protein"].values.tolist():
        return _differences(headlines(first), headlines(last), ends)
    # Draws of other proteins are independent, whatever the number of these.
    other, number = headlines(last, seed=1), first.sizes["protein"]
    after = {name: replace(head, proteins=number) for name, head in other.items()}
    return _differences(headlines(first), after, ends)


def _differences(
    before: Mapping[str, Bootstrapped], after: Mapping[str, Bootstrapped], ends: str,
    prefix: str = "",
) -> list[Claim]:  # fmt: skip
    """Of the TREND numbers, after - before."""
    return [
        _changed(f"{prefix}{n}", f"{n.replace('_', ' ')}, {ends}", after[n].minus(before[n]))
        for n in TREND
        if n in before and n in after
    ]


def _enough(draws: np.ndarray) -> bool:
    return bool(np.isfinite(draws).mean() >= ENOUGH)


def _ends(x: Bootstrapped) -> tuple[float | None, float | None]:
    low, high = x.interval(least=ENOUGH)
    if math.isnan(low):  # the same in every draw, or defined in too few
        return (x.value, x.value) if _enough(x.drawn) else (None, None)
    return low, high


def _compared(name: str, words: str, x: Bootstrapped, side: int, threshold: float) -> Claim:
    """Whether a number is below (side -1) or above (1) a threshold."""
    low, high = _ends(x)
    verdict = OPEN
    if low is not None and high is not None and (low > threshold or high < threshold):
        verdict = YES if (low > threshold) == (side > 0) else NO
    return Claim(name, words, x.value, low, high, threshold, verdict)


def _changed(name: str, words: str, difference: Bootstrapped) -> Claim:
    """Whether a difference is higher or lower than 0."""
    row = _compared(name, words, difference, 1, 0.0)
    verdict = {YES: "higher", NO: "lower"}.get(row.verdict, OPEN)
    if difference.value == 0 and not np.nan_to_num(difference.drawn).any():
        verdict = "the same" if np.isfinite(difference.drawn).any() else OPEN
    return Claim(name, words, row.value, row.low, row.high, 0.0, verdict)


def tail(draws: np.ndarray, below: float) -> int:
    """How many of the last entries of draws [draws, entries] are all below a bound, at 97.5 %.

    The bound holds for the largest of the run, draw by draw: not for each entry on its own, which
    would be wrong more often the longer the run. An entry that has nan ends the run.
    """
    largest = np.maximum.accumulate(draws[:, ::-1], axis=1)
    failed = np.flatnonzero(~(np.quantile(largest, statistics.QUANTILES[1], axis=0) < below))
    return int(failed[0]) if len(failed) else draws.shape[1]


def leader(values: np.ndarray, draws: np.ndarray) -> tuple[int, list[int]]:
    """The entry with the largest value, and those not significantly smaller, largest first.

    By draws [draws, entries]: the 2.5 % quantile of the paired difference is not above 0.
    """
    order = [int(i) for i in np.argsort(-values, kind="stable") if not math.isnan(values[i])]
    top = order[0]
    apart = np.quantile(draws[:, [top]] - draws, statistics.QUANTILES[0], axis=0) > 0
    return top, [i for i in order[1:] if not apart[i]]


def _of(x: Quantity, statistic: Callable[[np.ndarray], np.ndarray]) -> Bootstrapped:
    """A statistic [..., *shape] -> [...] of the means and of their draws."""
    return Bootstrapped(float(statistic(x.mean)), statistic(drawn(x)), x.total.shape[-1])


def _last_ones(
    results: xarray.Dataset, name: str, words: str, threshold: float = NEGLIGIBLE
) -> Iterator[Claim]:
    """How many of the last entries of a curve are all small; else whether the last one is."""
    x = quantity(results, name)
    if x is None:
        return
    labels = results[results[name].dims[-1]].values
    run = max(tail(drawn(x), threshold), 1)
    largest = _of(x, lambda v: v[..., -run:].max(axis=-1))
    text = words.format(f"the last {run} of {len(labels)}", labels[-run])
    yield _compared(name, f"{text} changes the answer by less", largest, -1, threshold)


def _late_layers(results: xarray.Dataset) -> Iterator[Claim]:
    yield from _last_ones(results, "skip_kl", "skipping any one of {0} layers (from {1} on)")
    places = "in any of {0} places (from layer {1} on)"
    yield from _last_ones(results, "swap_kl", f"exchanging two neighbours {places}")
    yield from _last_ones(results, "repeat_kl", f"running a layer twice {places}")
    erased = "erasing one visible residue at {0} depths looked at (from {1} on)"
    yield from _last_ones(results, "erasure_kl", erased, NEEDLESS)


def _leaders(results: xarray.Dataset) -> Iterator[Claim]:
    """The layer, and the part of a layer, without which most is lost."""
    for name, words in (
        ("skip_delta_nll", "of all layers, skipping layer {} raises the loss most"),
        ("sublayer_skip_kl", "of all parts of a layer, silencing the {} changes the answer most"),
    ):
        x = quantity(results, name)
        if x is None or len(x.mean) < 2:
            continue
        values, draws = x.mean, drawn(x)
        if values.ndim > 1:
            values, draws = values.mean(axis=-1), draws.mean(axis=-1)
        top, rivals = leader(values, draws)
        second = int(np.argsort(-np.where(np.arange(len(values)) == top, -np.inf, values))[0])
        labels = results[results[name].dims[0]].values.tolist()
        who = " or ".join(str(labels[i]) for i in (top, *rivals[:3]))
        who += f" or {len(rivals) - 3} others" if len(rivals) > 3 else ""
        text = f"{words.format(who)}: {values[top]:.3g} nats; difference to {labels[second]}"
        apart = draws[:, top] - draws[:, second]
        gap = Bootstrapped(float(values[top] - values[second]), apart, x.total.shape[-1])
        yield replace(_compared(name, text, gap, 1, 0.0), verdict=OPEN if rivals else YES)


def _blocks(results: xarray.Dataset) -> Iterator[Claim]:
    """The largest block of neighbours that can go."""
    x = quantity(results, "delete_kl")
    if x is None:
        return
    sizes = results["size"].values.tolist()
    bound = np.quantile(drawn(x), statistics.QUANTILES[1], axis=0)
    for row in reversed(range(len(sizes))):
        small = np.flatnonzero(bound[row] < NEGLIGIBLE)
        if len(small):
            at = int(small[np.argmin(bound[row][small])])
            words = (
                f"leaving out layers {at} to {at + sizes[row] - 1}, the largest such block of "
                f"{sizes}, changes the answer by less (chosen and measured on the same proteins)"
            )
            head = _of(x, lambda v, row=row, at=at: v[..., row, at])  # type: ignore[misc]
            yield _compared("delete_kl", words, head, -1, NEGLIGIBLE)
            return


def _contrasts(results: xarray.Dataset) -> Iterator[Claim]:
    """The second half against the first, and the last depth against the first."""
    middle = int(results.attrs["layers"]) // 2
    if (x := quantity(results, "relative_contribution")) is not None and middle > 1:
        there = np.flatnonzero(~np.isnan(x.mean[0]))
        early, late = there[there < middle], there[there >= middle]
        if len(early) and len(late):
            words = "contribution of a layer, relative to the stream, second half - first half"
            change = _of(x, lambda v: v[..., 0, late].mean(-1) - v[..., 0, early].mean(-1))
            yield _changed("halves", words, change)
    yield from _direction(results)
    if (x := quantity(results, "context_share")) is not None and len(x.mean) > 1:
        depths = results["at_depth"].values
        words = f"attribution on other tokens, depth {depths[-1]} - depth {depths[0]}"
        yield _changed("context_share", words, _of(x, lambda v: v[..., -1] - v[..., 0]))


def _direction(results: xarray.Dataset) -> Iterator[Claim]:
    x = quantity(results, "cosine")
    if x is None:
        return
    for sign, words in ((1, "along the stream: they amplify it"), (-1, "against the stream")):
        run = tail(-sign * drawn(x)[:, 0], 0.0)
        if run > 1:
            text = f"the last {run} of {x.mean.shape[-1]} layers add {words} (cosine nearest to 0)"

            def nearest(v: np.ndarray, sign: int = sign, run: int = run) -> np.ndarray:
                return np.asarray(sign * (sign * v[..., 0, -run:]).min(-1))

            yield _compared("cosine", text, _of(x, nearest), sign, 0.0)


def _trained_lens(results: xarray.Dataset) -> Iterator[Claim]:
    """On the proteins that the maps were not fitted to, which are fewer."""
    lens, base = (quantity(results, name) for name in ("tuned_lens_nll", "base_nll"))
    if lens is None or base is None:
        return
    judged = lens.count[0] > 0
    total, count = (
        np.concatenate([x, own[None]])[:, judged]
        for x, own in ((lens.total, base.total), (lens.count, base.count))
    )
    half = _of(Quantity(("depth",), total, count), lambda v: reached(GUESS - v, HALF))
    if not math.isnan(half.value) and _enough(half.drawn):
        words = f"half of the answer through a trained map, on {int(judged.sum())} other proteins"
        yield Claim("tuned_half_depth", words, half.value, *_ends(half))


_FINDERS = (_late_layers, _leaders, _blocks, _contrasts, _trained_lens)
_HEADLINES: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "loss": ("base_nll", lambda x: x),
    "accuracy": ("base_accuracy", lambda x: x),
    "depth_score": ("skip_effect", lambda x: centre(per_layer_effect(x))),
    "answer_depth_score": ("skip_l2", centre),
    "small_share": ("skip_kl", lambda x: np.mean(x < NEGLIGIBLE, axis=-1)),
    "half_depth": ("lens_nll", lambda x: reached(GUESS - x, HALF)),
    "exit_depth": ("lens_nll", lambda x: reached(GUESS - x, ENOUGH)),
    "late_contribution": (
        "relative_contribution",
        lambda x: np.mean(x[..., 0, x.shape[-1] // 2 :], axis=-1),
    ),
}
