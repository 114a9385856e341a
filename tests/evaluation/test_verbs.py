"""What the verbs take for granted of a run, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from zoo import ZOO

from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import verbs


def test_the_trained_length_is_a_row_and_its_memory_within_the_position_table(small_model) -> None:
    assert verbs.trained_length(small_model("t5"), DataConfig(length=48)) == 48
    assert verbs.trained_length(small_model("bert", max_positions=40), DataConfig(length=48)) == 40
    remembering = small_model("transformer_xl")
    memory = ZOO["transformer_xl"].config.memory_length
    assert memory > 0
    assert verbs.trained_length(remembering, DataConfig(length=48)) == 48 + memory


@pytest.mark.parametrize("task", ["span3", "ankh"])
@pytest.mark.parametrize("verb", [verbs.evaluate, lambda *a: verbs.depth(*a, 2, Path("depth.nc"))])
def test_a_model_of_spans_is_not_asked_in_a_form_it_never_saw(small_model, task, verb) -> None:
    with pytest.raises(ProtlmError, match=f"trained on data.task='{task}'.*metrics.jsonl"):
        verb(small_model("t5"), DataConfig(task=task))


def test_the_data_of_a_run_are_found_from_its_folder_and_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"data": {"length": 77, "task": "span3"}}))
    for path in (tmp_path, tmp_path / "checkpoints" / "5"):
        assert verbs.data_of(path) == DataConfig(length=77, task="span3")
    assert verbs.data_of(tmp_path / "checkpoints") == DataConfig()
