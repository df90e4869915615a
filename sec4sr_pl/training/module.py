"""The LightningModule: the objective of a recognizer and a batch, logged."""

import copy
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from sec4sr_pl.checkpoint import CheckpointError, describe, load_recognizer
from sec4sr_pl.draws import key
from sec4sr_pl.metrics import Fraction
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import CosineClosedSet
from sec4sr_pl.training.finite import FiniteLoss, check_weights
from sec4sr_pl.training.objectives import Standard, TrainingObjective
from sec4sr_pl.training.resume import KEY, check_resume, check_training_lengths, facts, lengths
from sec4sr_pl.types import Batch
from sec4sr_pl.weights import check_finite

FINDERS = (LearningRateFinder, BatchSizeFinder)
SchedulerCallable = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, training steps in all) -> learning-rate schedule, stepped at every training step."""


class OneCycle(OneCycleLR):
    """One rise and fall of the learning rate over the whole training.

    Args:
        optimizer: whose learning rate moves.
        total_steps: steps of the training; filled in by the trainer.
        max_lr: highest learning rate.
        rise: fraction of the steps in which it rises.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, max_lr: float, rise: float = 0.3) -> None:
        super().__init__(optimizer, max_lr, total_steps=total_steps, pct_start=rise)


class SpeakerModule(LightningModule):
    """Trains a recognizer by an objective.

    Args:
        recognizer: what is trained, and rebuilt from a checkpoint alone by `load_recognizer`.
        objective: plain or adversarial; default: `Standard`.
        optimizer: parameters -> optimizer.
        scheduler: (optimizer, total steps) -> schedule; None: a constant learning rate.
        weights: checkpoint whose weights training starts from (fine-tuning); of other speakers all but the scorer's.
        seed: of all draws of a training step.

    Raises:
        ValueError: a margin on scores that are no cosines.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        objective: TrainingObjective | None = None,
        optimizer: OptimizerCallable = Adam,
        scheduler: SchedulerCallable | None = None,
        weights: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.objective = Standard() if objective is None else objective
        if self.objective.margin is not None and not isinstance(recognizer.scorer, CosineClosedSet):
            raise ValueError(
                f"Expected the scorer CosineClosedSet for a margin, got {type(recognizer.scorer).__name__}: "
                "a margin is taken from cosines"
            )
        self.optimizer, self.scheduler = optimizer, scheduler
        self.weights, self.seed = weights, seed
        self.configuration: dict[str, Any] | None = None
        self.finite = FiniteLoss()
        self.resumed: dict[str, Any] = {}
        self.lengths: dict[str, int | None] = {}
        self.benign_accuracy = Fraction()
        self.adversarial_accuracy = Fraction()
        self.development_accuracy = Fraction()

    def setup(self, stage: str) -> None:
        """Connect the data's labels to the recognizer's speakers; fetch initial weights.

        Raises:
            ValueError: a precision that rounds the waveform itself, crops too short for the recognizer, or a callback
                that would search what the configuration tells.
            CheckpointError: as `start_from`.
            TypeError: a recognizer that no checkpoint could describe.
        """
        describe(self.recognizer)
        if self.trainer.precision in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"):
            raise ValueError(
                f"Precision {self.trainer.precision} rounds the waveform more coarsely than an attack changes it: "
                "use bf16-mixed, 16-mixed or 32-true"
            )
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        finders = [type(callback).__name__ for callback in callbacks if isinstance(callback, FINDERS)]
        if finders:
            raise ValueError(
                f"{finders[0]} can't be used: learning rate and batch size are arguments of optimizer and data, under "
                "a schedule over the whole training: compare short trainings with other values of "
                "--model.optimizer.init_args.lr or --data.batch_size"
            )
        connect = getattr(self.trainer.datamodule, "connect", None)  # type: ignore[attr-defined]
        if connect is not None:
            connect(self.recognizer.scorer.speakers)
        crop = getattr(self.trainer.datamodule, "crop_samples", None)  # type: ignore[attr-defined]
        if crop is not None and crop < self.recognizer.minimum_samples:
            raise ValueError(f"Expected crops of at least {self.recognizer.minimum_samples} samples, got {crop}")
        if stage == "fit" and self.weights is not None and self.trainer.ckpt_path is None:  # a resume has weights
            self.start_from(self.weights)

    def start_from(self, weights: Path) -> None:
        """Take a checkpoint's weights; of one that knows other speakers, all but its scorer's.

        Raises:
            CheckpointError: another front end or backbone, or the same speakers in another order.

        Warns:
            UserWarning: other speakers.
        """
        trained, speakers = load_recognizer(weights), self.recognizer.scorer.speakers
        state = trained.state_dict()
        if trained.scorer.speakers != speakers:
            if set(trained.scorer.speakers) == set(speakers):
                raise CheckpointError(f"{weights} knows the speakers of the data in another order: it is of other data")
            rank_zero_warn(
                f"{weights} knows {len(trained.scorer.speakers)} speakers, the data have {len(speakers)} others: its "
                "front end and backbone are taken, and the scorer starts anew"
            )
            state = {name: value for name, value in state.items() if not name.startswith("scorer.")}
            state |= {f"scorer.{name}": value for name, value in self.recognizer.scorer.state_dict().items()}
        try:
            self.recognizer.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{weights} is of another front end, backbone or scorer: {reason[:300]}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "SpeakerModule":
        """A copy for weight averaging; the factories are shared, for the command line's reach the whole trainer."""
        memo |= {id(factory): factory for factory in (self.optimizer, self.scheduler)}
        duplicate = memo[id(self)] = type(self).__new__(type(self))
        duplicate.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return duplicate

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the adversary of each process see the statistics that the first one saves, so that a resume is exact.

        DistributedDataParallel shares them only in the forward pass of training, which comes after the attack.
        """
        self._count_epoch()
        if self.trainer.world_size > 1:
            for module in self.recognizer.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                    for statistics in (module.running_mean, module.running_var):
                        if statistics is not None:
                            torch.distributed.broadcast(statistics, 0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's loss; draws come from (seed, epoch, utterance)."""
        keys = [key(self.seed, self.current_epoch, name) for name in batch.names]
        self.recognizer.seed(key(*keys, "defenses"))
        step = self.objective(self.recognizer, batch, keys)
        self.finite.note(step.loss, self.global_step + 1, batch.names)
        correct = self.recognizer.decide(step.scores) == step.speakers
        losses = cross_entropy(step.scores, step.speakers, reduction="none")
        self.log("train/loss", step.loss, prog_bar=True, batch_size=len(keys))
        self.log("train/attack_passes", torch.as_tensor(step.passes, dtype=torch.float32))
        for name, metric, rows in (
            ("benign", self.benign_accuracy, ~step.adversarial),
            ("adversarial", self.adversarial_accuracy, step.adversarial),
        ):
            metric.update(rows, correct)
            self.log(f"train/loss_{name}", losses.where(rows, 0.0).sum() / rows.sum())
            self.log(f"train/{name}_accuracy", metric, on_step=False, on_epoch=True, batch_size=len(keys))
        return step.loss

    def on_after_backward(self) -> None:
        """Tell of a backbone that can't learn.

        Warns:
            UserWarning: none of its weights that shall be trained got a gradient from the first batch.
        """
        if self.global_step:
            return
        trained = [weight for weight in self.recognizer.backbone.parameters() if weight.requires_grad]
        if trained and all(weight.grad is None for weight in trained):
            rank_zero_warn(
                f"The loss has no gradient for the weights of {type(self.recognizer.backbone).__name__} (computed "
                "under no_grad, detached, or by another library): only what comes after it is trained"
            )

    def _count_epoch(self) -> None:
        """Count the epoch, which Lightning forgets where it goes on from the last step of the one before.

        A resume from a checkpoint of this epoch would else take it for one that is still to come.
        """
        epochs = self.trainer.fit_loop.epoch_progress
        if epochs.total.ready == epochs.total.completed:
            epochs.increment_ready()
            epochs.increment_started()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop where a loss is no number."""
        if self.finite.due(self.trainer):
            self.finite.look(self.trainer)

    def on_validation_start(self) -> None:
        """Spare attacks on what is no number."""
        self.finite.look(self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Benign accuracy on the development part."""
        self.recognizer.check(batch.waveforms, batch.lengths, batch.names)
        self.recognizer.seed(key(self.seed, *batch.names))
        scores = self.recognizer(batch.waveforms, batch.lengths)
        if unscored := list(compress(batch.names, (~scores.isfinite().all(1)).tolist())):
            raise ValueError(f"Expected finite scores in the validation, got others of {', '.join(unscored)}")
        correct = self.recognizer.decide(scores) == batch.speakers
        self.development_accuracy.update(torch.ones_like(correct), correct)
        self.log("development/accuracy", self.development_accuracy, prog_bar=True, batch_size=len(batch.names))

    def configure_optimizers(self) -> Any:
        """The optimizer, and a schedule over the steps of the whole training."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("A schedule over the whole training needs its length: set max_epochs or max_steps")
        scheduler = self.scheduler(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the recognizer's description beside its weights, and what a resume compares; keep no NaN."""
        self.finite.look(self.trainer)
        check_weights(self, self.trainer)
        checkpoint["recognizer"] = describe(self.recognizer)
        checkpoint[KEY] = facts(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another training's checkpoint, or one of NaN."""
        check_finite(checkpoint["state_dict"])
        if self._trainer is not None:
            check_resume(self, checkpoint)
            self.resumed = {name: checkpoint[name] for name in (KEY, "lr_schedulers") if name in checkpoint}

    def on_fit_start(self) -> None:
        """Likewise, now that the length of the training is known."""
        self.lengths = lengths(self.trainer)  # as it begins: callbacks may change how many batches are a step
        check_training_lengths(self, self.resumed)
        self.resumed = {}
