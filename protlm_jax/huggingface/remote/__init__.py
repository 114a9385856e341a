"""PyTorch code that exports carry along; the package itself imports none of it."""
