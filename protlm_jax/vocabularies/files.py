"""Vocabularies of downloaded models: their names, and the file that keeps them.

A vocabulary that is not one of ours is called `custom-` and eight digits of a digest of its
content; a folder whose model uses it has `vocabulary.json` beside config.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.vocabularies import VOCABULARIES, Vocabulary, get_vocabulary

FILE = "vocabulary.json"

_PREFIX = "custom-"


def custom_vocabulary(
    tokens: Sequence[str],
    *,
    pad_id: int,
    unk_id: int,
    mask_id: int | None,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
) -> Vocabulary:
    """A vocabulary named after its content, registered for `get_vocabulary`; raises ProtlmError
    where the fields make none."""
    fields: dict[str, Any] = {
        "tokens": list(tokens),
        "pad_id": pad_id,
        "unk_id": unk_id,
        "mask_id": mask_id,
        "prefix_ids": list(prefix_ids),
        "suffix_ids": list(suffix_ids),
    }
    content = json.dumps(fields, sort_keys=True).encode()
    name = _PREFIX + blake2b(content, digest_size=4).hexdigest()
    return VOCABULARIES.setdefault(name, Vocabulary.from_dict({"name": name, **fields}))


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes vocabulary.json into a folder, unless the vocabulary is one of ours."""
    if vocabulary.name.startswith(_PREFIX):
        write_json(folder / FILE, vocabulary.to_dict())


def find_vocabulary(name: str, folder: Path) -> Vocabulary:
    """The vocabulary called `name`: a registered one, or that of vocabulary.json; raises
    ProtlmError where there is none of that name, or the file holds another one."""
    if name in VOCABULARIES or not name.startswith(_PREFIX):
        return get_vocabulary(name)
    file = folder / FILE
    found = read_vocabulary_file(file)
    if found.name != name:
        raise ProtlmError(
            f"{file} holds the vocabulary {found.name}, config.json asks for {name}: take both "
            f"from one place"
        )
    return found


def read_vocabulary_file(file: Path) -> Vocabulary:
    """The vocabulary of a vocabulary.json, registered for `get_vocabulary`; raises ProtlmError."""
    fields = read_json(file)
    fields.pop("name", None)
    try:
        return custom_vocabulary(**fields)
    except (TypeError, ProtlmError) as error:
        raise ProtlmError(f"{file} is no vocabulary ({error}): copy it again") from error
