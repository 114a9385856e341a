"""protlm_jax: pretrain protein language models in JAX, then look inside them."""

__version__ = "0.1.0"
