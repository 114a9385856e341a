"""Where a model's answers can be read, declared by each family."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Readout:
    """A distribution over residues that the model was trained to give.

    Attributes:
        kind: "masked" (residues hidden in the input of a single stack) or "denoising" (residues
            hidden in the encoder's input, read at the decoder under teacher forcing).
        stack: the stack whose stream `head` reads; a logit lens is defined on this stack alone.
    """

    kind: str
    stack: str
