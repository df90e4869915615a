"""AutoAttack: the worst that several attacks without parameters to tune can do to each utterance."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from sec4sr_pl.attacks.apgd import APGD, TargetedAPGD
from sec4sr_pl.attacks.base import Attack
from sec4sr_pl.attacks.gradient import AnyLoss
from sec4sr_pl.attacks.minimal import FMN
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.square import Square
from sec4sr_pl.attacks.worst import WorstCase
from sec4sr_pl.types import full_lengths


class AutoAttack(WorstCase):
    """The worst of several attacks for each utterance, in the L-infinity ball; nothing to tune but the ball.

    Members work in order, each on the utterances still standing. Auto-PGD descends cross-entropy in a closed set, the
    margin in every task, and DLR in a closed set of three or more speakers. For "rand", for randomized recognizers,
    this is all, with draws at each step. "standard" goes on with the minimum-norm attack, Auto-PGD toward the likeliest
    other decisions, and the one-dimensional Square attack. `WorstCase` says when an utterance has fallen. Host
    synchronizations: two a member beside the members' own.

    Args:
        epsilon: radius of the ball, as a fraction of full scale; of every member.
        version: "standard" or "rand".
        steps: gradients of each run of a member.
        queries: candidates of the Square attack.
        draws: fresh draws by which results are compared, and, for "rand", gradients averaged at each step; None: 1 for
            "standard", 20 for "rand".
        members: other attacks, in order.

    Raises:
        ValueError: a parameter outside its range, no member, or one with a larger ball.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, with `FMN` in the place of FAB.
    """

    knowledge, randomized = "gradient and scores", '`version="rand"`'

    def __init__(
        self,
        epsilon: float = 0.002,
        version: Literal["standard", "rand"] = "standard",
        steps: int = 100,
        queries: int = 5_000,
        draws: int | None = None,
        members: Sequence[Attack] | None = None,
    ) -> None:
        if version not in ("standard", "rand"):
            raise ValueError(f"Expected version 'standard' or 'rand', got {version!r}")
        if not 0.0 <= epsilon <= 2.0:
            raise ValueError(f"Expected epsilon in [0, 2], got {epsilon}")
        if steps < 1 or queries < 1 or (draws is not None and draws < 1):
            raise ValueError(f"Expected steps, queries, draws >= 1, got {steps}, {queries} and {draws}")
        self.epsilon, self.version, self.steps, self.queries = epsilon, version, steps, queries
        self.draws = draws if draws is not None else 20 if version == "rand" else 1
        self.members = None if members is None else list(members)
        if members is not None and (not members or any(not member.epsilon <= epsilon for member in members)):
            raise ValueError(f"Expected members with a ball of at most {epsilon}, got {members}")
        if longer := [member for member in members or () if lengthens(member)]:
            raise ValueError(f"Expected members that leave the length of an utterance as it is, got {longer}")

    @property
    def name(self) -> str:
        """AutoAttack, and what differs from the defaults."""
        marks: list[str] = [self.version] * (self.version != "standard")
        marks += [f"{self.steps}x{self.queries}"] * ((self.steps, self.queries) != (100, 5_000))
        marks += [f"EOT{self.draws}"] * (self.draws != (20 if self.version == "rand" else 1))
        marks += [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)
        marks += [] if self.members is None else [member.name for member in self.members]
        return "-".join(["AutoAttack", *marks])

    @property
    def gradient_draws(self) -> int:
        """Those of the member with the fewest; `draws` alone only compares results."""
        return min(member.gradient_draws for member in self.team(Objective(), 2))

    def team(self, objective: Objective, speakers: int) -> list[Attack]:
        """The members against a recognizer of so many speakers."""
        if self.members is not None:
            return self.members
        closed, draws = objective.threshold == -math.inf, self.draws if self.version == "rand" else 1
        losses: list[AnyLoss] = ["cross_entropy", "margin", "dlr"] if closed else ["margin"]
        losses = losses if speakers >= 3 else losses[:2]
        descents = [APGD(self.epsilon, self.steps, draws=draws, loss=loss) for loss in losses]
        if self.version == "rand":
            return [*descents]
        return [
            *descents,
            FMN("linf", objective.confidence, self.steps, enough=self.epsilon),
            TargetedAPGD(self.epsilon, self.steps),
            Square(self.epsilon, self.queries),
        ]

    def runs(self, rows: Rows, objective: Objective) -> Iterator[Tensor]:
        """The members' results."""
        for member in self.team(objective, rows.score(rows.clean, rows.lengths).shape[1]):
            yield member.perturb(rows.score, rows.clean, rows.labels, rows.lengths, objective, rows.generators)


def lengthens(attack: Attack) -> bool:
    """Whether an attack presents more samples than it was given."""
    sample = torch.zeros(1, 1)
    return attack.present(sample, full_lengths(sample))[0].shape != sample.shape
