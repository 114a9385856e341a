"""How much each layer contributes to the stream, to later layers and to the answer.

    from protlm_jax.evaluation.depth.analyse import analyse
    from protlm_jax.evaluation.depth.results import records, undefined

    found = analyse(loaded, {"P1": "MKTAYIAKQR..."}, metrics=["skips", "logit_lens"])
    encoder = found["encoder"]       # an xarray.Dataset
    encoder["skip_effect"]           # [skipped, affected]
    records(encoder, "lens_nll")     # by depth: value, and the interval over proteins
    undefined(encoder)               # what is not measured here, and why

`docs/depth.md` has every formula and source.
"""
