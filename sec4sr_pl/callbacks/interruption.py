"""A training that is told to stop keeps what it has."""

import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException


def validation_follows(trainer: Trainer) -> bool:
    """Whether this step is the last before a validation: a resume from here would leave that out."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` at the end of each validation, which Lightning's own does only together with a best one.

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
        """After so many steps, unless a validation follows."""
        if not validation_follows(trainer):
            super().on_train_batch_end(trainer, *arguments)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a validation."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class StopOnSigterm(Checkpoint):
    """On SIGTERM: end the step, write `last.ckpt` where checkpoints are kept, stop.

    A signal to any process stops all of them at the same step, which costs a boolean all-reduce at each. Where
    validation follows, that and one more step come first. As a `Checkpoint` it is called after all other callbacks,
    such as weight averaging, have seen the step.
    """

    def __init__(self) -> None:
        self.received = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def _listen(self) -> None:
        """Instead of Lightning, whose handler talks to other processes wherever it interrupts; it cleans up for us."""

        def note(*_: Any) -> None:
            self.received = True

        signal.signal(signal.SIGTERM, note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop where a resume can begin: between two steps of the optimizer.

        Raises:
            SIGTERMException: after the checkpoint is written.
        """
        if not trainer.strategy.reduce_boolean_decision(self.received, all=False):
            return
        if trainer.fit_loop._should_accumulate() or validation_follows(trainer):
            return
        message = f"stopped by SIGTERM after step {trainer.global_step}"
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder is not None:
            path = Path(folder) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
            trainer.save_checkpoint(path)
            message += f": resume with --ckpt_path {path}"
        raise SIGTERMException(message)
