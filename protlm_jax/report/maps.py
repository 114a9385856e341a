"""The sections on maps: this model beside a re-initialised copy, in the same colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.evaluation import statistics
from protlm_jax.report import page
from protlm_jax.report.charts import scatters
from protlm_jax.report.page import Piece, name
from protlm_jax.report.picture import Picture

Results = Mapping[str, Any]

_METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_KINDS = {"model": name("model"), "random": "random weights"}  # short: three maps stand in a row


def maps(result: Results) -> Piece:
    """The parts that there are: "proteins" and "residues"."""
    parts = [("proteins", _proteins), ("residues", _residues)]
    return Piece("").join(draw(result[key]) for key, draw in parts if result.get(key))


def _proteins(result: Results) -> Piece:
    shown, number = len(result["ids"]), result.get("of", len(result["ids"]))
    which = f"{shown:,} proteins" if shown == number else f"{shown:,} of {number:,} proteins"
    gaps = [
        page.difference(
            f"{found['neighbours']} nearest neighbours of the same "
            f"{'fifth of ' if result['colours'][title]['ordered'] else ''}{name(title)}, this "
            "model minus random weights, points", found["difference"], 100,
        )
        for title, found in result["neighbours"].items()
    ]  # fmt: skip
    coloured = [
        (page.heading(f"Coloured by {name(title)}"), page.picture(_coloured(result, colour)))
        for title, colour in result["colours"].items()
    ]
    rows = [
        (name(title), *(_share(found[key]) for key in _KINDS), _share(found["difference"], "+"),
         f"{100 * found['chance']:.1f}", f"{found['model']['proteins']:,}")
        for title, found in result["neighbours"].items()
    ]  # fmt: skip
    header = ("neighbours alike, %", name("model"), name("random"), "difference", "by chance")
    return page.section(
        "Maps of proteins",
        page.claims(gaps),
        page.caption(
            f"{which} of {result.get('set', 'the input')}, each the mean over its residues at "
            f"layer {result['layer']} of {result['num_layers']}. Axes have no meaning of their "
            "own, and t-SNE and UMAP can draw clusters where there are none: read the percentages "
            "first, which are counted in the full space. PCA: percent of variance. Click a "
            f"class in the legend to see it alone. {result.get('left_out', '')}".strip()
        ),
        *(coloured[0] if coloured else ()),
        page.unfolds(
            "The same in other colours", *(part for pair in coloured[1:] for part in pair)
        ),
        page.heading("Neighbours of one class"),
        page.table((*header, "proteins"), rows, kind="views"),
        page.folded("How they were made", result["protocol"]),
    )


def _coloured(result: Results, colour: Results) -> Picture:
    """All methods in one colouring."""
    counted = [f"{c} ({n:,})" for c, n in zip(colour["classes"], colour["counts"], strict=True)]
    rows = []
    for kind, words in _KINDS.items():
        for method, by_kind in result["methods"].items():
            title = f"{_METHODS[method]}, {words}"
            if method == "pca":
                title += f", {100 * sum(result['explained'][kind]):.0f} %"
            points = zip(result["ids"], colour["values"], by_kind[kind], strict=True)
            rows += [
                {"map": title, "name": protein, "x": x, "y": y,
                 "class": counted[value] if value >= 0 else "unknown"}
                for protein, value, (x, y) in points
            ]  # fmt: skip
    return scatters(rows, counted, ordered=colour["ordered"])


def _residues(result: Results) -> Piece:
    properties = result["properties"]
    first, *others = result["methods"]
    rows = [
        (title, *(_correlation(about["agreement"][key]) for key in _KINDS), about["unit"])
        for title, about in properties.items()
    ]
    header = ("property", name("model"), name("random"), "unit")
    sources = "; ".join(f"{title}: {about['source']}" for title, about in properties.items())
    return page.section(
        "Map of the residues",
        page.table(header, rows, kind="views"),
        page.caption("Correlation of distance with difference in the property, over 190 pairs; p: "
                     "how often residues under other names would correlate as much. From: "
                     f"{sources}."),
        _by_property(result, first),
        page.caption(f"{_METHODS[first]} of the 20 residues as they enter the model (layer 0); "
                "letters near each other may overlap."),
        *(page.unfolds(f"The same by {_METHODS[m]}", _by_property(result, m)) for m in others),
        page.folded("How it was made", result["protocol"]),
    )  # fmt: skip


def _by_property(result: Results, method: str) -> Piece:
    """For each property, the model's map beside its copy's."""
    drawn = []
    for title, about in result["properties"].items():
        classes, places = about["classes"], result["methods"][method]
        rows = [
            {"map": f"{title}, {words}", "letter": letter, "class": classes[group], "x": x, "y": y}
            for kind, words in _KINDS.items()
            for letter, group, (x, y) in zip(
                result["residues"], about["groups"], places[kind], strict=True
            )
        ]
        drawn.append(page.picture(scatters(rows, classes, ordered=True, size=270)))
    return Piece("").join(drawn)


def _share(estimate: Results, sign: str = "") -> str:
    return statistics.written(estimate, 1, scale=100, sign=sign)


def _correlation(agreement: Mapping[str, float | None]) -> str:
    correlation, chance = agreement["correlation"], agreement["p"]
    if correlation is None or chance is None:
        return "-"
    return f"{correlation:+.2f} (p {chance:.2g})"
