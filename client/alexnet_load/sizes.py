"""How large requests are: one size, or a mix drawn with seeded dice. Pure; sizes that a trace brings win over these."""

from __future__ import annotations

import numpy as np

from alexnet_client.errors import BadInput
from alexnet_load.figures import positive, whole
from alexnet_load.trace import Sizes


def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Read images in a request: ``4``, or a mix of sizes and their shares such as ``1:0.8,8:0.2``; shares add up to 1 then.

    Raises:
        BadInput: it is neither.
    """
    try:
        pairs = [each.partition(":")[::2] for each in text.split(",")]
        if len(pairs) > 1 and not all(share for _, share in pairs):
            raise ValueError("each size of a mix needs its share")
        found = [(whole(size), positive(share or "1")) for size, share in pairs]
        if len({size for size, _ in found}) < len(found):
            raise ValueError("a size is named twice")
    except ValueError as error:
        raise BadInput(f"sizes {text!r}: {error}; it is one such as 4, or a mix such as 1:0.8,8:0.2") from None
    total = sum(share for _, share in found)
    return tuple((size, share / total) for size, share in found)


def draw_sizes(sizes: tuple[tuple[int, float], ...], *, count: int, seed: int) -> Sizes:
    """Sizes of ``count`` requests, drawn by their shares: int32 [count]."""
    each, shares = zip(*sizes, strict=True)
    dice = np.random.default_rng((seed, 1))  # other dice than the times', which would otherwise depend on each other
    return dice.choice(np.array(each, np.int32), size=count, p=np.array(shares) / sum(shares))
