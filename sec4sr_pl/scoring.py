"""From embeddings to a score for each speaker."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Scorer(nn.Module):
    """What maps (batch, embedding) to (batch, speakers) scores, and knows the speakers' names.

    Args:
        speakers: names in the order of the scores' columns, or how many there are.

    Raises:
        ValueError: no speaker, or a name given twice.
    """

    speakers: tuple[str, ...]
    threshold: Tensor
    """() a score must exceed it to be accepted; -inf in a closed set."""

    def __init__(self, speakers: int | Sequence[str]) -> None:
        super().__init__()
        names = tuple(str(index) for index in range(speakers)) if isinstance(speakers, int) else tuple(speakers)
        if not names:
            raise ValueError("Expected at least one speaker, got none")
        if len(set(names)) < len(names):
            raise ValueError(
                f"Expected each speaker once, got {sorted({n for n in names if names.count(n) > 1})} twice"
            )
        self.speakers = names
        self.register_buffer("threshold", torch.tensor(-torch.inf))


class ClosedSet(Scorer):
    """A linear classifier head: the score of a speaker is its logit (task CSI-NE).

    Args:
        embedding_size: dimensions of an embedding.
        speakers: names in the order of the logits, or how many there are.
    """

    def __init__(self, embedding_size: int, speakers: int | Sequence[str]) -> None:
        super().__init__(speakers)
        self.embedding_size = embedding_size
        self.head = nn.Linear(embedding_size, len(self.speakers))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers) logits."""
        return self.head(embeddings)  # type: ignore[no-any-return]
