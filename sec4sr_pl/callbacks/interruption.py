"""A training that is told to stop, or ends, keeps what it has."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from sec4sr_pl.processes import unobserved


def validation_follows(trainer: Trainer) -> bool:
    """Whether this step is the last before a validation: a resume from here would leave that out."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def last_step(trainer: Trainer) -> bool:
    """Whether training ends with this step."""
    loop = trainer.fit_loop
    last_epoch = loop.max_epochs is not None and trainer.current_epoch + 1 == loop.max_epochs
    steps = 0 <= loop.max_steps <= trainer.global_step
    return trainer.should_stop or steps or (last_epoch and loop.epoch_loop._num_ready_batches_reached())


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` at the end of each validation, which Lightning's own does only together with a best one.

    Also after the last step of a training that ends between two validations.

    Args:
        dirpath: folder; default: where the first logger writes.
        every_n_train_steps: also after so many steps.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """After so many steps, and after the last one, unless a validation follows."""
        if validation_follows(trainer):
            return
        super().on_train_batch_end(trainer, *arguments)
        if last_step(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a validation."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a training that an epoch's end stopped."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Unless this step is saved."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class SIGINTException(Exception):  # noqa: N818  named as Lightning's
    """Ctrl-C, after the step was ended."""


class StopOnSignal(Checkpoint):
    """On SIGTERM or Ctrl-C: end the step, write `last.ckpt` where checkpoints are kept, stop.

    Ctrl-C again stops at once. A signal to any process stops all of them at the same step and with its status, for
    which they share one number at each. Where validation follows, that and one more step come first. As a `Checkpoint`
    it is called after all other callbacks, such as weight averaging, have seen the step.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def _listen(self) -> None:
        """Instead of Lightning, whose handler talks to other processes wherever it interrupts; it cleans up for us."""

        def note(number: int, *_: Any) -> None:
            if number == signal.SIGINT and number in self.received:
                raise KeyboardInterrupt
            self.received.add(number)
            if number == signal.SIGINT:
                os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once\n")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop where a resume can begin: between two steps of the optimizer.

        Raises:
            SIGTERMException: after the checkpoint is written.
            SIGINTException: likewise, after Ctrl-C.
        """
        asked = max(self.received, default=0)  # SIGTERM is above SIGINT
        if trainer.world_size > 1:
            own = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(own, reduce_op="max"))
        if not asked or trainer.fit_loop._should_accumulate() or validation_follows(trainer):
            return
        message = f"stopped by {signal.Signals(asked).name} after step {trainer.global_step}"
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder is not None:
            path = Path(folder) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
            trainer.save_checkpoint(path, weights_only=False)
            message += f": resume with --ckpt_path {path}"
        unobserved()  # loggers may now take longer than the other processes
        raise (SIGINTException if asked == signal.SIGINT else SIGTERMException)(message)
