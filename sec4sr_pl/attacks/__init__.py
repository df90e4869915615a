"""Attacks on a score function, and the goals they pursue."""

from sec4sr_pl.attacks.adaptive import Adaptive
from sec4sr_pl.attacks.apgd import APGD, TargetedAPGD
from sec4sr_pl.attacks.autoattack import AutoAttack
from sec4sr_pl.attacks.base import Attack, AttackResult, Score
from sec4sr_pl.attacks.channel import Channel, OverTheAirPGD
from sec4sr_pl.attacks.cw2 import CW2
from sec4sr_pl.attacks.fakebob import FAKEBOB
from sec4sr_pl.attacks.gradient import FGSM, PGD, CWinf
from sec4sr_pl.attacks.kenansville import Kenansville
from sec4sr_pl.attacks.l2 import L2PGD, SNRPGD
from sec4sr_pl.attacks.minimal import FMN
from sec4sr_pl.attacks.momentum import MIFGSM
from sec4sr_pl.attacks.noise import UniformNoise
from sec4sr_pl.attacks.objective import Claim, Objective
from sec4sr_pl.attacks.psychoacoustic import PsychoacousticPGD
from sec4sr_pl.attacks.replicate import Replicate
from sec4sr_pl.attacks.siren import SirenAttack
from sec4sr_pl.attacks.source import NES, BackPropagation, GradientSource
from sec4sr_pl.attacks.square import Square
from sec4sr_pl.attacks.threshold import AssumedThreshold, ThresholdEstimate, estimate_threshold
from sec4sr_pl.attacks.transformed import InputDiversity
from sec4sr_pl.attacks.universal import UniversalPerturbation
from sec4sr_pl.attacks.worst import WorstCase

__all__ = [
    "APGD",
    "CW2",
    "FAKEBOB",
    "FGSM",
    "FMN",
    "L2PGD",
    "MIFGSM",
    "NES",
    "PGD",
    "SNRPGD",
    "Adaptive",
    "AssumedThreshold",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BackPropagation",
    "CWinf",
    "Channel",
    "Claim",
    "GradientSource",
    "InputDiversity",
    "Kenansville",
    "Objective",
    "OverTheAirPGD",
    "PsychoacousticPGD",
    "Replicate",
    "Score",
    "SirenAttack",
    "Square",
    "TargetedAPGD",
    "ThresholdEstimate",
    "UniformNoise",
    "UniversalPerturbation",
    "WorstCase",
    "estimate_threshold",
]
