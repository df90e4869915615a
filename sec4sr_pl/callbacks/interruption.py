"""A training that is told to stop keeps what it has."""

import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException


class StopOnSigterm(Checkpoint):
    """On SIGTERM: end the step, write `last.ckpt` where checkpoints are kept, stop.

    A signal to any process stops all of them at the same step. One that comes during validation waits for its end.
    As a `Checkpoint` it is called after all other callbacks, such as weight averaging, have seen the step.
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
        if trainer.fit_loop._should_accumulate():
            return
        message = f"stopped by SIGTERM after step {trainer.global_step}"
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder is not None:
            path = Path(folder) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
            trainer.save_checkpoint(path)
            message += f": resume with --ckpt_path {path}"
        raise SIGTERMException(message)
