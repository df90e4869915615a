"""Validation under attack, and schedules."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from sec4sr_pl.attacks import PGD, Attack, Objective
from sec4sr_pl.draws import key
from sec4sr_pl.metrics import (
    AttackSuccessRate,
    Fraction,
    PerceptualEvaluationOfSpeechQuality,
    SignalToNoiseRatio,
    r1_score,
)
from sec4sr_pl.types import Batch


class RobustValidation(Callback):
    """Attack a fixed part of the development set at each validation, on all ranks.

    Logs `robust/benign_accuracy`, `robust/adversarial_accuracy`, `robust/r1` (their harmonic mean),
    `robust/attack_success` (on utterances that were right), `robust/snr` (dB) and `robust/pesq`.

    Args:
        attack: the adversary; default: PGD-10.
        fraction: of the development utterances, chosen by a hash of the name.
        pesq: fraction of these whose PESQ is measured, about 0.1 s each, chosen likewise; 0: none.
        seed: of the attack's draws.
        nonfinite_succeeds: count scores of NaN or infinity as errors and successes of the attack; else they stop it.

    Raises:
        ValueError: fractions outside these ranges.
    """

    def __init__(
        self,
        attack: Attack | None = None,
        fraction: float = 1.0,
        pesq: float = 0.1,
        seed: int = 0,
        nonfinite_succeeds: bool = False,
    ) -> None:
        if not 0.0 < fraction <= 1.0 or not 0.0 <= pesq <= 1.0:
            raise ValueError(f"Expected fraction in (0, 1] and pesq in [0, 1], got {fraction} and {pesq}")
        self.attack = PGD() if attack is None else attack
        self.fraction, self.pesq, self.seed, self.nonfinite_succeeds = fraction, pesq, seed, nonfinite_succeeds
        self.metrics: dict[str, Metric] = {
            "benign_accuracy": Fraction(),
            "adversarial_accuracy": Fraction(),
            "attack_success": AttackSuccessRate(),
            "snr": SignalToNoiseRatio(),
            "pesq": PerceptualEvaluationOfSpeechQuality(),
        }

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the counts anew on the module's device."""
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack the chosen utterances of a batch."""
        chosen = [i for i, name in enumerate(batch.names) if key(name, "robust") < self.fraction * 2**63]
        if not chosen:
            return
        rows = torch.tensor(chosen, device=batch.waveforms.device)
        names = [batch.names[i] for i in chosen]
        waveforms, lengths, speakers = batch.waveforms[rows], batch.lengths[rows], batch.speakers[rows]
        recognizer: Any = pl_module.recognizer
        recognizer.seed(key(self.seed, *names))
        generators = [torch.Generator().manual_seed(key(self.seed, "attack", name)) for name in names]
        objective = Objective(float(recognizer.scorer.threshold), nonfinite_succeeds=self.nonfinite_succeeds)
        result = self.attack(recognizer, waveforms, speakers, lengths, objective, generators)
        benign = ~objective.achieved(recognizer(waveforms, lengths), speakers)
        everyone = torch.ones_like(benign)
        self.metrics["benign_accuracy"].update(everyone, benign)
        self.metrics["adversarial_accuracy"].update(everyone, ~result.achieved)
        self.metrics["attack_success"].update(benign, result.achieved)
        self.metrics["snr"].update(result.waveforms, waveforms, lengths)
        few = [i for i, name in enumerate(names) if key(name, "pesq") < self.pesq * 2**63]
        if few:
            self.metrics["pesq"].update(result.waveforms[few], waveforms[few], lengths[few])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values over all ranks."""
        values = {name: metric.compute() for name, metric in self.metrics.items() if name != "pesq" or self.pesq}
        values["r1"] = r1_score(values["benign_accuracy"], values["adversarial_accuracy"])
        for name, value in values.items():
            shown = name in ("adversarial_accuracy",)
            pl_module.log(f"robust/{name}", value, prog_bar=shown, sync_dist=True)  # already equal on all ranks


class _Rise(Callback):
    """Something of the objective rises linearly from 0 to its full size; where it is follows from the step's number.

    Args:
        warmup: fraction of all training steps in which it rises.
    """

    def __init__(self, warmup: float = 0.3) -> None:
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"Expected warmup in [0, 1], got {warmup}")
        self.warmup = warmup

    def strength(self, trainer: Trainer) -> float:
        """Of the step that begins."""
        rising = self.warmup * trainer.estimated_stepping_batches
        return min(1.0, (trainer.global_step + 1) / rising) if rising > 0 else 1.0


class EpsilonSchedule(_Rise):
    """Let the adversary's budget rise linearly from 0 to its full size.

    Args:
        warmup: fraction of all training steps in which it rises.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the strength of this step from how far training is."""
        objective: Any = pl_module.objective
        objective.strength = self.strength(trainer)
        pl_module.log("train/strength", objective.strength)


class MarginSchedule(_Rise):
    """Let the margin of the loss rise linearly from 0 to its full size.

    Args:
        warmup: fraction of all training steps in which it rises.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by the trainer.

        Raises:
            ValueError: an objective without a margin.
        """
        objective: Any = pl_module.objective
        if objective.margin is None:
            raise ValueError(f"Expected an objective with a margin, got {type(objective).__name__} without")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the margin of this step from how far training is."""
        objective: Any = pl_module.objective
        objective.margin.strength = self.strength(trainer)
        pl_module.log("train/margin", objective.margin.strength * objective.margin.margin)
