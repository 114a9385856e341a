"""From the features of tasks to those of our models, built the way in which T5X builds them."""

from __future__ import annotations

from protlm_jax.data.packing import EncoderDecoderConverter, SingleStackConverter
from protlm_jax.errors import ProtlmError


class EncoderDecoderFeatures(EncoderDecoderConverter):
    """Features of an encoder-decoder; `pack` puts several proteins into a row."""

    def __init__(self, pack: bool = True, use_custom_packing_ops: bool = False) -> None:
        _refuse(use_custom_packing_ops)
        super().__init__(several=pack)


class SingleStackFeatures(SingleStackConverter):
    """Features of a model with one stack; `pack` puts several proteins into a row."""

    def __init__(self, pack: bool = True, use_custom_packing_ops: bool = False) -> None:
        _refuse(use_custom_packing_ops)
        super().__init__(several=pack)


def _refuse(use_custom_packing_ops: bool) -> None:
    if use_custom_packing_ops:
        raise ProtlmError(
            "DatasetConfig.use_custom_packing_ops asks for the packing of tensor2tensor; rows are "
            "packed by protlm_jax.data.packing: set it to False"
        )
