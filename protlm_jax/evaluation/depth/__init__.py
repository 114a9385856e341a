"""What each layer contributes: `analyse` for a notebook, `run` for the report."""

from __future__ import annotations

from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.run import run

__all__ = ["analyse", "run"]
