"""A resume forgets checkpoints that are not its own."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class OwnCheckpoints(Callback):
    """What a checkpoint says of others holds only where they lie in the folder that is written to.

    Lightning would delete, or send to W&B, whatever it names. Of a run whose folder was moved, the best is found anew.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After callbacks are restored."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, where a strategy restores later."""
        for kept in trainer.checkpoint_callbacks:
            if isinstance(kept, ModelCheckpoint):
                named = (kept.best_model_path, kept.kth_best_model_path, kept.last_model_path, *kept.best_k_models)
                if not all(path == "" or lies_in(path, kept.dirpath) for path in named):
                    kept.best_model_path = kept.kth_best_model_path = kept.last_model_path = ""
                    kept.best_k_models, kept.best_model_score = {}, None


def lies_in(path: Any, folder: Any) -> bool:
    """Whether a path, which may be anything, is that of something in the folder or below."""
    return isinstance(path, str) and ".." not in Path(path).parts and Path(str(folder)) in Path(path).parents
