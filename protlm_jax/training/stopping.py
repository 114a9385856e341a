"""Early stopping: a run ends when evaluations no longer find a lower held-out loss.

Checkpoints are then written at improvements alone, so that the newest one is the best; what follows
it is trained again if the run is killed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protlm_jax.config.folders import latest_step
from protlm_jax.config.run import TrainConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.training.metrics import read_metrics

WATCHED = ("heldout/nll", "heldout/loss")  # of residues, and of labels


class Patience:
    """Evaluations of a run, of which `limit` without a lower loss end it; 0 for no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.best, self.best_step, self.last_step, self.since = math.inf, 0, 0, 0

    @classmethod
    def of_run(cls, train: TrainConfig, workdir: Path, until: float = math.inf) -> Patience:
        """As the metrics of a run left it at the step `until`."""
        patience, file = cls(train.patience), workdir / "metrics.jsonl"
        for line in read_metrics(file) if patience.limit and file.exists() else []:
            if _watched(line) and line["step"] <= until:
                patience.add(line["step"], line)
        return patience

    def add(self, step: int, scores: Mapping[str, Any]) -> bool:
        """Takes an evaluation; whether it is the best one. That of step 0 does not count."""
        if not self.limit or step == 0:
            return False
        if not (name := _watched(scores)):
            raise ProtlmError(f"train.patience needs an objective that reports {WATCHED[0]}")
        loss = math.inf if scores[name] is None else float(scores[name])
        improved = loss < self.best or not self.best_step
        self.last_step, self.since = step, 0 if improved else self.since + 1
        if improved:
            self.best, self.best_step = loss, step
        return improved

    @property
    def exhausted(self) -> bool:
        return 0 < self.limit <= self.since


def _watched(scores: Mapping[str, Any]) -> str:
    """The name of the loss among scores; "" without one."""
    return next((name for name in WATCHED if name in scores), "")


def is_complete(train: TrainConfig, workdir: Path) -> bool:
    """Whether a run has all its steps, or has stopped early."""
    latest = latest_step(workdir / "checkpoints") or 0
    patience = Patience.of_run(train, workdir)
    ended = patience.exhausted or (patience.limit and patience.last_step >= train.steps)
    return latest >= train.steps or bool(latest and ended)
