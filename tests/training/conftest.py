"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import write_fasta

from protlm_jax.config.run import RunConfig
from protlm_jax.training import loop
from protlm_jax.training.assembly import Assembly


@pytest.fixture(scope="module", autouse=True)
def programs_are_shared() -> Iterator[None]:
    """Within a module, runs of one program compile it once, as one process would that went on.

    The slow tests kill real processes, which share nothing.
    """
    made: dict[str, Assembly] = {}
    assemble = loop.assemble

    def shared(config: RunConfig) -> Assembly:
        train = config.train
        steps = None if config.schedule.name == "constant" else train.steps
        sections = (config.model, config.objective, config.optimizer, config.schedule, config.mesh)
        key = repr((sections, config.tune, train.batch_size, train.accumulate, train.seed, steps))
        if key not in made:
            made[key] = assemble(config)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "assemble", shared)
        yield


@pytest.fixture(scope="session")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("data") / "proteins.fasta")
