"""From sequence files to batches of tokens; the only part of the package that needs TensorFlow.

What a run reads:

    config.py             FASTA file or prepared folder, task, length
    splits.py             proteins -> training and held-out ones, frequencies

From files to proteins:

    sources.py            any file, local or remote, however compressed -> bytes
    fasta.py, tables.py   FASTA -> records, one at a time; CSV and TSV
    blocks.py, uniref.py  FASTA or UniRef XML of any size -> blocks -> entries, in many processes
    entries.py            what the headers of UniProt, UniRef and BFD say
    prepare/              releases -> a prepared folder: `protlm prepare`
    builders/             the same on Apache Beam, and as TensorFlow Datasets
    prepared.py           what is in a prepared folder

Batches, without TensorFlow:

    token_files.py        proteins in memory, or in shards that are mapped into it
    pieces.py, orders.py  which protein stands where, in any epoch, without a table
    packing_plan.py       how many of which lengths -> which lengths stand together in a row
    corruption.py         what ProtT5, T5 and Ankh hide
    token_rows.py         pieces of proteins -> rows
    token_batches.py      any batch, directly
    streams.py            rows that continue each other, for recurrent families
    resumable.py          a place in the batches, saved and restored
    pipeline.py           opens the batches of a config

For SeqIO and T5X (all of these import TensorFlow, by runtime.py):

    record_source.py      records of a prepared folder
    seqio_tasks.py        tasks for every dataset, with mixtures: the same corruption
    seqio_features.py     feature converters: the same packer
    seqio_vocabulary.py   our vocabularies as SeqIO's
"""
