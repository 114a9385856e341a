"""Maps: proteins and the 20 residues in two dimensions, beside a re-initialised copy's.

A map proves nothing, t-SNE and UMAP least of all: they make clusters of noise. So each comes with a
number taken in the full space, before any projection:

proteins    of a protein's ten nearest neighbours, how many share its class (error over proteins)
residues    whether distances go with differences in charge, size and hydrophobicity (Mantel 1967)

    result = draw(loaded, benchmark, progress=True)
    write_tables(Path("maps"), result)  # every number behind the pictures, as CSV
"""

from protlm_jax.evaluation.maps.colouring import Colouring, colourings
from protlm_jax.evaluation.maps.drawing import draw, write_tables
from protlm_jax.evaluation.maps.projection import METHODS, mantel, project, require_packages

__all__ = [
    "METHODS", "Colouring", "colourings", "draw", "mantel", "project", "require_packages",
    "write_tables",
]  # fmt: skip
