"""Small prepared folders, made by hand: token files and a manifest."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np

from protlm_jax.data.prepare import manifest
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.data.splits import is_heldout
from protlm_jax.data.token_files import write_token_shard
from protlm_jax.vocabularies import AMINO_ACIDS


def proteins(lengths: list[int], seed: int = 0, letters: str = AMINO_ACIDS) -> dict[str, str]:
    """Random proteins p0, p1, ..."""
    rng = np.random.default_rng(seed)
    return {f"p{i}": "".join(rng.choice(list(letters), n)) for i, n in enumerate(lengths)}


def write_prepared(
    folder: Path, sequences: dict[str, str], shards: int = 3, **rules: object
) -> Path:
    """A prepared folder with token files; by default a quarter is held out."""
    chosen = SelectionRules(**{"heldout_percent": 25.0, "deduplicate": False} | rules)
    percent, counts, tokens = chosen.heldout_percent, manifest.RecordCounts(read=len(sequences)), {}
    for side in ("train", "heldout"):
        wanted = side == "heldout"
        mine = [(n, s) for n, s in sequences.items() if is_heldout(s, percent) == wanted]
        counts.splits[side] = manifest.Tally.of(s for _, s in mine)
        tokens[side] = []
        for number in range(shards):
            path = folder / "tokens" / f"{side}-{number:05d}-of-{shards:05d}.tokens"
            info = write_token_shard(path, mine[number::shards])
            tokens[side].append({"file": f"tokens/{path.name}"} | info)
        if wanted:
            text = "".join(f">{name} uniref50=\n{sequence}\n" for name, sequence in mine)
    (folder / "heldout.fasta").write_text(text)
    heldout = {
        "file": "heldout.fasta" if text else None,
        "bytes": len(text),
        "blake2b": blake2b(text.encode(), digest_size=16).hexdigest(),
    }
    plan = PreparePlan("fasta", "", (), folder, chosen, True, False, 1, shards)
    content = manifest.build(plan, counts, sources=[], tokens=tokens, records={}, heldout=heldout)
    (folder / "manifest.json").write_text(manifest.to_text(content))
    return folder
