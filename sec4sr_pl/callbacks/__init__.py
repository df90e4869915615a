"""What watches a training: validation under attack and on trials, schedules, what trackers show, a clean stop."""

from sec4sr_pl.callbacks.interruption import LastCheckpoint, StopOnSigterm
from sec4sr_pl.callbacks.own_checkpoints import OwnCheckpoints
from sec4sr_pl.callbacks.tracking import AudioTable, Throughput, WandbRun
from sec4sr_pl.callbacks.validation import EpsilonSchedule, MarginSchedule, RobustValidation
from sec4sr_pl.callbacks.verification import VerificationEER

__all__ = [
    "AudioTable",
    "EpsilonSchedule",
    "LastCheckpoint",
    "MarginSchedule",
    "OwnCheckpoints",
    "RobustValidation",
    "StopOnSigterm",
    "Throughput",
    "VerificationEER",
    "WandbRun",
]
