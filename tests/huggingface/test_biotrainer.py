"""biotrainer itself, in an environment of its own, trains on our files and exports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import zoo
from embedded import proteins

from protlm_jax.cli import main
from protlm_jax.huggingface import export, load_model

PROGRAM = os.environ.get("PROTLM_BIOTRAINER", "")  # its command, from 1.0
WEIGHTS = Path(os.environ.get("PROTLM_WEIGHTS", "")) / "esm2_t6_8M"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="PROTLM_BIOTRAINER names no `biotrainer` to run"),
]
PROTOCOLS = {"residue_to_class": "residues", "sequence_to_class": "mean"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    real = os.environ.get("PROTLM_WEIGHTS") and WEIGHTS.is_dir()
    folder = tmp_path_factory.mktemp("biotrainer")
    export(load_model(WEIGHTS) if real else zoo.loaded("esm2"), folder / "model")
    return folder


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest, folder: Path) -> str:
    """A protocol, with its FASTA file and our embeddings."""
    name, rng = str(request.param), np.random.default_rng(0)
    with (folder / f"{name}.fasta").open("w") as fasta:
        for i, (protein, sequence) in enumerate(proteins(24)):
            part = "train" if i < 14 else "val" if i < 19 else "test"
            length = len(sequence) if name.startswith("residue") else 1
            target = "".join(rng.choice(["H", "E"], length))
            fasta.write(f">{protein} TARGET={target} SET={part}\n{sequence}\n")
    if not (folder / f"{name}.h5").exists():
        words = f"--model {folder}/model --input {folder}/{name}.fasta --output {folder}/{name}.h5"
        words += f" --vectors {PROTOCOLS[name]} --keys biotrainer"
        assert main(["embed", *words.split()]) == 0
    return name


def train(folder: Path, protocol: str, **settings: str) -> Path:
    """Trains two epochs, and gives the folder of its output."""
    output = folder / f"{protocol}-{'-'.join(settings)}"
    fields = {
        "protocol": protocol,
        "input_file": f"{folder}/{protocol}.fasta",
        "output_dir": str(output),
        "model_choice": "CNN" if protocol.startswith("residue") else "FNN",
        "num_epochs": "2",
        "device": "cpu",
        **settings,
    }
    config = folder / "config.yml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    apart = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [PROGRAM, "train", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env=apart, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_on_a_file_of_embeddings(folder: Path, protocol: str) -> None:
    output = train(folder, protocol, embeddings_file=f"{folder}/{protocol}.h5")
    assert list(output.rglob("out.yml"))
    assert not list(output.rglob("*.h5"))  # it has computed none of its own


def test_on_an_export(folder: Path, protocol: str) -> None:
    asked = [
        Path(PROGRAM).parent / "python",
        "-c",
        "import transformers as t; print(t.__version__)",
    ]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split(".")
    if (int(version[0]), int(version[1])) >= (5, 15):
        pytest.skip("EsmTokenizer of transformers from 5.15 no longer finds specials in tensors")
    output = train(folder, protocol, embedder_name=f"{folder}/model")
    (made,) = output.rglob("*.h5")
    with h5py.File(made) as theirs, h5py.File(folder / f"{protocol}.h5") as ours:
        assert theirs.keys() == ours.keys()
        scale = max(np.abs(theirs[key][:]).max() for key in theirs)
        for key in theirs:
            np.testing.assert_allclose(ours[key][:], theirs[key][:], atol=1e-5 * scale)
