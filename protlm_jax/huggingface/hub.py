"""Models by their id on the Hugging Face Hub, fetched into its cache."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from protlm_jax.errors import ProtlmError

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def is_id(path: str | Path) -> bool:
    """Whether it reads as `org/name`, and there is no folder `org` here."""
    return bool(_ID.fullmatch(str(path))) and not Path(path).parent.exists()


def fetch(model: str) -> Path:
    """The folder with a model's files, in the cache of `huggingface_hub`.

    It gets the config, the tokenizer and one copy of the weights, safetensors if possible. If the
    Hub cannot be reached, an earlier snapshot is used, with a warning.

    Raises:
        ProtlmError: it is not in the cache and cannot be fetched.
    """
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as error:
        raise ProtlmError(
            f"{model} is no folder on this machine, and to fetch it from the Hugging Face Hub "
            "takes huggingface_hub: pip install 'protlm-jax[hf]'"
        ) from error
    try:
        return Path(snapshot_download(model, allow_patterns=needed(list_repo_files(model))))
    except Exception as error:  # of the network, of the Hub, or of the disk
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if _unreachable(error) and (cached := _cached(model, snapshot_download)):
            fetched = time.strftime("%Y-%m-%d", time.localtime(cached.stat().st_mtime))
            log.warning(
                "the Hugging Face Hub cannot be reached (%s): using %s as it was fetched on %s",
                reason, model, fetched,
            )  # fmt: skip
            return cached
        raise ProtlmError(
            f"{model} is no folder on this machine and could not be fetched from the Hugging "
            f"Face Hub ({reason}): check the name and the network, log in where the model asks "
            f"for it (hf auth login), or download it elsewhere (hf download {model} --local-dir "
            "FOLDER) and name that folder"
        ) from error


def _cached(model: str, snapshot_download: Callable[..., str]) -> Path | None:
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception:
        return None


def _unreachable(error: BaseException | None) -> bool:
    """Whether the Hub did not answer; each of its HTTP libraries has its own exceptions."""
    silent = {"ConnectionError", "Timeout", "TimeoutError", "TransportError"}
    while error is not None:
        if silent & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__ or error.__context__
    return False


def needed(names: list[str]) -> list[str]:
    """The files of a repository that `load_model` reads."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    weights = weights or [name for name in top if _PICKLES.fullmatch(name)]
    return weights + [name for name in top if name.endswith((".json", ".txt", ".model"))]


def title(folder: Path) -> str:
    """The folder's name, or the id of a model that was fetched."""
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.name
