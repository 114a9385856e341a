"""Finds proteins that resemble a held-out one with MMseqs2 (doi:10.1038/nbt.3988).

Similar means: equal; or aligned with at least 50 % identical residues over at least 80 % of one of
the two (of either: a fragment of a held-out protein gives it away as much as the whole does).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.errors import ProtlmError

IDENTITY = 0.5
COVERAGE = 0.8

_OPTIONS = (
    *("-s", "4", "-e", "1e-3", "--alignment-mode", "3", "--max-seqs", "60"),
    *("--min-seq-id", str(IDENTITY), "--format-output", "query,qcov,tcov"),
)


class Similar:
    """Says of any protein whether it resembles one of a frozen set, with the program `mmseqs`.

    The frozen proteins are the targets of the search, so its E-values, and the answers, do not
    depend on how many proteins are asked about at a time.
    """

    def __init__(self, sequences: Iterable[str]) -> None:
        """`sequences` are the frozen proteins, normalised."""
        self._frozen = sorted(set(sequences))
        self._program = shutil.which("mmseqs")
        self._version = self._run("version").strip() if self._program else None

    def find(self, entries: Sequence[ReleaseEntry]) -> list[bool]:
        """For each protein, in order, whether it is similar to a frozen one.

        Raises:
          ProtlmError: MMseqs2 is not installed, or failed.
        """
        known = set(self._frozen)
        answers = [entry.sequence in known for entry in entries]
        others = [i for i, equal in enumerate(answers) if not equal]
        if others and known:
            found = self._search([entries[i].sequence for i in others]).tolist()
            for i, similar in zip(others, found, strict=True):
                answers[i] = similar
        return answers

    def describe(self) -> dict[str, Any]:
        """The method and its settings, for a manifest."""
        return {
            "method": "mmseqs2",
            "version": self._version,
            "command": f"easy-search {' '.join(_OPTIONS)}",
            "identity": IDENTITY,
            "coverage_of_either": COVERAGE,
        }

    def _search(self, sequences: Sequence[str]) -> np.ndarray:
        """bool [number of sequences]."""
        found = np.zeros(len(sequences), bool)
        try:
            with tempfile.TemporaryDirectory(prefix="protlm-similar-") as folder:
                paths = [f"{folder}/{name}" for name in ("query", "target", "hits", "work")]
                for path, some in zip(paths, (sequences, self._frozen), strict=False):
                    text = "".join(f">{i}\n{sequence}\n" for i, sequence in enumerate(some))
                    Path(path).write_text(text)
                self._run("easy-search", *paths, *_OPTIONS, "--threads", "1", "-v", "1")
                for line in Path(paths[2]).read_text().splitlines():
                    query, *covered = line.split("\t")
                    found[int(query)] |= max(map(float, covered)) >= COVERAGE
        except OSError as error:
            raise ProtlmError(
                f"comparing with held-out proteins: {error.strerror or error} (in the folder for "
                f"temporary files, {tempfile.gettempdir()}; another one can be named in TMPDIR)"
            ) from None
        return found

    def _run(self, *arguments: str) -> str:
        if self._program is None:
            raise ProtlmError(
                "--heldout_from compares these proteins with the held-out ones by MMseqs2, and "
                "there is no program mmseqs on the PATH: install it (conda install -c bioconda "
                "mmseqs2), or give UniRef XML of the same release, which names the clusters"
            )
        done = subprocess.run(
            [self._program, *arguments], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            message = (done.stderr or done.stdout).strip()[-500:]
            raise ProtlmError(
                f"{self._program} {arguments[0]} failed with exit code {done.returncode}: {message}"
                "; repair the installation of MMseqs2"
            )
        return done.stdout
