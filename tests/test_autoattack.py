"""AutoAttack and its members, part by part: who is in the team, and each step of the published algorithms."""

import math
from collections.abc import Callable

import pytest
import torch
from test_strong_attacks import seeded
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.attacks import (
    APGD,
    FMN,
    L2PGD,
    MIFGSM,
    PGD,
    Adaptive,
    Attack,
    AutoAttack,
    Channel,
    InputDiversity,
    Objective,
    OverTheAirPGD,
    PsychoacousticPGD,
    Square,
    TargetedAPGD,
)
from sec4sr_pl.attacks.apgd import checkpoints
from sec4sr_pl.types import mask_padding

# The team

NEVER = 1e6  # a confidence that no attack reaches
CROSS_ENTROPY, MARGIN, DLR = (APGD(0.01, 3, loss=loss) for loss in ("cross_entropy", "margin", "dlr"))
LAST = [FMN("linf", NEVER, 3, enough=0.01), TargetedAPGD(0.01, 3), Square(0.01, 4)]
RANDOM = [APGD(0.01, 3, draws=2, loss=loss) for loss in ("cross_entropy", "margin", "dlr")]
STANDARD, RAND = AutoAttack(0.01, steps=3, queries=4), AutoAttack(0.01, "rand", steps=3, draws=2)
CLOSED, OPEN = Objective(confidence=NEVER), Objective(threshold=0.0, confidence=NEVER)
# With 3 steps, 4 queries: a descent asks 4 rows, FMN 4, a candidate 4 after one look, Square 5; and one to judge each.
TEAMS: dict[str, tuple[AutoAttack, Objective, int, list[Attack], int]] = {
    "closed set of 4": (STANDARD, CLOSED, 4, [CROSS_ENTROPY, MARGIN, DLR, *LAST], 3 * 5 + 5 + (1 + 3 * 4 + 1) + 6),
    "closed set of 3": (STANDARD, CLOSED, 3, [CROSS_ENTROPY, MARGIN, DLR, *LAST], 3 * 5 + 5 + (1 + 2 * 4 + 1) + 6),
    "closed set of 2": (STANDARD, CLOSED, 2, [CROSS_ENTROPY, MARGIN, *LAST], 2 * 5 + 5 + (1 + 4 + 1) + 6),
    "verification": (STANDARD, OPEN, 1, [MARGIN, *LAST], 5 + 5 + (1 + 4 + 1) + 6),
    "open set of 3": (STANDARD, OPEN, 3, [MARGIN, *LAST], 5 + 5 + (1 + 3 * 4 + 1) + 6),
    "rand, closed set of 3": (RAND, CLOSED, 3, RANDOM, 3 * (2 * 4 + 2)),
    "rand, closed set of 2": (RAND, CLOSED, 2, RANDOM[:2], 2 * (2 * 4 + 2)),
    "rand, open set": (RAND, OPEN, 3, RANDOM[1:2], 2 * 4 + 2),
}


@pytest.mark.parametrize(("attack", "objective", "speakers", "team", "rows"), TEAMS.values(), ids=TEAMS)
def test_the_team_of_each_task_and_what_it_asks_when_it_never_succeeds(
    attack: AutoAttack, objective: Objective, speakers: int, team: list[Attack], rows: int
) -> None:
    assert list(map(repr, attack.team(objective, speakers))) == list(map(repr, team))
    weight, waveforms = torch.randn(speakers, 40, generator=seeded(1)), torch.rand(2, 40, generator=seeded(2)) - 0.5
    labels = (waveforms @ weight.T).argmax(1)
    result = attack(lambda w, _: w @ weight.T, waveforms, labels, objective=objective, generator=seeded())
    assert result.queries.tolist() == [1 + rows + 1] * 2  # one to count the speakers, one for the result


# Auto-PGD


class Scripted:
    """Two speakers; the loss of the first at each question is drawn beforehand: mostly a small rise, at times a fall.

    So that each condition occurs alone; the gradient winds with the point.
    """

    def __init__(self, seed: int) -> None:
        falls = torch.rand(100, generator=seeded(seed)) < 0.15
        self.losses = torch.where(falls, -1.0, 0.2).double().cumsum(0).tolist()
        self.inner, self.outer = (torch.randn(*size, generator=seeded(seed)).double() for size in ((6, 8), (8,)))
        self.asked: list[Tensor] = []

    def __call__(self, waveforms: Tensor, _: Tensor | None) -> Tensor:
        slope = torch.sin(3.0 * waveforms @ self.inner) @ self.outer
        other = self.losses[len(self.asked)] + slope - slope.detach()
        self.asked.append(waveforms.detach().clone())
        return torch.stack([torch.zeros_like(other), other], 1)


def algorithm_1(score: Scripted, clean: Tensor, epsilon: float, steps: int) -> set[tuple[bool, bool, bool]]:
    """Maximize cross-entropy; at each checkpoint conditions 1 and 2, and whether the best point lies behind."""

    def ask(point: Tensor) -> tuple[Tensor, float, Tensor]:
        x = point.detach().requires_grad_(True)
        loss = functional.cross_entropy(score(x, None), torch.tensor([0]))
        return point, float(loss.detach()), torch.autograd.grad(loss, x)[0].sign()

    def project(point: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(point, clean - epsilon), clean + epsilon)

    now = best = ask(clean)
    eta, previous, rises, last, decisions = 2.0 * epsilon, clean, 0, 0, set()
    known: tuple[float, float] | None = None  # as in the authors' code, condition 2 waits for the second checkpoint
    for k in range(1, steps + 1):
        (x, loss, sign), alpha = now, 0.75 if k > 1 else 1.0
        z = project(x + eta * sign)
        now, previous = ask(project(x + alpha * (z - x) + (1.0 - alpha) * (x - previous))), x
        rises += now[1] > loss
        best = now if now[1] > best[1] else best
        if k in checkpoints(steps):
            first, second = rises < 0.75 * (k - last), known == (eta, best[1])
            decisions.add((first, second, best is not now))
            known, rises, last = (eta, best[1]), 0, k
            if first or second:
                eta, now = eta / 2.0, best
    return decisions


def test_auto_pgd_asks_at_every_point_of_algorithm_1() -> None:
    decisions: set[tuple[bool, bool, bool]] = set()
    for seed in range(20):
        clean, ours, reference = torch.rand(1, 6, generator=seeded(seed)).double() - 0.5, Scripted(seed), Scripted(seed)
        attack = APGD(0.3, steps=64, restarts=0, loss="cross_entropy")
        attack(ours, clean, torch.tensor([0]), objective=Objective(confidence=NEVER), measure=False)
        decisions |= algorithm_1(reference, clean, 0.3, 64)
        torch.testing.assert_close(torch.cat(ours.asked), torch.cat(reference.asked), rtol=0.0, atol=1e-12)
    assert {(True, False, True), (False, True, True), (False, False, True)} <= decisions


# Square


def test_squares_segments_halve_as_published() -> None:
    seen: list[list[int]] = []
    lengths = torch.tensor([5_120, 3_000])
    waveforms = mask_padding(torch.rand(2, 5_120, generator=seeded()) - 0.5, lengths)

    def score(asked: Tensor, _: Tensor | None) -> Tensor:
        """Nothing is ever better than the first, so each candidate differs from the utterance in its segment alone."""
        seen.append((asked != waveforms).sum(1).tolist())
        return torch.tensor([[math.inf, 0.0]] * len(asked))

    Square(steps=500, segment=0.75)(score, waveforms, torch.tensor([0, 0]), lengths, generator=seeded(), measure=False)
    halvings = (10, 50, 200, 500, 1_000, 2_000, 4_000, 6_000, 8_000)  # of 10,000 queries, as in the authors' code
    parts = [1.0] + [0.75 / 2 ** sum(step * 20 > place for place in halvings) for step in range(1, 501)]
    assert seen == [[math.ceil(part * length) for length in lengths.tolist()] for part in parts]


# Arguments

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no steps": (lambda: AutoAttack(steps=0), r"Expected steps, queries, draws >= 1, got 0, 5000 and None"),
    "no queries": (lambda: AutoAttack(queries=0), r"Expected steps, queries, draws >= 1, got 100, 0 and None"),
    "no ball": (lambda: AutoAttack(epsilon=-1.0), r"Expected epsilon in \[0, 2\], got -1"),
    "NaN for a ball": (lambda: AutoAttack(epsilon=math.nan), r"Expected epsilon in \[0, 2\], got nan"),
    "an endless gain": (lambda: Channel(gain=math.inf), "Expected a finite gain >= 0 dB, got inf"),
    "another source": (lambda: OverTheAirPGD(channel=InputDiversity()), "Expected a Channel or None, got InputDivers"),  # type: ignore[arg-type]
    "an endless step": (lambda: PGD(step_size=math.inf), "Expected .* a finite step_size >= 0, got 0.002 and inf"),
    "energy": (lambda: Adaptive(L2PGD()), "Expected FGSM, PGD or CWinf without restarts, got L2PGD"),
    "momentum": (lambda: Adaptive(MIFGSM()), "Expected FGSM, PGD or CWinf without restarts, got MIFGSM"),
    "masking": (lambda: Adaptive(PsychoacousticPGD()), "Expected FGSM, PGD or CWinf without restarts, got Psycho"),
}


@pytest.mark.parametrize(("build", "told"), REFUSED.values(), ids=REFUSED)
def test_what_no_attack_can_use_is_refused_at_construction(build: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build()
