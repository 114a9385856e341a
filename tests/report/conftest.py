"""Results of a probe and of maps with numbers that were made up, in the form of real ones."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import xarray

from protlm_jax.evaluation.probes.results import ESTIMATE, METRICS

LAYERS = [0, 1, 2, 3, 4, 5, 6]
CLASSES = {"q3": ["helix", "strand", "other"], "q8": list("GHIEBSTC")}
SCORE = {"model": 0.70, "random": 0.60, "one_hot": 0.57, "blosum62": 0.62, "majority": 0.42}


def estimate(value: float, error: float = 0.004) -> dict[str, Any]:
    low, high = value - 2 * error, value + 2 * error
    return {"value": value, "standard_error": error, "low": low, "high": high, "proteins": 115}


VIEWS = {"ts115": 0.0, "casp12": 0.02}


def score(kind: str, head: str, layer: int, target: str) -> float:
    best = 4 if kind in ("model", "random") else 0
    return SCORE[kind] + 0.03 * (head == "cnn") - 0.012 * abs(layer - best) - 0.1 * (target == "q8")


def numbers(value: float, error: float) -> list[float]:
    return [value, error, value - 2 * error, value + 2 * error]


@pytest.fixture
def probed() -> xarray.Dataset:
    """Linear and CNN heads on two test sets, seven layers, Q3 and Q8."""
    coords = {
        "head": ["linear", "cnn"], "input": list(SCORE), "layer": LAYERS, "view": list(VIEWS),
        "target": list(CLASSES), "seed": [0, 1, 2], "metric": list(METRICS),
        "estimate": list(ESTIMATE), "split": ["train"],
    }  # fmt: skip
    size = {**{name: len(values) for name, values in coords.items()}, "true": 8, "predicted": 8}
    place = ("head", "input", "view", "target")
    dims = {
        "score": (*place, "metric", "estimate"), "difference": (*place, "estimate"),
        "by_layer": ("head", "input", "layer", "view", "target", "estimate"),
        "by_seed": (*place, "seed"), "confusion": (*place, "true", "predicted"),
        "valid": ("head", "input", "layer", "target", "seed"), "passes": ("input", "split"),
        "best_epoch": ("head", "input", "layer", "seed"), "seconds": ("head", "input"),
    }  # fmt: skip
    data = xarray.Dataset(
        {name: (of, np.full([size[d] for d in of], np.nan)) for name, of in dims.items()},
        {**coords},
        about(),
    )
    data["chosen"] = ("head", "input"), np.array([[4, 4, 0, 0, 0]] * 2)
    data["n"] = ("view", "target"), np.full((2, 2), 27000)
    data["proteins"] = ("view", "target"), np.full((2, 2), 115)
    data["best_epoch"][:] = 5
    data["seconds"][:] = 12.3
    data["passes"].loc["model"] = 1.0
    for (h, head), (i, kind) in itertools.product(
        enumerate(coords["head"]), enumerate(coords["input"])
    ):
        layers = LAYERS if i < 2 else [0]
        for (v, (view, drop)), (t, target) in itertools.product(
            enumerate(VIEWS.items()), enumerate(CLASSES)
        ):
            value = score(kind, head, int(data["chosen"][h, i]), target) - drop
            for m, less in enumerate((0, 0.01, 0.03, 0.2)):
                data["score"].values[h, i, v, t, m] = numbers(value - less, 0.004)
            if i:
                error = {"ts115": 0.005, "casp12": 0.06}[view]
                lead = SCORE["model"] - SCORE[kind]
                data["difference"].values[h, i, v, t] = numbers(lead, error)
            data["by_seed"].values[h, i, v, t] = value - 0.002, value, value + 0.002
            classes = len(CLASSES[target])
            matrix = np.full((classes, classes), 40.0) + 400 * np.eye(classes)
            data["confusion"].values[h, i, v, t, :classes, :classes] = matrix
            for layer in layers:
                found = score(kind, head, layer, target)
                data["by_layer"].values[h, i, layer, v, t] = numbers(found - drop, 0.004)
                data["valid"].values[h, i, layer, t] = found
    return data


def about() -> dict[str, Any]:
    counts = {"proteins": 2500, "residues": 600000, "labelled": {"q3": 590000, "q8": 400000}}
    paper = {"model": "ProtBert", "target": "q3", "source": "A paper, 2021"}
    benchmark = {
        "name": "secondary_structure", "title": "Secondary structure", "level": "residue",
        "targets": {t: {"kind": "classes", "classes": c} for t, c in CLASSES.items()},
        "licence": "CC BY 4.0", "source": "Somebody 2019", "notes": ["One rule for all sets."],
        "splits": {"train": counts, "valid": counts},
        "views": {
            "ts115": {"title": "TS115", "note": ""},
            "casp12": {"title": "CASP12", "note": "20 proteins."},
        },
        "paper": [
            {**paper, "view": "ts115", "percent": 83.0},
            {**paper, "view": "casp12", "percent": None, "source": "Another protocol: no number."},
        ],
    }  # fmt: skip
    return {"benchmark": json.dumps(benchmark), "num_layers": 6, "protocol": "Frozen features.",
            "seconds": 80.0, "compilations": 4, "title": "Secondary structure"}  # fmt: skip


@pytest.fixture
def mapped() -> dict[str, Any]:
    """Twelve proteins in three places, and the residues."""
    points = np.random.default_rng(0).normal(size=(20, 2)).round(3).tolist()
    both, residues = (
        {"model": points[:12], "random": points[8:]}, {"model": points, "random": points[::-1]},
    )  # fmt: skip
    explained = {"model": [0.3, 0.1], "random": [0.5, 0.2]}
    colour = {"classes": ["Nucleus", "Cytoplasm", "Peroxisome"], "counts": [5, 4, 2],
              "values": [0] * 5 + [1] * 4 + [2, 2, -1], "ordered": False}  # fmt: skip
    shares = {"model": estimate(0.5, 0.01), "random": estimate(0.3, 0.01),
              "difference": estimate(0.2, 0.01), "chance": 0.25, "neighbours": 10}  # fmt: skip
    agreement = {
        "model": {"correlation": 0.5, "p": 0.001},
        "random": {"correlation": 0.1, "p": 0.2},
    }
    charge = {"unit": "charges", "source": "a table", "agreement": agreement,
              "classes": ["negative", "neutral", "positive"],
              "groups": [1] * 16 + [0, 0, 2, 2]}  # fmt: skip
    proteins = {
        "layer": 6, "num_layers": 6, "ids": [f"p{i}" for i in range(12)], "of": 2768,
        "set": "DeepLoc", "colours": {"location": colour}, "explained": explained,
        "methods": dict.fromkeys(("pca", "tsne", "umap"), both),
        "neighbours": {"location": shares}, "left_out": "", "protocol": "Means over residues.",
    }  # fmt: skip
    map_of_residues = {
        "residues": "ACDEFGHIKLMNPQRSTVWY", "methods": dict.fromkeys(("pca", "tsne"), residues),
        "explained": explained, "properties": {"charge": charge}, "protocol": "Layer 0.",
    }  # fmt: skip
    return {"proteins": proteins, "residues": map_of_residues}
