"""What watches a training: validation under attack and on trials, schedules, what trackers show, a clean stop."""

from sec4sr_pl.callbacks.interruption import LastCheckpoint, StopOnSignal
from sec4sr_pl.callbacks.own_checkpoints import OwnCheckpoints
from sec4sr_pl.callbacks.tracking import AudioTable, LoggedRun, Throughput
from sec4sr_pl.callbacks.validation import EpsilonSchedule, MarginSchedule, RobustValidation
from sec4sr_pl.callbacks.verification import VerificationEER

__all__ = [
    "AudioTable",
    "EpsilonSchedule",
    "LastCheckpoint",
    "LoggedRun",
    "MarginSchedule",
    "OwnCheckpoints",
    "RobustValidation",
    "StopOnSignal",
    "Throughput",
    "VerificationEER",
]
