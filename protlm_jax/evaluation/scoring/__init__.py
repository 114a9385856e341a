"""How likely a model finds proteins and variants: from Python (`score`), and `protlm score`."""
