"""From sequence files to batches of tokens: the only part of the package that needs TensorFlow.

What a run reads (no TensorFlow):

    config.py             FASTA file or prepared folder, task, length
    splits.py             proteins -> training and held-out ones, frequencies

From files to proteins (no TensorFlow):

    sources.py            any file, local or remote, however compressed -> bytes
    fasta.py              FASTA -> records, one at a time
    blocks.py, uniref.py  FASTA or UniRef XML of any size -> blocks -> entries, in many processes
    entries.py            what the headers of UniProt, UniRef and BFD say
    prepare/              releases -> a prepared folder: `protlm prepare`
    builders/             the same on Apache Beam, and as TensorFlow Datasets (with both of them)
    prepared.py           what is in a prepared folder

Batches from token files (no TensorFlow):

    token_files.py        shards of proteins, mapped into memory
    packing_plan.py       how many of which lengths -> which lengths stand together in a row
    pieces.py, orders.py  which protein stands where, in any epoch, without a table
    token_rows.py         pieces of proteins -> rows
    token_batches.py      any batch, directly
    corpus.py, streams.py rows that continue each other, for recurrent families

Batches through SeqIO and tf.data:

    runtime.py            the one door to TensorFlow and SeqIO
    seqio_vocabulary.py   our vocabularies as SeqIO's
    record_source.py      records of a prepared folder, records.py: batches from them
    tasks.py              proteins -> examples: SeqIO tasks `tokens`, `prott5`, `span3` and `ankh`
    seqio_tasks.py        these tasks registered for every dataset, with mixtures
    denoising.py          the corruption of ProtT5, with stateless seeds
    spans.py              the corruptions of T5 and of Ankh
    packing.py            examples -> rows of fixed length, several proteins in a row
    seqio_batches.py      rows -> batches, from an iterator whose state can be saved

Both: pipeline.py opens the batches of a config, resumable.py says what a place in them is.

Nothing is imported here, so that `protlm_jax.data.fasta` costs no TensorFlow.
"""
