"""From the features of tasks to those of our models, under the names of the gin files."""

from protlm_jax.data.seqio_features import EncoderDecoderConverter as EncoderDecoderFeatures
from protlm_jax.data.seqio_features import SingleStackConverter as SingleStackFeatures

__all__ = ["EncoderDecoderFeatures", "SingleStackFeatures"]
