"""The train step compiled ahead of time for a TPU pod that nobody has to rent first."""
