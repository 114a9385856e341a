"""UniRef, BFD and your own FASTA files on Apache Beam, and as TensorFlow Datasets.

    datasets.py   the TFDS builders `uniref50`, `uniref90`, `uniref100`, `bfd` and `fasta`
    base.py       what they have in common; they need Beam only where it is asked for
    examples.py   their pipeline
    run.py        `protlm prepare --runner beam`: the same folder, made by a pipeline
    graph.py      the steps of both pipelines: cut, judge, group by bucket, count
    notes.py      what workers write down for the manifest
    runtime.py    the one door to Beam

All of it stands on the functions of `protlm_jax.data.prepare`, so that every road gives the same
proteins on the same sides. Which to take:

- what one machine can read: `protlm prepare`, which goes on after a kill;
- many machines that share a file system: `protlm prepare --runner beam`, the same bytes;
- Dataflow, or whatever has its files in a bucket: the builders, which write through TFDS.
"""
