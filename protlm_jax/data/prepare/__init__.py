"""From release files to a prepared folder: `protlm prepare`.

Pure functions, in the order of reading:

    rules.py     which proteins are kept, and on which side of the split each is
    plan.py      what to prepare, and the sizes of blocks and buckets that follow from the input
    rows.py      a block of input -> rows by bucket; the rows of a bucket -> those that are kept
    manifest.py  what is in the folder, counted exactly

Two drivers, which write the same bytes:

    shards.py    the files of a block and of a bucket
    direct.py    one machine, resumable
    beam.py      an Apache Beam pipeline

verb.py is the command line, with the estimate of `--dry_run`.
"""
