"""Apache Beam and TensorFlow Datasets over the functions of `protlm_jax.data.prepare`.

    pipeline.py   `protlm prepare --runner beam`, for machines that share a file system
    datasets.py   the TFDS builders `uniref50`, ..., for Dataflow and files in a bucket
    runtime.py    imports Beam

What one machine can read: `protlm prepare`, which goes on after a kill.
"""
