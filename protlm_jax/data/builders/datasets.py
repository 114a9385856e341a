"""The TFDS builders `uniref50`, `uniref90`, `uniref100`, `bfd` and `fasta`.

Importing this module registers them with TensorFlow Datasets:

    tfds build uniref50 --imports protlm_jax.data.builders.datasets \\
        --config '{"name": "2024_01", "release": "2024_01", "files": ["uniref50.fasta.gz"]}'

What was built needs no code of ours: tfds.builder_from_directory(folder) reads it.
"""

from __future__ import annotations

from protlm_jax.data.builders.base import ProteinBuilder


class Uniref50(ProteinBuilder):
    """UniRef50: one protein for each cluster of UniProt at 50 % identity (FASTA or XML)."""


class Uniref90(ProteinBuilder):
    """UniRef90: one protein for each cluster of UniProt at 90 % identity (FASTA or XML)."""


class Uniref100(ProteinBuilder):
    """UniRef100: every sequence of UniProt once (FASTA or XML)."""


class Bfd(ProteinBuilder):
    """BFD: metagenomic and UniProt proteins in clusters (Steinegger et al. 2019), as FASTA."""


class Fasta(ProteinBuilder):
    """The proteins of any FASTA files."""
