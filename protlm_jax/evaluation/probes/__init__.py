"""What can be predicted from frozen representations, and what the same heads predict from controls.

    from protlm_jax.evaluation.probes import predicting, run, saved

    probed = run.probe(loaded, "secondary_structure", layers="all")
    saved.save(probed, loaded, folder)
    for name, found in predicting.predict(loaded, saved.load(folder), {"P1": "MKTAYIAKQR"}):
        print(name, found["q3"].shape)  # probabilities [residues, classes]

Reading order: `run` draws the proteins; `fit` reads `features`, trains `heads` (`moments`,
`training`, `ridge`) and predicts the tests (`trained`); `scores` and `dataset` score them;
`results` reads the dataset; `saved` and `predicting` apply the heads to new proteins.
"""
