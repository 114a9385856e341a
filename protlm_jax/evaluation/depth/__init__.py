"""What each layer contributes: `run` measures, `measure` is the compiled program."""

from __future__ import annotations

from protlm_jax.evaluation.depth.run import run

__all__ = ["run"]
