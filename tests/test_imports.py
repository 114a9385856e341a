"""What may be imported where: nothing but the data pipeline needs TensorFlow."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = (
    "models",
    "objectives",
    "partitioning",
    "training.step",
    "training.loop",
    "huggingface",
    "evaluation.verbs",
    "verbs.quickstart",
    "data.pipeline",
    "t5x_bridge.reading",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_but_the_data_pipeline_imports_without_tensorflow() -> None:
    heavy = ("tensorflow", "seqio", "tensorflow_datasets", "apache_beam")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({heavy})); "
    run(blocked + "; ".join(f"import protlm_jax.{room}" for room in ROOMS))


@pytest.mark.parametrize("module", ["protlm_jax.data.seqio_batches"])
def test_the_pipeline_says_what_is_missing(module: str) -> None:
    blocked = "import sys; sys.modules['tensorflow'] = sys.modules['seqio'] = None; "
    text = run(
        blocked
        + f"from protlm_jax.errors import ProtlmError\ntry: import {module}\n"
        + "except ProtlmError as error: print(error)"
    )
    assert "protlm-jax[data]" in text


def test_evaluation_and_models_know_nothing_of_training() -> None:
    listed = run(
        "import sys, protlm_jax.evaluation.probes.run, protlm_jax.evaluation.depth, "
        "protlm_jax.evaluation.heldout, protlm_jax.report, protlm_jax.models\n"
        "print([m for m in sys.modules if m.startswith('protlm_jax.training')])"
    )
    assert listed.strip() == "[]"


def test_nothing_but_the_bridge_imports_t5x() -> None:
    """Neither T5X nor what only it needs is imported outside of the bridge, or with it."""
    package = Path(__file__).parents[1] / "protlm_jax"
    foreign = re.compile(r"^\s*(?:import|from) (t5x|airio|jestimator|fiddle|gin|clu)\b", re.M)
    bridge = package / "t5x_bridge"
    for file in package.rglob("*.py"):
        if bridge not in file.parents:
            assert not foreign.search(file.read_text()), f"{file} imports T5X"
    listed = run(
        "import sys, protlm_jax.cli, protlm_jax.t5x_bridge\n"
        + "".join(f"import protlm_jax.{room}\n" for room in ROOMS)
        + "print([m for m in sys.modules if m.split('.')[0] in ('t5x', 'airio', 'jestimator')])"
    )
    assert listed.strip() == "[]"


def test_all_that_is_imported_is_declared() -> None:
    """Also inside of functions, and by name: a package that another one brings may go any day."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = itertools.chain(*project["optional-dependencies"].values())
    lines = [*project["dependencies"], *extras]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    declared |= {"protlm-jax", "t5x"}  # the latter is on no index: requirements/t5x.txt
    known = packages_distributions()
    for file in (*root.glob("protlm_jax/**/*.py"), *root.glob("configs/*.py")):
        for name in _imported(ast.parse(file.read_text())) - set(sys.stdlib_module_names):
            brought_by = {canonicalize_name(d) for d in known.get(name, [name])}
            assert brought_by & declared, f"{file.name} imports {name}: declare it in pyproject"


def _imported(tree: ast.Module) -> set[str]:
    """First words of the names of all modules that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_module"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in found if isinstance(name, str)}
