"""What can be read from frozen representations, and what the same heads read from controls.

    from protlm_jax.evaluation.probes import predicting, run, saved

    probed = run.probe(loaded, "secondary_structure", layers="all")
    saved.save(probed, loaded, folder)
    for name, found in predicting.predict(loaded, saved.load(folder), {"P1": "MKTAYIAKQR"}):
        print(name, found["q3"].shape)  # probabilities [residues, classes]

`probe_data` gives proteins, `readers` and `features` batches of features, `heads` and `training`
learn from these, `trained` heads answer, and `scores` and `results` say how right they are.
"""
