"""T5X drives our models: what the recipes in gin/ name. See docs/t5x.md.

The models, objectives, tasks and vocabularies are those of a native run; here they get the shapes
that T5X expects (https://github.com/google-research/t5x, Roberts et al. 2022). T5X is no dependency
of this package and on no package index: requirements/t5x.txt says how it is installed. Nothing
outside this folder imports it; inside, what gin names does, and reading checkpoints does not.

Checkpoints: what T5X calls "target" is the tree of our own parameters, name by name and shape by
shape as in a native run and as `protlm_jax.models.init_params` makes it, layers stacked along their
first axis ("encoder/attention/query/kernel" [layers, embed, heads, kv]). "state/step" is the number
of updates, "state/param_states" the optimizer's: T5X's Adafactor keeps {m, v, v_row, v_col} under
each parameter's name, `optimizers.Optimizer` the optax state of `training.optimizers`.
"""
