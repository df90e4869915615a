"""Attacks on a score function, and the goals they pursue."""

from sec4sr_pl.attacks.base import Attack, AttackResult, Score
from sec4sr_pl.attacks.gradient import FGSM, PGD, CWinf
from sec4sr_pl.attacks.objective import Objective

__all__ = ["FGSM", "PGD", "Attack", "AttackResult", "CWinf", "Objective", "Score"]
