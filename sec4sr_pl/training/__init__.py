"""The LightningModule, and the objectives it can pursue."""

from sec4sr_pl.training.module import OneCycle, SpeakerModule
from sec4sr_pl.training.objectives import AWP, AdversarialTraining, Standard, Step, TrainingObjective

__all__ = ["AWP", "AdversarialTraining", "OneCycle", "SpeakerModule", "Standard", "Step", "TrainingObjective"]
