"""From embeddings to a score for each speaker."""

import copy
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scorer(nn.Module):
    """What maps (batch, embedding) to (batch, speakers) scores, and knows the speakers' names.

    Args:
        speakers: names in the order of the scores' columns, or how many there are.

    Raises:
        ValueError: a name given twice.
    """

    speakers: tuple[str, ...]
    threshold: Tensor
    """() a score must exceed it to be accepted; -inf in a closed set."""

    def __init__(self, speakers: int | Sequence[str]) -> None:
        super().__init__()
        names = tuple(str(index) for index in range(speakers)) if isinstance(speakers, int) else tuple(speakers)
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

    Raises:
        ValueError: no speaker, or a name given twice.
    """

    def __init__(self, embedding_size: int, speakers: int | Sequence[str]) -> None:
        super().__init__(speakers)
        if not self.speakers:
            raise ValueError("Expected at least one speaker, got none")
        self.embedding_size = embedding_size
        self.head = nn.Linear(embedding_size, len(self.speakers))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers) logits."""
        return self.head(embeddings)  # type: ignore[no-any-return]


class CosineClosedSet(ClosedSet):
    """A classifier head that knows angles only: the score of a speaker is a cosine times a scale, for margin losses.

    Args:
        embedding_size: dimensions of an embedding.
        speakers: names in the order of the scores, or how many there are.
        scale: of the cosines, so that a softmax of the scores can be sure.

    Raises:
        ValueError: no speaker, a name given twice, or a scale that is not positive.
    """

    def __init__(self, embedding_size: int, speakers: int | Sequence[str], scale: float = 30.0) -> None:
        super().__init__(embedding_size, speakers)
        if not scale > 0:
            raise ValueError(f"Expected a scale above 0, got {scale}")
        self.scale = scale
        self.head = nn.Linear(embedding_size, len(self.speakers), bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers) scores in [-scale, scale]."""
        weight = self.head.weight
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 knows cosines to two digits
            cosines = functional.normalize(embeddings.to(weight.dtype)) @ functional.normalize(weight).T
        return self.scale * cosines


class EnrolledScorer(Scorer):
    """Scores against models of enrolled speakers (tasks CSI-E, SV, OSI); a subclass writes `model` and `compare`.

    Names, models and threshold travel in a checkpoint. It starts with nobody enrolled; the arguments are for a
    checkpoint, whose weights follow.

    Args:
        speakers: names of the enrolled speakers.
        embedding_size: dimensions of an embedding.
    """

    models: Tensor
    """(speakers, embedding_size)."""

    def __init__(self, speakers: Sequence[str] = (), embedding_size: int = 0) -> None:
        super().__init__(speakers)
        self.embedding_size = embedding_size
        self.register_buffer("models", torch.zeros(len(self.speakers), embedding_size))

    def enroll(self, embeddings: Tensor, speakers: Sequence[str]) -> None:
        """Take these speakers, sorted by name, for those that were enrolled; the threshold is -inf until calibrated.

        Args:
            embeddings: (utterances, embedding_size).
            speakers: the name of each utterance's speaker.

        Raises:
            ValueError: no utterance, or not a name for each.
        """
        if embeddings.dim() != 2 or not len(embeddings) or len(speakers) != len(embeddings):
            raise ValueError(
                "Expected (utterances, embedding_size) embeddings and a speaker for each, "
                f"got {tuple(embeddings.shape)} and {len(speakers)} speakers"
            )
        rows: dict[str, list[int]] = {name: [] for name in sorted(set(speakers))}
        for index, name in enumerate(speakers):
            rows[name].append(index)
        self.speakers, self.embedding_size = tuple(rows), embeddings.shape[1]
        self.models = torch.stack([self.model(embeddings[own].detach()) for own in rows.values()]).to(self.models)
        self.threshold.fill_(-torch.inf)

    def only(self, speaker: str) -> "EnrolledScorer":
        """A copy that knows one of the speakers, for verification; with the same threshold.

        Raises:
            ValueError: a speaker who is not enrolled.
        """
        if speaker not in self.speakers:
            raise ValueError(f"Expected one of the enrolled speakers {', '.join(self.speakers)}, got {speaker!r}")
        one = copy.deepcopy(self)
        one.speakers, one.models = (speaker,), self.models[[self.speakers.index(speaker)]]
        return one

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers).

        Raises:
            ValueError: nobody is enrolled.
        """
        if not self.embedding_size:
            raise ValueError(
                f"Nobody is enrolled in this {type(self).__name__}: call enroll(embeddings, speakers), "
                "or make a recognizer with python -m sec4sr_pl.enrollment"
            )
        return self.compare(embeddings)

    @abstractmethod
    def model(self, embeddings: Tensor) -> Tensor:
        """(utterances, embedding_size) of one speaker -> (embedding_size,)."""

    @abstractmethod
    def compare(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers) scores against `models`."""


class Cosine(EnrolledScorer):
    """The cosine between an embedding and a speaker's model, the mean of the enrollment utterances' unit vectors."""

    def model(self, embeddings: Tensor) -> Tensor:
        """The unit vector along the mean of the unit vectors."""
        return functional.normalize(functional.normalize(embeddings).mean(0), dim=0)

    def compare(self, embeddings: Tensor) -> Tensor:
        """Cosines in [-1, 1]."""
        return functional.normalize(embeddings) @ self.models.T
