"""A training whose loss or weights are no numbers any more stops before it keeps them."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn


class DivergenceError(ValueError):
    """The loss or the weights of a training became NaN or infinite."""


class FiniteLoss:
    """Notes on its device whether a loss was finite, and looks at its notes from time to time.

    A look makes the host wait for the device, and several processes for each other; between two, the losses of an
    accelerator are computed without.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []
        self.first: Tensor | None = None

    def note(self, loss: Tensor, step: int, names: list[str]) -> None:
        """Note the loss of a batch.

        Args:
            loss: ().
            step: of the optimizer, which it belongs to; the first is 1.
            names: utterances of the batch.
        """
        none = torch.full_like(loss, len(self.seen) + 1).where(~loss.detach().isfinite(), torch.inf)
        self.first = none if self.first is None else torch.minimum(self.first, none)
        self.seen.append((step, names))

    def due(self, trainer: Any) -> bool:
        """Whether to look after this step: always where it costs nothing, else as often as metrics are logged."""
        free = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
        return bool(free or trainer.global_step % (trainer.log_every_n_steps or 50) == 0)

    def look(self, trainer: Trainer) -> None:
        """Look at all that was noted since the last look, on all processes at the same step.

        Raises:
            DivergenceError: on all processes, with the first step whose loss was not finite, and its utterances.
        """
        if self.first is None:
            return
        first, seen = self.first, self.seen
        self.seen, self.first = [], None
        index = trainer.strategy.reduce(first.clone(), reduce_op="min")
        if bool(index.isfinite()):
            told = torch.full_like(first, trainer.global_rank).where(first == index, torch.inf)
            source = int(trainer.strategy.reduce(told, reduce_op="min"))
            step, names = trainer.strategy.broadcast(seen[int(index) - 1], src=source)
            raise DivergenceError(
                f"The loss is no finite number at step {step}, whose utterances are {', '.join(names)}{advice(trainer)}"
            )


def advice(trainer: Trainer) -> str:
    """What is left, and what may help."""
    kept = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
    last = next((path for path in kept if path and Path(path).is_file()), None)
    left = "no checkpoint was kept before" if last is None else f"{last}, from before, is as it was"
    return f": {left}. A lower learning rate or --trainer.gradient_clip_val may help, or a look at these utterances"


def check_weights(module: nn.Module, trainer: Any) -> None:
    """Look at all weights and statistics before they are kept.

    Raises:
        DivergenceError: one is NaN, or a weight infinite.
    """
    bad = [~weight.detach().isfinite().all() for weight in module.parameters()]
    bad += [
        buffer.isnan().any() for buffer in module.buffers() if buffer.is_floating_point()
    ]  # a threshold may be -inf
    if bad and bool(torch.stack(bad).any()):
        raise DivergenceError(
            f"The weights are no finite numbers after step {trainer.global_step}, whose loss was finite"
            f"{advice(trainer)}"
        )
