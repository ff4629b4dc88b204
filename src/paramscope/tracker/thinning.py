"""Which events of a long timeline to keep, so that its shape and its marks still show."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def spread(first: int, last: int, most: int, among: Iterable[int]) -> NDArray[np.int64]:
    """Events from `first` to `last`, evenly spread, with both of these and `among` among them.

    Args:
        first: the first event.
        last: the last one; at or after `first`.
        most: how many at most; more are returned only where the ends and `among` are more.
        among: events to keep in any case, each from `first` to `last`.

    Returns:
        The events, sorted, each once.
    """
    kept = set(among)
    room = max(2, most - len(kept))
    even = np.linspace(first, last, min(room, last - first + 1)).astype(np.int64)
    return np.unique([*even, *kept])
