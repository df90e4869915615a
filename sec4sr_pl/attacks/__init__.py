"""Attacks on a score function, and the goals they pursue."""

from sec4sr_pl.attacks.adaptive import Adaptive
from sec4sr_pl.attacks.apgd import APGD, TargetedAPGD
from sec4sr_pl.attacks.autoattack import AutoAttack
from sec4sr_pl.attacks.base import Attack, AttackResult, Score
from sec4sr_pl.attacks.cw2 import CW2
from sec4sr_pl.attacks.fakebob import FAKEBOB
from sec4sr_pl.attacks.gradient import FGSM, PGD, CWinf
from sec4sr_pl.attacks.minimal import FMN
from sec4sr_pl.attacks.noise import UniformNoise
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import NES, BackPropagation, GradientSource
from sec4sr_pl.attacks.square import Square
from sec4sr_pl.attacks.worst import WorstCase

__all__ = [
    "APGD",
    "CW2",
    "FAKEBOB",
    "FGSM",
    "FMN",
    "NES",
    "PGD",
    "Adaptive",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BackPropagation",
    "CWinf",
    "GradientSource",
    "Objective",
    "Score",
    "Square",
    "TargetedAPGD",
    "UniformNoise",
    "WorstCase",
]
