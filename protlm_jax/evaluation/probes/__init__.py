"""What can be read from frozen representations, and what the same heads read from controls.

    from protlm_jax.evaluation.probes import predicting, run, saved, table

    probed = run.probe(loaded, "secondary_structure", layers="all")
    print(table.summary(probed.result))
    saved.save(probed, loaded, Path("probes/mine"))

    for name, found in predicting.predict(loaded, saved.load(folder), {"P1": "MKTAYIAKQR"}):
        print(name, found["q3"].shape)  # probabilities [residues, classes]
"""
