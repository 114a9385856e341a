"""TensorFlow Datasets builders over the functions of `protlm_jax.data.prepare`."""
