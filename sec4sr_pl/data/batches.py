"""Which utterances are padded to one length: batches whose size in memory does not follow from the longest file."""

from collections.abc import Iterable, Sequence

from sec4sr_pl.data.manifest import Utterance
from sec4sr_pl.types import SAMPLE_RATE

SECONDS = 20
"""A batch has no more samples, padding included, than its full number of utterances of this length."""


def bounded(utterances: Sequence[Utterance], size: int, order: Iterable[int] | None = None) -> list[list[int]]:
    """The positions of the utterances of each batch: at most `size`, and fewer around a long one.

    They follow from the utterances, the size and the order alone. An utterance that is too long for any batch is one.

    Args:
        utterances: whose lengths count.
        size: utterances of a batch of short ones.
        order: of the positions; None: as they are.

    Raises:
        ValueError: batches of nothing.
    """
    if size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {size}")
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for position in range(len(utterances)) if order is None else order:
        longest = max(longest, utterances[position].frames)
        rows = len(batch) + 1
        if batch and (rows > size or rows * longest > size * SECONDS * SAMPLE_RATE):
            batches.append(batch)
            batch, longest = [], utterances[position].frames
        batch.append(position)
    return [*batches, batch] if batch else batches
