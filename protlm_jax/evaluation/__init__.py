"""Reading a trained model: held-out score, probes, depth. Knows nothing of training."""
