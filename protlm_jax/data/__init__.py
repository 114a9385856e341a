"""From sequence files to batches of tokens: the only part of the package that needs TensorFlow.

    config.py             what a run reads                                     (no TensorFlow)
    fasta.py              any FASTA file, however compressed -> records        (no TensorFlow)
    splits.py             records -> training and held-out ones, frequencies   (no TensorFlow)
    corpus.py             records -> token ids, two NumPy arrays               (no TensorFlow)
    runtime.py            the one door to TensorFlow and SeqIO
    seqio_vocabulary.py   our vocabularies as SeqIO's
    tasks.py              corpus -> examples: SeqIO tasks `tokens`, `prott5`, `span3` and `ankh`
    denoising.py          the corruption of ProtT5, with stateless seeds
    spans.py              the corruptions of T5 and of Ankh
    packing.py            examples -> rows of fixed length, several proteins in a row
    pipeline.py           rows -> batches, from an iterator whose state can be saved

Nothing is imported here, so that `protlm_jax.data.fasta` costs no TensorFlow.
"""
