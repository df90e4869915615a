"""What watches a training: validation under attack, schedules, what trackers show, and a clean stop."""

from sec4sr_pl.callbacks.interruption import LastCheckpoint, StopOnSigterm
from sec4sr_pl.callbacks.tracking import AudioTable, Throughput, WandbRun
from sec4sr_pl.callbacks.validation import EpsilonSchedule, RobustValidation

__all__ = [
    "AudioTable",
    "EpsilonSchedule",
    "LastCheckpoint",
    "RobustValidation",
    "StopOnSigterm",
    "Throughput",
    "WandbRun",
]
