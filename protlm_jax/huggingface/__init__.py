"""Checkpoints to Hugging Face folders and back.

Nothing here needs PyTorch or `transformers`, but for reading a `pytorch_model.bin`.
"""

from __future__ import annotations

from protlm_jax.huggingface.load import (
    import_model,
    load_model,
    load_source,
    provenance,
    read_architecture,
)
from protlm_jax.huggingface.save import export

__all__ = ["export", "import_model", "load_model", "load_source", "provenance", "read_architecture"]
