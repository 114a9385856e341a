"""The maps of the report: this model beside a re-initialised copy, in the same colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.report.grids import scatters
from protlm_jax.report.page import (
    Piece,
    caption,
    folded,
    heading,
    headline,
    picture,
    section,
    table,
    unfolds,
)
from protlm_jax.report.picture import Picture
from protlm_jax.report.sections import name
from protlm_jax.report.verdict import errors_apart, listed

Results = Mapping[str, Any]

_METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_RANDOM = "random weights"
_KINDS = {"model": name("model"), "random": _RANDOM}  # short enough for a third of the page
_RARE = 0.01  # chance below which a correlation is called one


def maps(result: Results) -> Piece:
    """The parts that there are: "proteins" and "residues"."""
    parts = [("proteins", _proteins), ("residues", _residues)]
    return Piece("").join(draw(result[key]) for key, draw in parts if result.get(key))


def _proteins(result: Results) -> Piece:
    shown, number = len(result["ids"]), result.get("of", len(result["ids"]))
    which = f"{shown:,} proteins" if shown == number else f"{shown:,} of {number:,} proteins"
    parts = [
        headline(_neighbours(result)),
        caption(
            f"{which} of {result.get('set', 'the input')}, each the mean over its residues at "
            f"layer {result['layer']} of {result['num_layers']}. Axes have no meaning of their "
            "own, and t-SNE and UMAP can draw clusters where there are none: read the percentages "
            "first, which are counted in the full space. PCA: percent of variance. Click a "
            f"class in the legend to see it alone. {result.get('left_out', '')}".strip()
        ),
    ]
    coloured = [
        (heading(f"Coloured by {name(title)}"), picture(_coloured(result, colour)))
        for title, colour in result["colours"].items()
    ]
    parts += coloured[0] if coloured else ()
    parts.append(unfolds("The same in other colours", *(p for pair in coloured[1:] for p in pair)))
    rows = [
        (name(title), *(_share(found[k]) for k in ("model", "random")),
         _share(found["difference"], "+"), f"{100 * found['chance']:.1f}",
         f"{found['model']['proteins']:,}")
        for title, found in result["neighbours"].items()
    ]  # fmt: skip
    header = ("neighbours alike, %", name("model"), name("random"), "difference", "by chance")
    parts += [heading("Neighbours of one class"), table((*header, "proteins"), rows, kind="views")]
    return section("Maps of proteins", *parts, folded("How they were made", result["protocol"]))


def _neighbours(result: Results) -> str:
    """What the nearest neighbours say, of all colours."""
    shares: list[str] = []
    sides: dict[str, list[str]] = {"more": [], "fewer": [], "as many": []}
    for title, found in result["neighbours"].items():
        what = name(title)
        fifth = "fifth of " if result["colours"][title]["ordered"] else ""
        shares.append(
            f"{_share(found['model'])} % share its {fifth}{what} ({_RANDOM} "
            f"{_share(found['random'])} %, chance {100 * found['chance']:.0f} %)"
        )
        apart = errors_apart(found["difference"]) or 0.0
        sides["more" if apart >= 2 else "fewer" if apart <= -2 else "as many"].append(what)
    near = next(iter(result["neighbours"].values()))["neighbours"]
    clauses = [f"{side} in {listed(found)}" for side, found in sides.items() if found]
    text = f"Of a protein's {near} nearest neighbours, {listed(shares)}"
    verdict = f"Beside {_RANDOM}, by two standard errors: {'; '.join(clauses)}"
    return f"{text}. {verdict}.".replace(" %", "\u00a0%")


def _coloured(result: Results, colour: Results) -> Picture:
    """All methods in one colouring."""
    counted = [f"{c} ({n:,})" for c, n in zip(colour["classes"], colour["counts"], strict=True)]
    rows = [
        {
            "map": f"{_METHODS[method]}, {_below(result, method, kind)}",
            "name": protein,
            "class": counted[value] if value >= 0 else "unknown",
            "x": x,
            "y": y,
        }
        for kind in ("model", "random")
        for method, by_kind in result["methods"].items()
        for protein, value, (x, y) in zip(
            result["ids"], colour["values"], by_kind[kind], strict=True
        )
    ]
    return scatters(rows, counted, ordered_classes=colour["ordered"])


def _below(result: Results, method: str, kind: str) -> str:
    """Whose map it is; of PCA also how much of the variance."""
    if method != "pca":
        return _KINDS[kind]
    return f"{_KINDS[kind]}, {100 * sum(result['explained'][kind]):.0f} %"


def _residues(result: Results) -> Piece:
    properties = result["properties"]
    first, *others = result["methods"]
    rows = [
        (title, *(_correlation(about["agreement"][k]) for k in ("model", "random")), about["unit"])
        for title, about in properties.items()
    ]  # fmt: skip
    header = ("property", name("model"), name("random"), "unit")
    sources = "; ".join(f"{title}: {about['source']}" for title, about in properties.items())
    return section(
        "Map of the residues",
        headline(_mantel(properties)),
        _by_property(result, first),
        caption(f"{_METHODS[first]} of the 20 residues as they enter the model (layer 0); "
                "letters near each other may overlap."),
        *(unfolds(f"The same by {_METHODS[m]}", _by_property(result, m)) for m in others),
        table(header, rows, kind="views"),
        caption("Correlation of distance with difference in the property, over 190 pairs; p: how "
                f"often residues under other names would correlate as much. From: {sources}."),
        folded("How it was made", result["protocol"]),
    )  # fmt: skip


def _mantel(properties: Results) -> str:
    """Which properties the distances between residues go with."""
    words = {}
    for kind in ("model", "random"):
        found = [
            f"{title} ({agreement['correlation']:+.2f}, p {agreement['p']:.2g})"
            for title, about in properties.items()
            if (agreement := about["agreement"][kind])["p"] is not None and agreement["p"] <= _RARE
        ]
        words[kind] = listed(found) or "none of the properties"
    return (
        f"In this model, distances between residues go with {words['model']}; with {_RANDOM}, "
        f"with {words['random']}."
    )


def _by_property(result: Results, method: str) -> Piece:
    """For each property, the model's map beside its copy's."""
    drawn = []
    for title, about in result["properties"].items():
        classes = about["classes"]
        rows = [
            {"map": f"{title}, {_KINDS[kind]}", "letter": letter, "class": classes[group],
             "x": x, "y": y}
            for kind in ("model", "random")
            for letter, group, (x, y) in zip(
                result["residues"], about["groups"], result["methods"][method][kind], strict=True
            )
        ]  # fmt: skip
        drawn.append(picture(scatters(rows, classes, ordered_classes=True, size=270)))
    return Piece("").join(drawn)


def _share(estimate: Results, sign: str = "") -> str:
    return statistics.written(estimate, 1, scale=100, sign=sign)


def _correlation(agreement: Mapping[str, float | None]) -> str:
    correlation, chance = agreement["correlation"], agreement["p"]
    if correlation is None or chance is None:
        return "-"
    return f"{correlation:+.2f} (p {chance:.2g})"
