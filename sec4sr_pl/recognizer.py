"""The chain from waveform to decision: defenses and front-end stages, backbone, scorer."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.draws import key
from sec4sr_pl.features import FrontEnd
from sec4sr_pl.scoring import ClosedSet, EnrolledScorer, Scorer
from sec4sr_pl.types import REJECT, full_lengths, single_precision


def best_above(scores: Tensor, threshold: Tensor) -> Tensor:
    """The best speaker of each row of (batch, speakers) scores if its score is above the threshold, else `REJECT`."""
    best, index = scores.max(dim=1)
    return torch.where(best > threshold, index, REJECT)


def fit(what: str, giver: nn.Module, given: str, taker: nn.Module, taken: str) -> None:
    """Refuse a part that takes another size than the part before it gives, where both tell theirs.

    Raises:
        ValueError: sizes that differ.
    """
    came, expected = getattr(giver, given, None), getattr(taker, taken, None)
    if came and expected and came != expected:  # a scorer in which nobody is enrolled may have size 0
        raise ValueError(
            f"{type(taker).__name__} takes {what} of {expected} dimensions, but {type(giver).__name__} gives {came}"
        )


def refuse_other_shape(what: str, given: Any, count: int, size: int | str, giver: nn.Module) -> None:
    """Refuse what is not (count, size), where a number is told for the size.

    Raises:
        ValueError: it is something else.
    """
    tensor = isinstance(given, Tensor)
    if not tensor or given.dim() != 2 or len(given) != count or (isinstance(size, int) and given.shape[1] != size):
        came = tuple(given.shape) if tensor else type(given).__name__
        raise ValueError(
            f"Expected ({count}, {size}) {what} of {count} utterances, whatever their number, from "
            f"{type(giver).__name__}, got {came}: mend its forward"
        )


class Recognizer(nn.Module):
    """A speaker recognizer: waveform -> front end -> backbone -> scores, with defenses where they say they act.

    Args:
        features: front end with named stages.
        backbone: frames, lengths -> (batch, embedding); it says whether it is `masked` and its `minimum_frames`. One
            that is not is given frames alone.
        scorer: embeddings -> (batch, speakers).
        defenses: applied in order, each after the stage that it names.

    Raises:
        ValueError: a backbone that does not say so, frames or embeddings of another size than the next part takes, a
            defense that names a stage the front end does not have, or a stage that may leave fewer frames than what
            follows needs.

    Attributes:
        minimum_samples: samples of the shortest utterance that the chain can score.
    """

    def __init__(
        self, features: FrontEnd, backbone: nn.Module, scorer: Scorer, defenses: Sequence[Defense] = ()
    ) -> None:
        super().__init__()
        if unsaid := [name for name in ("minimum_frames", "masked") if not hasattr(backbone, name)]:
            raise ValueError(
                "Expected a backbone that says its minimum_frames, of the shortest utterance, and whether it is "
                f"masked, {type(backbone).__name__} has no attribute {' and no '.join(unsaid)}"
            )
        fit("frames", features, "frame_size", backbone, "inputs")
        fit("embeddings", backbone, "embedding_size", scorer, "embedding_size")
        stages = ["waveform", *features.stages]
        for defense in defenses:
            if defense.after not in stages:
                raise ValueError(
                    f"{type(defense).__name__} acts after the stage '{defense.after}', "
                    f"but {type(features).__name__} has {', '.join(stages)}"
                )
        self.features = features
        self.backbone = backbone
        self.scorer = scorer
        self.defenses = nn.ModuleList(defenses)
        self.minimum_samples: int = backbone.minimum_frames  # type: ignore[assignment]
        for module in reversed(list(self.chain())):
            self.minimum_samples = module.minimum_input(self.minimum_samples)  # type: ignore[operator]

    def chain(self) -> Iterator[nn.Module]:
        """Defenses and front-end stages in the order in which a signal meets them."""
        for name in ("waveform", *self.features.stages):
            if name != "waveform":
                yield self.features.stages[name]
            for defense in self.defenses:
                if defense.after == name:
                    yield defense

    def parts(self) -> list[nn.Module]:
        """All that a signal meets, in order."""
        return [*self.chain(), self.backbone, self.scorer]

    @property
    def randomized(self) -> bool:
        """Whether two calls on the same waveform may differ, as a part of it says by an attribute of that name."""
        return any(getattr(part, "randomized", False) for part in self.parts())

    def seed(self, seed: int) -> None:
        """Restart the generators of all parts that draw, by their method `seed`."""
        for index, module in enumerate(self.parts()):
            if hasattr(module, "seed"):
                module.seed(seed + index)  # type: ignore[operator]

    def check(self, waveforms: Tensor, lengths: Tensor | None = None, names: Sequence[str] | None = None) -> None:
        """Refuse what the chain can't score.

        Raises:
            ValueError: not (batch, time) floating point, lengths that are not one a row, or an utterance (named, if
                `names` are given) that is too short for the chain or longer than its row. The values of lengths on an
                accelerator are only checked when names are given: it synchronizes.
        """
        if waveforms.dim() != 2 or not waveforms.is_floating_point():
            raise ValueError(
                f"Expected (batch, time) floating-point waveforms, got {tuple(waveforms.shape)} {waveforms.dtype}"
            )
        if lengths is not None and lengths.shape != waveforms.shape[:1]:
            raise ValueError(
                f"Expected a length for each of {len(waveforms)} waveforms, got lengths of shape {tuple(lengths.shape)}"
            )
        shortest, index = waveforms.shape[1], 0
        if lengths is not None and len(lengths) and (names is not None or lengths.device.type == "cpu"):
            shortest, index = int(lengths.min()), int(lengths.argmin())
            if lengths.max() > waveforms.shape[1]:
                raise ValueError(f"Expected lengths of at most {waveforms.shape[1]}, got {int(lengths.max())}")
        if shortest < self.minimum_samples:
            name = f"row {index}" if names is None else f"'{names[index]}'"
            raise ValueError(
                f"Utterance {name} has {shortest} samples, this recognizer needs at least {self.minimum_samples}: "
                "leave it out or join it with another"
            )

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings, (batch, embedding), of (batch, time) waveforms with (batch,) valid samples.

        Without `lengths` every sample is valid, and no time is spent on masks unless a stage selects frames.

        Raises:
            ValueError: as `check`, or a backbone that fails or gives something else.
        """
        self.check(waveforms, lengths)
        signal, valid = waveforms.clone(), full_lengths(waveforms) if lengths is None else lengths  # a part may write
        for module in self.chain():
            signal, valid = module(signal, valid)
        if lengths is None and not any(getattr(module, "selects", False) for module in self.chain()):
            return self._embed(signal)
        if self.backbone.masked:
            return self._embed(signal, valid)
        return self._embed_by_length(signal, valid)

    def _embed(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the backbone makes of frames, (batch, embedding)."""
        backbone = self.backbone
        try:
            embeddings = backbone(frames, lengths) if backbone.masked else backbone(frames)
        except Exception as error:  # somebody else's may raise anything
            if type(backbone).__module__.startswith("sec4sr_pl.") or isinstance(error, torch.OutOfMemoryError):
                raise
            given = f"frames of {tuple(frames.shape)}" + ", and their lengths" * bool(backbone.masked)
            raise ValueError(
                f"Expected a backbone that takes {given}, {type(backbone).__name__} failed: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error
        size = getattr(backbone, "embedding_size", None)
        refuse_other_shape("embeddings", embeddings, len(frames), size or "embedding_size", backbone)
        if embeddings.is_inference() and not torch.is_inference_mode_enabled():
            embeddings = embeddings.clone()  # the scorer could not keep it for a gradient, which there is none of
        return embeddings.to(frames.device)  # type: ignore[no-any-return]

    def _embed_by_length(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings by a backbone that can't mask: once for each distinct length, slower but never different."""
        parts = [(lengths == length).nonzero().squeeze(1) for length in torch.unique(lengths)]
        embeddings = torch.cat([self._embed(frames[rows, : int(lengths[rows[0]])]) for rows in parts])
        return embeddings[torch.cat(parts).argsort()]

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores, (batch, speakers).

        Raises:
            ValueError: as `embed`, or a scorer that gives something else.
        """
        scores = self.scorer(self.embed(waveforms, lengths))
        refuse_other_shape("scores", scores, len(waveforms), len(self.scorer.speakers), self.scorer)
        return single_precision(scores)

    def decide(self, scores: Tensor) -> Tensor:
        """The best speaker of (batch, speakers) scores if its score is above the threshold, else `REJECT`."""
        return best_above(scores, self.scorer.threshold)

    def fused(self) -> "Recognizer":
        """The same function in eval mode, as fast as the backbone can be with frozen weights; for an attack."""
        if not hasattr(self.backbone, "fused"):
            return self
        fast = copy.copy(self)  # shares everything but the backbone, the defenses' draws among it
        fast._modules = {**self._modules, "backbone": self.backbone.fused()}  # type: ignore[operator]
        return fast

    def with_gradient(self, name: str) -> "Recognizer":
        """The same function, where `name` stands for the gradient of the defenses that have it among `gradients`.

        Shares everything, the defenses' draws among it.
        """
        other, defenses = copy.copy(self), nn.ModuleList()
        for defense in self.defenses:
            twin = copy.copy(defense)
            if name in defense.gradients:  # type: ignore[operator]
                twin.gradient = name  # type: ignore[assignment]
            defenses.append(twin)
        other._modules = {**self._modules, "defenses": defenses}
        return other

    def with_defenses(self, defenses: Sequence[Defense]) -> "Recognizer":
        """The same front end and backbone behind other defenses.

        A classifier head is shared. Any other scorer is copied: it must be enrolled and calibrated again through the
        new chain.
        """
        scorer = self.scorer if isinstance(self.scorer, ClosedSet) else copy.deepcopy(self.scorer)
        other = Recognizer(self.features, self.backbone, scorer, defenses)
        other.defenses.train(self.training)
        other.training = self.training  # not train(): what is shared keeps its own flags
        return other

    def only(self, speaker: str) -> "Recognizer":
        """The same system for the claim to be one of its enrolled speakers: verification. Shares all but the scorer.

        Raises:
            ValueError: a speaker who is not enrolled, or a classifier head, which has no threshold for a claim.
        """
        if not isinstance(self.scorer, EnrolledScorer):
            raise ValueError(f"Expected enrolled speakers for verification, got a {type(self.scorer).__name__}")
        other = copy.copy(self)
        other._modules = {**self._modules, "scorer": self.scorer.only(speaker)}
        return other


class Ensemble(nn.Module):
    """The mean of the scores of several recognizers, with the gradient of every one.

    Of one recognizer behind several defenses it is SEC4SR's "average" of defenses; of several recognizers it is a
    surrogate for attacks that transfer. Wherever a system is scored, attacked or evaluated it stands for a
    `Recognizer`.

    Args:
        members: recognizers of the same speakers in the same order. Their scores are averaged as they are: bring those
            of different scorers to one scale first.

    Raises:
        ValueError: no member, or members of different speakers.

    Attributes:
        scorer: the members' speakers, and a threshold of the ensemble's own. It starts as the mean of theirs: calibrate
            it on the ensemble's scores.
    """

    def __init__(self, members: Sequence[Recognizer]) -> None:
        super().__init__()
        if not members:
            raise ValueError("Expected at least one member, got none")
        speakers = members[0].scorer.speakers
        for index, member in enumerate(members):
            if member.scorer.speakers != speakers:
                raise ValueError(f"Expected members of the same speakers, but member {index} has others than member 0")
        self.members = nn.ModuleList(members)
        self.scorer = Scorer(speakers)
        self.scorer.threshold = torch.stack([member.scorer.threshold for member in members]).mean(0)

    @property
    def defenses(self) -> list[Defense]:
        """The defenses of all members."""
        return [defense for member in self.members for defense in member.defenses]  # type: ignore[union-attr]

    @property
    def minimum_samples(self) -> int:
        """Samples of the shortest utterance that every member can score."""
        return self._strictest.minimum_samples

    @property
    def _strictest(self) -> Recognizer:
        """The member that needs the longest utterances."""
        return max(self.members, key=lambda member: member.minimum_samples)  # type: ignore[arg-type, return-value]

    @property
    def randomized(self) -> bool:
        """Whether two calls on the same waveform may differ."""
        return any(member.randomized for member in self.members)

    def seed(self, seed: int) -> None:
        """Restart the generators of every member, each with a seed of its own."""
        for index, member in enumerate(self.members):
            member.seed(key(seed, index) >> 1)  # type: ignore[operator]  # a chain counts up from its seed

    def check(self, waveforms: Tensor, lengths: Tensor | None = None, names: Sequence[str] | None = None) -> None:
        """Refuse what a member can't score, as `Recognizer.check` does."""
        self._strictest.check(waveforms, lengths, names)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean scores, (batch, speakers)."""
        return torch.stack([member(waveforms, lengths) for member in self.members]).mean(0)

    def decide(self, scores: Tensor) -> Tensor:
        """The best speaker of (batch, speakers) scores if its score is above the threshold, else `REJECT`."""
        return best_above(scores, self.scorer.threshold)

    def fused(self) -> "Ensemble":
        """The same function in eval mode with frozen weights, of the members' fused forms; for an attack."""
        fast = copy.copy(self)
        members = nn.ModuleList(member.fused() for member in self.members)  # type: ignore[operator]
        fast._modules = {**self._modules, "members": members}
        return fast

    def with_gradient(self, name: str) -> "Ensemble":
        """The same function, of the members of `Recognizer.with_gradient`."""
        other = copy.copy(self)
        members = nn.ModuleList(member.with_gradient(name) for member in self.members)  # type: ignore[operator]
        other._modules = {**self._modules, "members": members}
        return other

    def with_defenses(self, defenses: Sequence[Defense]) -> "Ensemble":
        """The same members, each behind its own copy of other defenses; scorers as in `Recognizer.with_defenses`."""
        members = [member.with_defenses(copy.deepcopy(list(defenses))) for member in self.members]  # type: ignore[operator]
        return self.with_members(members)

    def with_members(self, members: Sequence[Recognizer]) -> "Ensemble":
        """Other members, with this ensemble's threshold and in its mode."""
        other = Ensemble(members)
        other.scorer.load_state_dict(self.scorer.state_dict())
        other.training = other.members.training = other.scorer.training = self.training
        return other
