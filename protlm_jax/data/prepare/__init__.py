"""From release files to a prepared folder: `protlm prepare`, one machine or Beam.

    rules.py       which proteins are kept, and on which side of the split they stand
    similarity.py  which proteins resemble a held-out one
    plan.py        what was asked for, and the sizes that follow from it
    rows.py        a block of input -> rows by bucket; rows of a bucket -> those that are kept
    spill.py       the rows of a block on disk, ordered by bucket
    shards.py      a bucket of all spill files -> one shard per split
    records.py     shards of `tf.train.Example` in a TFDS folder
    manifest.py    what is in the folder, counted exactly
    pool.py        worker processes
    run.py         all of it, resumable
    estimate.py    what it will take, from a sample
    verb.py        the command line

Every step but the last is a pure function of its input, and every file is there whole or not at
all. So a run that was killed goes on where it was, and the shards are the same bytes whatever the
number of workers.
"""
