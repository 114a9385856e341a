"""From sequence files to batches of tokens, in the order of reading:

    config.py         what a run reads: FASTA file or prepared folder, task, length
    sources.py        any file, local or remote, however compressed -> bytes
    fasta.py          FASTA -> records; tables.py: CSV and TSV -> cells
    blocks.py         files of any size -> blocks -> entries (entries.py), in many processes
    splits.py         proteins -> training and held-out ones
    prepare/          releases -> a prepared folder: `protlm prepare`; builders/: for TFDS
    prepared.py       the manifest of a prepared folder; token_files.py: its proteins, mapped
    orders.py         random orders and words as functions of numbers
    rows.py           lengths -> rows: windows, buckets, the packing plan
    token_rows.py     pieces of proteins -> rows of tokens, clean or corrupted
    batches.py        any batch, directly; streams.py: rows that continue each other
    pipeline.py       a config -> its batches

For SeqIO and T5X, which import TensorFlow (by runtime.py): records.py, seqio_features.py and
seqio_tasks.py.
"""
