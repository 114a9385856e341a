"""How much each layer contributes to the stream, to later layers and to the answer.

    from protlm_jax.evaluation.depth.analyse import analyse

    found = analyse(loaded, {"P1": "MKTAYIAKQR..."}, metrics=["skips", "logit_lens"])
    encoder = found.stacks["encoder"]
    encoder["skip_effect"].values                # [skipped, affected]
    low, high = encoder["lens_nll"].interval()   # [depth] each, over proteins
    encoder.undefined                            # what is not measured here, and why

`docs/depth.md` has every formula and source.
"""
