"""What is left of a success once it is a file of 16 bits."""

import torch
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows


def as_written(adversarial: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """(batch, time), each row rounded to 16 bits inside the ball if its original is so. Synchronizes an accelerator."""
    rows = zip(adversarial, original, strict=True)
    written = [audio.round_inside_ball(own, clean, epsilon) if audio.on_grid(clean) else own for own, clean in rows]
    return torch.stack(written) if written else adversarial


def lasting(
    achieved: Tensor, adversarial: Tensor, rows: Rows, epsilon: float, objective: Objective, draws: int
) -> Tensor:
    """Which of the (rows,) successes last when (rows, time) waveforms are written, in every draw.

    An attack that stops as soon as it succeeds ends a hair beyond the border, where rounding may undo it. Asks one row
    a draw for each success that rounding changes, and synchronizes an accelerator.
    """
    chosen = achieved.nonzero().squeeze(1)
    if not len(chosen):
        return achieved
    written = as_written(adversarial[chosen], rows.clean[chosen], epsilon)
    changed = (written != adversarial[chosen]).any(1)
    written, chosen = written[changed], chosen[changed]
    if not len(chosen):
        return achieved
    score = rows.score.only(chosen)
    margins = [objective.loss(score(written, rows.lengths[chosen]), rows.labels[chosen]) for _ in range(draws)]
    return achieved.index_put((chosen,), (torch.stack(margins) < 0.0).all(0))
