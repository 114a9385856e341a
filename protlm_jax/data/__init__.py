"""From sequence files to batches of tokens: the only part of the package that needs TensorFlow.

    fasta.py       any FASTA file, however compressed -> records              (no TensorFlow)
    splits.py      records -> training and held-out proteins, frequencies     (no TensorFlow)
    tasks.py       records -> SeqIO tasks `tokens` and `prott5`
    denoising.py   the corruption of ProtT5, with stateless seeds
    packing.py     examples -> rows of fixed length, several proteins in a row
    pipeline.py    tasks -> batches, with an iterator whose state can be saved

Nothing is imported here, so that `protlm_jax.data.fasta` costs no TensorFlow.
"""
