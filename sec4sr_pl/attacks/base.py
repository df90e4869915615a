"""The contract of an attack: a final call that validates, borrows the model, projects and re-measures."""

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from sec4sr_pl.attacks.memory import Cost
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.types import full_lengths, mask_padding, single_precision

Score = Callable[[Tensor, Tensor], Tensor]
"""(waveforms, lengths) -> (batch, speakers) scores: all that an attack sees of a model."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""What random draws come from: the global generator, one, or one for each row, whatever its batch mates."""


class AttackResult(NamedTuple):
    """What an attack returns."""

    waveforms: Tensor
    """(batch, time) detached, inside the budget and [-1, 1]; more time only after an attack that makes it longer."""
    lengths: Tensor
    """(batch,) valid samples."""
    achieved: Tensor
    """(batch,) bool, re-measured with one fresh draw; all False when not measured."""
    queries: Tensor
    """(batch,) int64 forward rows spent on each utterance; not the one row that tells how many speakers there are."""


CACHED_SAMPLES = 2**20
"""Samples a CPU works on at a time: 32 rows of 2 s, whose activations stay in its cache."""


@contextmanager
def borrowed(score: Score) -> Iterator[Score]:
    """A module in eval mode with frozen weights for the time of the block; every flag is given back as it was.

    Yields what to attack: the module's faster form of the same function (its method `fused`), if it has one.
    """
    if not isinstance(score, nn.Module):
        yield score
        return
    modes = [(module, module.training) for module in score.modules()]
    trainable = [parameter for parameter in score.parameters() if parameter.requires_grad]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield score.fused() if hasattr(score, "fused") else score  # type: ignore[operator]
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


class CountedScore:
    """A score function that counts what it is asked: one row an utterance at each call, or as many copies as it gets.

    A module is told of no lengths where there is no padding: it then spends no time on masks.
    """

    def __init__(self, score: Score, batch: Tensor, masked: bool) -> None:
        self.score, self.masked = score, masked
        self.queries = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        self.broken, self.unscored = torch.zeros(2, len(batch), dtype=torch.bool, device=batch.device)
        self.rows: Tensor | slice = slice(None)
        self.size = len(batch)
        self.cost = Cost()

    def only(self, rows: Tensor) -> "CountedScore":
        """The same function of the utterances at (count,) positions; what they are asked is counted here too."""
        other = copy.copy(self)
        other.rows = rows if isinstance(self.rows, slice) else self.rows[rows]
        other.size = len(rows)
        return other

    def of(self, form: Callable[[Any], Score]) -> "CountedScore":
        """Another form of the recognizer, whose answers are counted here too.

        Raises:
            ValueError: what is attacked is no recognizer.
        """
        if not hasattr(self.score, "with_gradient"):
            raise ValueError(f"Expected a recognizer, whose defenses are known, got {type(self.score).__name__}")
        return self.on(form(self.score))

    def on(self, score: Score) -> "CountedScore":
        """Another score function, whose answers are counted here too."""
        other = copy.copy(self)
        other.score = score
        return other

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the utterances in order, or of several copies of the batch one after the other."""
        copies = len(waveforms) // max(1, self.size)
        self.queries[self.rows] += copies
        told = self.masked or not isinstance(self.score, nn.Module)
        theirs = not hasattr(self.score, "fused")
        given = waveforms.clone() if theirs else waveforms  # somebody else's may write into it
        try:
            with self.cost.measured(waveforms):
                scores = self.score(given, lengths) if told else self.score(given)  # type: ignore[call-arg]
        except Exception as error:
            if not theirs or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"Expected a score function of {tuple(waveforms.shape)} waveforms and {tuple(lengths.shape)} lengths, "
                f"which is called as score({'waveforms, lengths' if told else 'waveforms'}); it failed: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(waveforms):
            came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"Expected (batch, speakers) scores of {len(waveforms)} waveforms, whatever their number, got {came}"
            )
        if not scores.is_floating_point():
            raise ValueError(f"Expected floating-point scores, got {scores.dtype}: scores, not decisions")
        scores = single_precision(scores.to(waveforms.device))
        self.unscored[self.rows] |= ~scores.isfinite().all(1).reshape(copies, self.size).all(0)
        return scores

    def note(self, gradient: Tensor) -> None:
        """Remember whose (batch, time) gradients are not finite, without looking at them yet."""
        self.broken[self.rows] |= ~gradient.isfinite().all(1)


class Attack(ABC):
    """An adversary. The caller uses the call; a subclass writes `perturb`."""

    epsilon: float
    """Largest change of a sample, as a fraction of full scale; inf for attacks without such a budget."""
    separable: ClassVar[bool] = True
    """Each row is attacked by itself, so that a large batch may be worked through in parts."""
    queries_victim: ClassVar[bool] = True
    """It asks the recognizer while it crafts."""
    stops_at_success: ClassVar[bool] = False
    """An utterance leaves as soon as it achieves the goal; not so where a wrapped attack works for another decision."""
    distance: ClassVar[str] = "L∞"
    """How it measures a change. This and what follows is what the table in docs/attacks.md says of a class."""
    bounded: ClassVar[bool] = True
    """Something limits the change: epsilon, or a budget of its own."""
    knowledge: ClassVar[str] = "gradient"
    """What it is told of the recognizer: gradient, scores, ..."""
    tasks: ClassVar[str] = "all"
    returns: ClassVar[str] = "lowest margin"
    randomized: ClassVar[str] = ""
    """What adapts it to a randomized recognizer; empty: the parameter `draws`, where it has one."""

    @property
    def name(self) -> str:
        """A short name for tables and folders."""
        return type(self).__name__

    @property
    def identity(self) -> str:
        """What tells its results from another's: its parameters, and in some subclasses the content of files."""
        given = self.settings().values()
        values = [value for each in given for value in (each if isinstance(each, list | tuple) else [each])]
        return " ".join([repr(self), *(value.identity for value in values if isinstance(value, Attack))])

    @property
    def gradient_draws(self) -> int:
        """Draws of a randomized recognizer behind each step (EOT)."""
        return int(getattr(self, "draws", 1))

    @final
    def __call__(
        self,
        score: Score,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor | None = None,
        objective: Objective | None = None,
        generator: Generators = None,
        measure: bool = True,
    ) -> AttackResult:
        """Perturb (batch, time) waveforms so that `objective` is achieved for (batch,) labels.

        Works in training, validation and inference mode. A module comes back with every flag, statistic and gradient
        as it was; a plain function is taken as it is.

        Args:
            score: a recognizer, or any function (waveforms, lengths) -> scores.
            waveforms: (batch, time) in [-1, 1].
            labels: (batch,) what to leave or, targeted, to reach.
            lengths: (batch,) valid samples; None: all.
            objective: the goal; default: leave the label in a closed set.
            generator: of the attack's random draws; or one for each row, whose draws then depend on it alone.
            measure: False skips validation of the values and the final measurement, which synchronize a GPU (training).

        Raises:
            ValueError: shapes that do not fit, values outside [-1, 1], NaN, or labels without meaning; a score function
                that fails, gives other than (batch, speakers) finite scores, or no gradient where the
                attack follows one.

        Warns:
            UserWarning: gradients that were not finite.
        """
        objective = Objective() if objective is None else objective
        with torch.inference_mode(False), torch.no_grad(), borrowed(score) as fast:
            original = waveforms.detach().clone()
            check(original, labels, lengths, values=measure)
            labels = labels.clone()
            valid = full_lengths(original) if lengths is None else lengths.clone()
            masked = lengths is not None
            if measure and len(original):
                objective.check(labels, CountedScore(score, original[:1], masked)(original[:1], valid[:1]).shape[1])
            broken = torch.zeros_like(labels, dtype=torch.bool)
            presented, total = self.present(original, valid)
            result = AttackResult(
                torch.empty_like(presented), total, torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(valid)
            )
            for rows in self.parts(original):
                clean, own = original[rows], generator[rows] if isinstance(generator, Sequence) else generator
                counted = CountedScore(fast, clean, masked)
                adversarial = self.perturb(counted, clean, labels[rows], valid[rows], objective, own)
                low, high = (clean - self.epsilon).clamp_min(-1.0), (clean + self.epsilon).clamp_max(1.0)
                within = mask_padding(adversarial.detach().clamp(low, high), valid[rows])
                result.waveforms[rows] = self.present(within, valid[rows])[0]
                if measure:
                    scores = counted.on(score)(result.waveforms[rows], total[rows])
                    if not objective.nonfinite_succeeds:
                        refuse_unscored(counted.unscored, rows.start)
                    result.achieved[rows] = objective.achieved(scores, labels[rows])
                result.queries[rows], broken[rows] = counted.queries, counted.broken
            if measure and bool(broken.any()):
                warnings.warn(
                    f"{self.name} met gradients that are not finite in rows {broken.nonzero().flatten().tolist()}: it "
                    "does not know where to go there",
                    stacklevel=2,
                )
        return result

    def parts(self, waveforms: Tensor) -> list[slice]:
        """The rows that are worked on together: all, or on a CPU as many as its cache holds."""
        batch, time = waveforms.shape
        rows = batch
        if self.separable and waveforms.device.type == "cpu":
            rows = max(1, CACHED_SAMPLES // max(1, time))
        return [slice(first, first + rows) for first in range(0, batch, max(1, rows))]

    @abstractmethod
    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """Adversarial waveforms, (batch, time). Gradients are off; a subclass turns them on where it needs one."""

    def present(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the recognizer hears of (batch, time) waveforms in the ball, and its lengths: the waveforms themselves.

        An attack may make them longer. What it makes of the utterances themselves is what its result is compared with.
        """
        return waveforms, lengths

    def __repr__(self) -> str:
        """The name and the parameters that make it up."""
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.settings().items())})"

    def settings(self) -> dict[str, Any]:
        """The constructor's parameters, which every attack keeps as attributes of the same name."""
        return {key: getattr(self, key) for key in inspect.signature(type(self)).parameters}


class NonFiniteError(ValueError):
    """Scores that can't be compared, in these rows."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"Expected finite scores, got others in rows {rows}: nothing can be said of these utterances")
        self.rows = rows


def refuse_unscored(unscored: Tensor, first: int) -> None:
    """Refuse an attack that met scores which can't be compared: they are neither a success nor a failure.

    An attack that keeps the best point it has seen would else pass them over, as if it had met resistance.

    Args:
        unscored: (batch,) whether an utterance had such scores.
        first: what rows are counted from.

    Raises:
        NonFiniteError: with the rows.
    """
    if bool(unscored.any()):
        raise NonFiniteError([first + row for row in unscored.nonzero().flatten().tolist()])


def check(waveforms: Tensor, labels: Tensor, lengths: Tensor | None, values: bool) -> None:
    """Refuse arguments that do not fit; `values` also looks at the samples and the lengths."""
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        raise ValueError(
            f"Expected (batch, time) floating-point waveforms, got {tuple(waveforms.shape)} {waveforms.dtype}"
        )
    batch, time = waveforms.shape
    if len(labels) != batch:
        raise ValueError(f"Expected a label for each of {batch} waveforms, got {len(labels)} labels")
    if lengths is not None and (lengths.shape != (batch,) or lengths.dtype != torch.int64):
        raise ValueError(f"Expected ({batch},) int64 lengths, got {tuple(lengths.shape)} {lengths.dtype}")
    if not values or not waveforms.numel():
        return
    if not bool((waveforms.abs() <= 1.0).all()):
        raise ValueError(f"Expected samples in [-1, 1], got a largest magnitude of {waveforms.abs().max().item():.6g}")
    if lengths is not None and not bool(((lengths >= 1) & (lengths <= time)).all()):
        raise ValueError(f"Expected lengths from 1 to {time}, got {lengths.min().item()} to {lengths.max().item()}")
