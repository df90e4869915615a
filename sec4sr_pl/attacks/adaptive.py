"""An attack that knows the defenses which have no gradient of their own."""

import copy
from collections.abc import Iterator, Sequence

from torch import Tensor

from sec4sr_pl.attacks.gradient import FGSM, PGD, CWinf
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import NES
from sec4sr_pl.attacks.worst import WorstCase


class Adaptive(WorstCase):
    """The worst of the gradients that can stand for a missing one, from the utterance and from an oblivious example.

    First the undefended recognizer is attacked: with that result among the candidates, knowing the defense can't make
    the attack weaker. Then the attack runs with each gradient that some defense offers (BPDA; `identity` is plain
    back-propagation), and by queries alone.

    Args:
        attack: FGSM, PGD or CWinf, without restarts.
        members: names of gradients (`identity`, ...) and `NES`; None: all that the defenses offer, then `NES`.
        nes: the last member.

    Raises:
        ValueError: another attack, no member, or, when it is called, one that no defense offers, or something else than
            a recognizer.

    Source: Athalye et al., "Obfuscated gradients give a false sense of security", 2018; Tramer et al., "On adaptive
    attacks to adversarial example defenses", 2020.
    """

    knowledge, randomized = "gradient and scores, and the defenses", "`draws` of its attack"

    def __init__(self, attack: PGD, members: Sequence[str] | None = None, nes: NES | None = None) -> None:
        if type(attack) not in (FGSM, PGD, CWinf) or attack.restarts:
            raise ValueError(f"Expected FGSM, PGD or CWinf without restarts, got {attack!r}")
        if members is not None and not members:
            raise ValueError("Expected at least one member, got none")
        self.attack, self.members, self.nes = attack, members, NES() if nes is None else nes
        self.epsilon, self.draws = attack.epsilon, attack.draws

    @property
    def name(self) -> str:
        """Adaptive-PGD-10, and the members where they were chosen."""
        chosen = [] if self.members is None else list(self.members)
        sampled = [self.nes.name] if self.nes != NES() else []
        return "-".join(["Adaptive", self.attack.name, *chosen, *sampled])

    def runs(self, rows: Rows, objective: Objective) -> Iterator[Tensor]:
        """The oblivious example, then each member from the utterance and from there."""
        recognizer = rows.score.of(lambda recognizer: recognizer).score
        offered = ["identity", *(name for defense in recognizer.defenses for name in defense.gradients), "NES"]
        members = list(dict.fromkeys(offered)) if self.members is None else self.members
        if unknown := [name for name in members if name not in offered]:
            raise ValueError(f"Expected members among {', '.join(dict.fromkeys(offered))}, got {', '.join(unknown)}")
        undefended = rows.score.of(lambda recognizer: recognizer.with_defenses([]))
        rows.oblivious = self.attack.descend(
            undefended, rows.clean, rows.clean, rows.labels, rows.lengths, objective, rows.generators
        )
        yield rows.oblivious
        for member in members:
            attack = copy.copy(self.attack)
            attack.source = self.nes if member == "NES" else attack.source
            for start in ("clean", "oblivious"):
                score = rows.score.of(lambda recognizer, name=member: recognizer.with_gradient(name))
                yield attack.descend(
                    score, getattr(rows, start), rows.clean, rows.labels, rows.lengths, objective, rows.generators
                )
