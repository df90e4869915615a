"""What a campaign asks beside the attacks, so that the sentinel can doubt them: cheap, and part of the records."""

from torch import Tensor

from sec4sr_pl.attacks import NES, Attack, Objective
from sec4sr_pl.attacks.gradient import attack_loss
from sec4sr_pl.attacks.source import BackPropagation
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.types import Batch


def white_box(attack: Attack) -> bool:
    """Whether an attack sees gradients."""
    return "gradient" in attack.knowledge and not isinstance(getattr(attack, "source", None), NES)


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
