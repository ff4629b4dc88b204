"""Models without a value in them: shapes, formats and memory as they would be."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses import FakeTensorMode
from transformers import masking_utils


@contextmanager
def faked() -> Iterator[FakeTensorMode]:
    """A block in which new tensors are fake, and attention masks are as for real ones.

    transformers looks into the position ids for several texts in a sequence, and where it can't
    look it makes a mask of T × T for each, which no run on real ids has. Here none is packed.
    """
    looks = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        masking_utils.find_packed_sequence_indices = looks
