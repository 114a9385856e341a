"""UniRef, BFD and your own FASTA files on Apache Beam, and as TensorFlow Datasets.

    graph.py      the steps of a pipeline: cut, judge, group by bucket, count       (needs Beam)
    run.py        `protlm prepare --runner beam`: the same folder, made by a pipeline
    base.py       what the TFDS builders have in common; Beam where one is asked for
    datasets.py   `uniref50`, `uniref90`, `uniref100`, `bfd` and `fasta`

All of it stands on the functions of `protlm_jax.data.prepare`, so that every road gives the same
proteins on the same sides. Which to take:

- what one machine can read: `protlm prepare`, which goes on after a kill;
- many machines that share a file system: `protlm prepare --runner beam`, the same bytes;
- Dataflow, or whatever has its files in a bucket: the builders, which write through TFDS.
"""
