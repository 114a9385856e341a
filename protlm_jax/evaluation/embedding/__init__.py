"""Embeddings of proteins: from Python (`sequences`), and into files (`protlm embed`)."""
