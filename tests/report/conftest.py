"""Results of a probe and of maps with numbers that were made up, in the form of real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LAYERS = [0, 1, 2, 3, 4, 5, 6]
CLASSES = {"q3": ["helix", "strand", "other"], "q8": list("GHIEBSTC")}
SCORE = {"model": 0.70, "random": 0.60, "one_hot": 0.57, "blosum62": 0.62, "majority": 0.42}


def estimate(value: float, error: float = 0.004) -> dict[str, Any]:
    low, high = value - 2 * error, value + 2 * error
    return {"value": value, "standard_error": error, "low": low, "high": high, "proteins": 115}


def scored(value: float, classes: int) -> dict[str, Any]:
    matrix = np.full((classes, classes), 40.0) + 400 * np.eye(classes)
    return {
        "n": 27000,
        "proteins": 115,
        "pooled": estimate(value),
        "per_protein": estimate(value - 0.01),
        "by_seed": [value - 0.002, value, value + 0.002],
        "balanced_accuracy": estimate(value - 0.03),
        "mcc": estimate(value - 0.2),
        "confusion": matrix.tolist(),
    }


def one_input(kind: str, head: str) -> dict[str, Any]:
    layers: list[int | None] = list(LAYERS) if kind in ("model", "random") else [None]
    best = 4 if len(layers) > 1 else 0
    lift = 0.03 if head == "cnn" else 0.0

    def score(layer: int, target: str) -> float:
        return SCORE[kind] + lift - 0.012 * abs(layer - best) - 0.1 * (target == "q8")

    return {
        "layers": layers,
        "valid": {t: [[score(i, t)] * 3 for i in range(len(layers))] for t in CLASSES},
        "best_layer": {"index": best, "layer": layers[best]},
        "training": {"epochs": [[9]], "best_epoch": [[5, 6]] * len(layers), "seconds": 12.3},
        "tests": {
            view: {t: scored(score(best, t) - drop, len(CLASSES[t])) for t in CLASSES}
            for view, drop in (("ts115", 0.0), ("casp12", 0.02))
        },
        "by_layer": {
            view: {t: [estimate(score(i, t) - drop) for i in range(len(layers))] for t in CLASSES}
            for view, drop in (("ts115", 0.0), ("casp12", 0.02))
        },
    }


def one_head(head: str) -> dict[str, Any]:
    inputs = {kind: one_input(kind, head) for kind in SCORE}
    minus = {
        kind: {
            view: {t: estimate(SCORE["model"] - SCORE[kind], error) for t in CLASSES}
            for view, error in (("ts115", 0.005), ("casp12", 0.06))
        }
        for kind in SCORE
        if kind != "model"
    }
    return {"inputs": inputs, "model_minus": minus}


@pytest.fixture
def probed() -> dict[str, Any]:
    """Linear and CNN heads on two test sets, seven layers, Q3 and Q8."""
    counts = {"proteins": 2500, "residues": 600000, "labelled": {"q3": 590000, "q8": 400000}}
    paper = {"model": "ProtBert", "target": "q3", "source": "A paper, 2021"}
    return {
        "model": "small",
        "benchmark": {
            "name": "secondary_structure",
            "title": "Secondary structure",
            "level": "residue",
            "targets": {t: {"kind": "classes", "classes": c} for t, c in CLASSES.items()},
            "licence": "CC BY 4.0",
            "source": "Somebody 2019",
            "notes": ["One rule for all sets."],
            "splits": {"train": counts, "valid": counts},
            "views": {
                "ts115": {"title": "TS115", "note": ""},
                "casp12": {"title": "CASP12", "note": "20 proteins."},
            },
        },
        "layers": LAYERS,
        "num_layers": 6,
        "heads": {head: one_head(head) for head in ("linear", "cnn")},
        "paper": [
            {**paper, "view": "ts115", "percent": 83.0},
            {**paper, "view": "casp12", "percent": None, "source": "Another protocol: no number."},
        ],
        "protocol": "Frozen features.",
        "cost": {"seconds": 80.0, "forward_passes": {"model": {"train": 1.0}}, "compilations": 4},
    }


@pytest.fixture
def mapped() -> dict[str, Any]:
    """Twelve proteins in three places, and the residues."""
    points = np.random.default_rng(0).normal(size=(20, 2)).round(3).tolist()
    both = {"model": points[:12], "random": points[8:]}
    residues = {"model": points, "random": points[::-1]}
    share = {**estimate(0.5, 0.01), "proteins": 11}
    explained = {"model": [0.3, 0.1], "random": [0.5, 0.2]}
    colour = {
        "classes": ["Nucleus", "Cytoplasm", "Peroxisome"],
        "counts": [5, 4, 2],
        "values": [0] * 5 + [1] * 4 + [2, 2, -1],
        "ordered": False,
    }
    charge = {
        "values": [0.0] * 20,
        "unit": "charges",
        "source": "a table",
        "classes": ["negative", "neutral", "positive"],
        "groups": [1] * 16 + [0, 0, 2, 2],
        "agreement": {
            "model": {"correlation": 0.5, "p": 0.001},
            "random": {"correlation": 0.1, "p": 0.2},
        },
    }
    return {
        "proteins": {
            "layer": 6,
            "num_layers": 6,
            "ids": [f"p{i}" for i in range(12)],
            "of": 2768,
            "set": "DeepLoc",
            "colours": {"location": colour},
            "methods": {"pca": both, "tsne": both, "umap": both},
            "explained": explained,
            "neighbours": {
                "location": {
                    "model": share,
                    "random": estimate(0.3, 0.01),
                    "difference": estimate(0.2, 0.01),
                    "chance": 0.25,
                    "neighbours": 10,
                }
            },
            "left_out": "",
            "protocol": "Means over residues.",
        },
        "residues": {
            "residues": "ACDEFGHIKLMNPQRSTVWY",
            "methods": {"pca": residues, "tsne": residues},
            "explained": explained,
            "properties": {"charge": charge},
            "protocol": "Layer 0.",
        },
    }
