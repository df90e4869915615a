"""From embeddings to a score for each speaker."""

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl import kaldi


class Scorer(nn.Module):
    """What maps (batch, embedding) to (batch, speakers) scores, and knows the speakers' names.

    Args:
        speakers: names in the order of the scores' columns, or how many there are.

    Raises:
        ValueError: a name given twice, or more than `MOST`.
    """

    MOST = 1_000_000
    speakers: tuple[str, ...]
    trained_on: Sequence[str] = ()
    """Names of those on whose speech the recognizer was trained, where they are known."""
    calibrated_on: Sequence[str] = ()
    """Names of the strangers, or speakers of trials, whose scores set the threshold, where they are known."""
    threshold: Tensor
    """() a score must exceed it to be accepted; -inf in a closed set."""

    def __init__(self, speakers: int | Sequence[str]) -> None:
        super().__init__()
        if not isinstance(speakers, int) and not all(isinstance(name, str) for name in speakers):
            raise ValueError(f"Expected names of speakers, got {list(speakers)[:5]}")
        if isinstance(speakers, int) and speakers > self.MOST:
            raise ValueError(f"Expected at most {self.MOST:,} speakers, got {speakers}")
        names = tuple(str(index) for index in range(speakers)) if isinstance(speakers, int) else tuple(speakers)
        if len(set(names)) < len(names):
            raise ValueError(
                f"Expected each speaker once, got {sorted(n for n, count in Counter(names).items() if count > 1)} twice"
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
        if not self.speakers or not 1 <= embedding_size <= self.MOST:
            raise ValueError(
                f"Expected at least one speaker and one dimension, at most {self.MOST:,} of each, got "
                f"{len(self.speakers)} and {embedding_size}"
            )
        self.embedding_size, self.trained_on = embedding_size, self.speakers
        self.head = nn.Linear(embedding_size, len(self.speakers))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, embedding_size) -> (batch, speakers) logits, in the precision of the head."""
        with torch.autocast(embeddings.device.type, enabled=False):  # half precision knows scores to three digits
            return self.head(embeddings.to(self.head.weight.dtype))  # type: ignore[no-any-return]


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
        if not 0.0 < scale < torch.inf:
            raise ValueError(f"Expected a finite scale above 0, got {scale}")
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
        trained_on: names of those on whose speech the recognizer was trained, where they are known.
        calibrated_on: names of those whose scores set the threshold, where they are known; not of enrolled speakers.
    """

    models: Tensor
    """(speakers, ...): what `model` makes of each."""

    def __init__(
        self,
        speakers: Sequence[str] = (),
        embedding_size: int = 0,
        trained_on: Sequence[str] = (),
        calibrated_on: Sequence[str] = (),
    ) -> None:
        super().__init__(speakers)
        self.embedding_size, self.trained_on, self.calibrated_on = embedding_size, trained_on, calibrated_on
        self.register_buffer("models", torch.zeros(len(self.speakers), embedding_size))

    def check_trained(self) -> None:
        """Refuse models that nobody trained, where there are any.

        Raises:
            ValueError: they are as their constructor made them.
        """

    def enroll(self, embeddings: Tensor, speakers: Sequence[str]) -> None:
        """Take these speakers, sorted by name, for those that were enrolled; the threshold is -inf until calibrated.

        Args:
            embeddings: (utterances, embedding_size).
            speakers: the name of each utterance's speaker.

        Raises:
            ValueError: no utterance, not a name for each, or an embedding that is not finite.
        """
        if embeddings.dim() != 2 or not embeddings.numel() or len(speakers) != len(embeddings):
            raise ValueError(
                "Expected (utterances, embedding_size) embeddings and a speaker for each, "
                f"got {tuple(embeddings.shape)} and {len(speakers)} speakers"
            )
        if broken := (~embeddings.isfinite().all(1)).nonzero().squeeze(1).tolist():
            raise ValueError(
                f"Expected finite embeddings, got {len(broken)} that are not, the first of speaker "
                f"{speakers[broken[0]]!r}"
            )
        rows: dict[str, list[int]] = {name: [] for name in sorted(set(speakers))}
        for index, name in enumerate(speakers):
            rows[name].append(index)
        self.speakers, self.embedding_size = tuple(rows), embeddings.shape[1]
        self.models = torch.stack([self.model(embeddings[own].detach()) for own in rows.values()]).to(self.models)
        self.threshold.fill_(-torch.inf)
        self.calibrated_on = ()

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
        if not self.speakers:
            raise ValueError(
                f"Nobody is enrolled in this {type(self).__name__}: call enroll(embeddings, speakers), "
                "or make a recognizer with python -m sec4sr_pl.enrollment"
            )
        return self.compare(embeddings)

    def against(self, embeddings: Tensor, models: Tensor) -> Tensor:
        """(batch, models) scores of (batch, embedding_size), against others than the enrolled speakers' models."""
        other = copy.copy(self)
        other._buffers = {**self._buffers, "models": models}
        return other.compare(embeddings)

    def claimed(self, embeddings: Tensor, columns: Tensor) -> Tensor:
        """(batch,) scores of (batch, embedding_size), of each against the one speaker of its column."""
        alone = torch.vmap(lambda embedding, model: self.against(embedding[None], model[None])[0, 0])
        return alone(embeddings, self.models[columns])

    @abstractmethod
    def model(self, embeddings: Tensor) -> Tensor:
        """(utterances, embedding_size) of one speaker -> what to compare with."""

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
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 knows cosines to two digits
            cosines: Tensor = functional.normalize(embeddings.to(self.models.dtype)) @ self.models.T
        return cosines


class PLDA(EnrolledScorer):
    """The log-likelihood ratio of a speaker's and another's embedding, under Gaussians between and within speakers.

    An embedding loses the mean of all speakers, is reduced by LDA, scaled to the norm sqrt(size), brought into the
    basis in which the covariance within speakers is I and that between them diag(psi), and scaled to the length that is
    expected there. In it a speaker's model is a Gaussian: where the next utterance would fall.

    Args:
        speakers: names of the enrolled speakers.
        embedding_size: dimensions of an embedding.
        size: dimensions after LDA.
        averaged: "before": enrollment embeddings are averaged first, and their number sharpens the model, as in Kaldi.
            "after": they are averaged in PLDA's basis and count as one utterance, as in the SEC4SR paper.
        trained_on: names of those on whose speech the recognizer was trained, where they are known.
        calibrated_on: names of those whose scores set the threshold, where they are known; not of enrolled speakers.

    Raises:
        ValueError: `averaged` is neither.

    Source: Ioffe, "Probabilistic linear discriminant analysis", 2006; Garcia-Romero and Espy-Wilson, "Analysis of
    i-vector length normalization in speaker recognition systems", 2011; Kaldi's ivector-plda-scoring.
    """

    def __init__(
        self,
        speakers: Sequence[str] = (),
        embedding_size: int = 32,
        size: int = 16,
        averaged: Literal["before", "after"] = "after",
        trained_on: Sequence[str] = (),
        calibrated_on: Sequence[str] = (),
    ) -> None:
        super().__init__(speakers, embedding_size, trained_on, calibrated_on)
        if averaged not in ("before", "after"):
            raise ValueError(f"Expected averaged 'before' or 'after', got {averaged!r}")
        self.size, self.averaged = size, averaged
        self.models = torch.zeros(len(self.speakers), 2, size)  # mean and variance of each dimension
        self.center: Tensor
        self.lda: Tensor
        self.mean: Tensor
        self.transform: Tensor
        self.psi: Tensor
        self.register_buffer("center", torch.zeros(embedding_size))
        self.register_buffer("lda", torch.eye(size, embedding_size + 1))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("transform", torch.eye(size))
        self.register_buffer("psi", torch.ones(size))

    @classmethod
    def of(
        cls, center: Tensor, lda: Tensor, plda: kaldi.PLDAModel, averaged: Literal["before", "after"] = "after"
    ) -> "PLDA":
        """The scorer of these models, in single precision, with nobody enrolled.

        Args:
            center: (embedding_size,) mean of all embeddings.
            lda: (size, embedding_size + 1), the last column an offset, or (size, embedding_size).
            plda: over `size` dimensions.
            averaged: as in the class.

        Raises:
            ValueError: sizes that do not fit.
        """
        if lda.shape[1] == len(center):
            lda = functional.pad(lda, (0, 1))
        if lda.shape != (len(plda.mean), len(center) + 1):
            raise ValueError(
                f"Expected an LDA transform of {len(plda.mean)} x {len(center)} with or without a column of offsets, "
                f"got {tuple(lda.shape)}"
            )
        scorer = cls((), len(center), len(lda), averaged)
        rest = {"models": scorer.models, "threshold": scorer.threshold}
        scorer.load_state_dict({"center": center, "lda": lda, **plda._asdict(), **rest})
        return scorer

    @classmethod
    def from_kaldi(
        cls, mean: Path, transform: Path, plda: Path, averaged: Literal["before", "after"] = "after"
    ) -> "PLDA":
        """The scorer of a `mean.vec`, a `transform.mat` and a `plda` in text form.

        Raises:
            KaldiError: a file in another form.
            ValueError: as `of`.
        """
        return cls.of(kaldi.read_vector(mean), kaldi.read_matrix(transform), kaldi.read_plda(plda), averaged)

    def to_kaldi(self, mean: Path, transform: Path, plda: Path) -> None:
        """The inverse of `from_kaldi`, to the last bit; who is enrolled is not written."""
        kaldi.write_vector(mean, self.center)
        kaldi.write_matrix(transform, self.lda)
        kaldi.write_plda(plda, kaldi.PLDAModel(self.mean, self.transform, self.psi))

    def enroll(self, embeddings: Tensor, speakers: Sequence[str]) -> None:
        """As in the base; the size of an embedding is the models'.

        Raises:
            ValueError: also for embeddings of another size, and models that nobody trained.
        """
        if embeddings.shape[-1:] != self.center.shape:
            raise ValueError(
                f"Expected embeddings of {len(self.center)} dimensions, which the models of this PLDA are for, "
                f"got {tuple(embeddings.shape)}"
            )
        self.check_trained()
        super().enroll(embeddings, speakers)

    def check_trained(self) -> None:
        """As in the base.

        Raises:
            ValueError: LDA and psi are those of the constructor.
        """
        lda, psi = torch.eye(*self.lda.shape).to(self.lda), torch.ones_like(self.psi)
        if torch.equal(self.lda, lda) and torch.equal(self.psi, psi):
            raise ValueError(
                "This PLDA is untrained, so its scores say nothing: train it behind a recognizer with "
                "python -m sec4sr_pl.training.background.backend, or load Kaldi's files with PLDA.from_kaldi"
            )

    def project(self, embeddings: Tensor, utterances: int = 1) -> Tensor:
        """(..., embedding_size) means of so many utterances -> (..., size) in PLDA's basis."""
        reduced = (embeddings - self.center) @ self.lda[:, :-1].T + self.lda[:, -1]
        vectors = (normalize_length(reduced) - self.mean) @ self.transform.T
        share = vectors.square() / (self.psi + 1.0 / utterances)
        return vectors * share.mean(-1, keepdim=True).rsqrt()

    def model(self, embeddings: Tensor) -> Tensor:
        """(2, size): mean and variance of an utterance of the speaker of these."""
        if self.averaged == "before":
            count, vector = len(embeddings), self.project(embeddings.mean(0), len(embeddings))
        else:
            count, vector = 1, self.project(embeddings).mean(0)
        trust = count * self.psi / (count * self.psi + 1.0)
        return torch.stack([trust * vector, 1.0 + self.psi / (count * self.psi + 1.0)])

    def compare(self, embeddings: Tensor) -> Tensor:
        """Log-likelihood ratios, as products of (batch, size) with (size, speakers)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            vectors = self.project(embeddings.to(self.psi.dtype))
            exact = vectors.double()  # the three terms nearly cancel where speakers differ much
            mean, variance = self.models.double().unbind(1)
            anyone = 1.0 + self.psi.double()
            squares = exact.square() @ (1.0 / anyone - 1.0 / variance).T
            products = exact @ (mean / variance).T
            constants = anyone.log().sum() - (variance.log() + mean.square() / variance).sum(1)
            ratios = (0.5 * (squares + constants) + products).to(vectors.dtype)
        return ratios


def normalize_length(vectors: Tensor) -> Tensor:
    """(..., size) scaled to the norm sqrt(size), at which standard normal vectors lie."""
    normalized: Tensor = vectors.shape[-1] ** 0.5 * functional.normalize(vectors, dim=-1)
    return normalized
