"""What a campaign asks beside the attacks, so that the sentinel can doubt them: cheap, and part of the records."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sec4sr_pl.attacks import APGD, NES, PGD, Attack, AutoAttack, Objective
from sec4sr_pl.attacks.base import CountedScore, Generators
from sec4sr_pl.attacks.gradient import attack_loss
from sec4sr_pl.attacks.source import BackPropagation, LossOfScores, NoGradientError
from sec4sr_pl.attacks.transformed import Transformed
from sec4sr_pl.defenses import Defense
from sec4sr_pl.draws import kept_generators, seed_generators
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.types import Batch, valid_mask

DISTANCES = (2.0**-17, 2.0**-15, 2.0**-13)
"""How far samples are moved along a gradient: a quarter of, one and four steps of 16-bit audio."""
STEP = 1
"""The place among them of one step."""
RANDOM_DIRECTIONS = 4
WITNESS_STEPS = 20
"""At most so many of an attack without the defenses: more would cost more than they tell."""
SAME = 1e-5
"""Of the largest score: what rounding may change."""
SAME_GRADIENT = 1e-3
"""Of the largest element of a gradient: what accelerators change that add in any order."""
ALONE = 1e-3
"""Of the largest score: what rounding may change where other utterances, or none, are computed beside."""


def layers(attack: Attack) -> list[Attack]:
    """The attack, the one that it wraps, and so on; the last crafts."""
    within = getattr(attack, "attack", getattr(attack, "inner", None))
    return [attack, *layers(within)] if isinstance(within, Attack) else [attack]


def queries_victim(attack: Attack) -> bool:
    """Whether an attack asks the victim while it crafts."""
    return all(layer.queries_victim for layer in layers(attack))


def white_box(attack: Attack) -> bool:
    """Whether an attack sees gradients of the victim."""
    crafts = layers(attack)[-1]
    source = getattr(crafts, "source", None)
    while isinstance(source, Transformed):
        source = source.source
    return queries_victim(attack) and "gradient" in crafts.knowledge and not isinstance(source, NES)


def limited(attack: Attack) -> bool:
    """Whether something limits the change."""
    return layers(attack)[-1].bounded


def ball(attack: Attack) -> float:
    """The radius of the L-infinity ball; inf where a change is measured otherwise, or has no limit."""
    return attack.epsilon if layers(attack)[-1].distance == "L∞" else math.inf


def sourced(attack: Attack) -> bool:
    """Whether an attack is a white box with a budget whose steps follow a gradient source of its own."""
    return white_box(attack) and attack.bounded and "source" in attack.settings()


def onward(attack: Attack) -> PGD | None:
    """What goes on from an attack's result for another tenth of its steps; None where that can't be asked."""
    steps = attack.settings().get("steps", 1)
    more = max(1, steps // 10)
    if isinstance(attack, PGD) and sourced(attack) and steps > 1 and "restarts" in attack.settings():
        return type(attack)(**{**attack.settings(), "steps": more, "restarts": 0})
    if isinstance(attack, APGD | AutoAttack) and white_box(attack):
        step = attack.epsilon / 10.0
        return PGD(attack.epsilon, step, more, draws=attack.gradient_draws, loss="margin")
    return None


class Onward(Attack):
    """Another attack's descent, from (batch, time) waveforms in its ball instead of from the utterances."""

    separable = False

    def __init__(self, attack: PGD, start: Tensor) -> None:
        self.attack, self.start, self.epsilon = attack, start, attack.epsilon

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """Where the descent ends."""
        return self.attack.descend(score, self.start, waveforms, labels, lengths, objective, generator)


def witness(attack: Attack) -> Attack | None:
    """The attack that is crafted without the defenses, to compare with; not stronger than the attack itself.

    None for attacks that are no white box, have no budget, or try the oblivious example themselves.
    """
    if sourced(attack) and "steps" in attack.settings():
        settings = attack.settings()
        return type(attack)(**{**settings, "steps": min(settings["steps"], WITNESS_STEPS)})
    if sourced(attack):
        return attack
    if isinstance(attack, AutoAttack) and white_box(attack):
        return PGD(attack.epsilon, attack.epsilon / 5.0, min(attack.steps, WITNESS_STEPS))
    return None


def without_substitutes(recognizer: Recognizer | Ensemble) -> Recognizer | Ensemble:
    """The recognizer without the defenses for which another gradient stands, which finite differences contradict."""
    if isinstance(recognizer, Ensemble):
        members = [cast(Recognizer, without_substitutes(member)) for member in recognizer.members]  # type: ignore[arg-type]
        return recognizer.with_members(members)
    defenses = cast(Sequence[Defense], recognizer.defenses)
    kept = [defense for defense in defenses if defense.differentiable]
    if len(kept) == len(defenses):
        return recognizer
    return recognizer.with_defenses(kept)


@torch.no_grad()
def repeated(recognizer: Recognizer | Ensemble, batch: Batch) -> bool:
    """Whether two passes over utterances give the same scores, and the same gradients of the best ones.

    Whatever says that it draws starts equally.
    """
    scores, gradients = [], []
    with kept_generators(batch.waveforms.device):
        for draw in range(2):
            recognizer.seed(0)
            seed_generators(draw, batch.waveforms.device)  # the generator of who does not say so
            found = scores_and_gradient_or_zero(recognizer, batch, best)  # by one call
            scores.append(found[0].cpu().double())
            gradients.append(found[1].cpu().double())
    return differ(*scores) <= SAME and differ(*gradients) <= SAME_GRADIENT


def best(scores: Tensor) -> Tensor:
    """The highest of each row's scores, (batch,)."""
    return scores.amax(1)


def differ(first: Tensor, second: Tensor) -> float:
    """The largest difference of scores, as a fraction of the largest score; NaN and infinities equal themselves."""
    different = first.nan_to_num(0.0, 0.0, 0.0) - second.nan_to_num(0.0, 0.0, 0.0)
    largest = first.nan_to_num(0.0, 0.0, 0.0).abs().max()
    if not torch.equal(first.isfinite(), second.isfinite()):
        return math.inf
    return float(different.abs().max() / largest.clamp_min(torch.finfo(largest.dtype).tiny))


@torch.no_grad()
def beside_others(recognizer: Recognizer | Ensemble, batch: Batch) -> float:
    """How much the scores of a batch's shortest utterance differ from those without batch mates and padding."""
    row, length = int(batch.lengths.argmin()), int(batch.lengths.min())
    within = recognizer(batch.waveforms, batch.lengths)[row : row + 1]
    alone = recognizer(batch.waveforms[row : row + 1, :length], batch.lengths[row : row + 1])
    return differ(alone.cpu().double(), within.cpu().double())


def scores_and_gradient_or_zero(
    recognizer: Recognizer | Ensemble, batch: Batch, loss: LossOfScores
) -> tuple[Tensor, Tensor]:
    """Scores and the gradient of each utterance's loss, (batch, time); zero of a recognizer that has none."""
    try:
        return BackPropagation()(recognizer, batch.waveforms, batch.lengths, loss, None)
    except NoGradientError:
        return recognizer(batch.waveforms, batch.lengths), torch.zeros_like(batch.waveforms)


class Slopes(NamedTuple):
    """How the margin changes where an attack goes, beside what the gradient says of it; (batch,) each."""

    ratios: list[Tensor]
    """For each of `DISTANCES`, the central difference along the gradient's sign over what the gradient promises."""
    lift: Tensor
    """How far the margin falls against the gradient's sign, as a multiple of what it changes in a random direction."""


def slopes(recognizer: Recognizer | Ensemble, batch: Batch, objective: Objective, labels: Tensor) -> Slopes:
    """Finite differences of the margin, 16 passes; a randomized recognizer draws the same at each."""

    def start() -> None:
        recognizer.seed(0)
        seed_generators(0, batch.waveforms.device)

    def margin(waveforms: Tensor) -> Tensor:
        start()
        return objective.loss(recognizer(waveforms, batch.lengths), labels).cpu().double()

    start()
    _, gradient = scores_and_gradient_or_zero(recognizer, batch, lambda scores: objective.loss(scores, labels))
    valid = valid_mask(batch.lengths, batch.waveforms.shape[1])
    along, steep = gradient.sign() * valid, gradient.abs().sum(1).cpu().double()
    ratios = [
        (margin(batch.waveforms + h * along) - margin(batch.waveforms - h * along)) / (2.0 * h * steep)
        for h in DISTANCES
    ]
    step, generator, changes = DISTANCES[STEP], torch.Generator().manual_seed(0), []
    for _ in range(RANDOM_DIRECTIONS):
        signs = torch.randint(0, 2, gradient.shape, generator=generator).to(gradient) * 2.0 - 1.0
        away = step * signs * valid
        changes.append((margin(batch.waveforms + away) - margin(batch.waveforms - away)).abs() / 2.0)
    fall = margin(batch.waveforms) - margin(batch.waveforms - step * along)
    return Slopes(ratios, fall / torch.stack(changes).mean(0))


def steepness(recognizer: Recognizer | Ensemble, batch: Batch, objective: Objective, labels: Tensor) -> Tensor:
    """The largest magnitude of each utterance's gradient, (batch,), of the loss that attacks descend by default."""

    def loss(scores: Tensor) -> Tensor:
        return attack_loss(None, objective, scores, labels)

    return scores_and_gradient_or_zero(recognizer, batch, loss)[1].abs().amax(1)
