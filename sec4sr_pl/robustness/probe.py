"""What a campaign asks beside the attacks, so that the sentinel can doubt them: cheap, and part of the records."""

import math

from torch import Tensor

from sec4sr_pl.attacks import NES, Attack, Objective
from sec4sr_pl.attacks.gradient import attack_loss
from sec4sr_pl.attacks.source import BackPropagation
from sec4sr_pl.attacks.transformed import Transformed
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.types import Batch


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


def probed(attack: Attack) -> bool:
    """Whether an attack is asked more on the first batch: a white box with a budget and without members."""
    return white_box(attack) and attack.bounded and "source" in attack.settings()


def shortened(attack: Attack) -> Attack | None:
    """The same attack without the last tenth of its steps, at least one; None where that can't be asked."""
    settings = attack.settings()
    steps = settings.get("steps", 1)
    if not probed(attack) or steps < 2:
        return None
    return type(attack)(**{**settings, "steps": steps - max(1, steps // 10)})


def steepness(recognizer: Recognizer | Ensemble, batch: Batch, objective: Objective, labels: Tensor) -> Tensor:
    """The largest magnitude of each utterance's gradient, (batch,), of the loss that attacks descend by default."""

    def loss(scores: Tensor) -> Tensor:
        return attack_loss(None, objective, scores, labels)

    _, gradient = BackPropagation()(recognizer, batch.waveforms, batch.lengths, loss, None)
    return gradient.abs().amax(1)
