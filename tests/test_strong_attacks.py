"""The strong attacks where the right answer is known, against reference libraries, and on the shipped checkpoint."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.attacks import (
    APGD,
    CW2,
    FAKEBOB,
    FMN,
    NES,
    PGD,
    Attack,
    AutoAttack,
    Objective,
    Replicate,
    Square,
    TargetedAPGD,
)
from sec4sr_pl.attacks.apgd import checkpoints
from sec4sr_pl.attacks.gradient import attack_loss
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Spk251
from sec4sr_pl.data.base import collate
from sec4sr_pl.types import REJECT

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "audionet_mini_adversarial.ckpt"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Linear recognizers, whose best attacks are known in closed form

TASKS = pytest.mark.parametrize("task", ["CSI", "SV", "OSI"])
GOALS = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
SIZE, ROWS = 60, 12


class Linear:
    """Two speakers of opposite scores (CSI), one (SV), or two of which one can never win (OSI)."""

    def __init__(self, task: str, targeted: bool) -> None:
        self.weight, self.task = 0.3 * torch.randn(SIZE, generator=seeded(1)), task
        self.objective = Objective(-math.inf if task == "CSI" else 0.05, targeted)
        self.waveforms = 0.6 * torch.rand(ROWS, SIZE, generator=seeded(2)) - 0.3
        decisions = self.decide(self.waveforms)
        outsider = 1 if task == "CSI" else REJECT
        self.labels = torch.where(decisions == 0, outsider, 0) if targeted else decisions
        self.seen = 0

    def __call__(self, waveforms: Tensor, _: Tensor | None) -> Tensor:
        self.seen += len(waveforms)
        one = waveforms @ self.weight
        if self.task == "SV":
            return one.unsqueeze(1)
        return torch.stack([one, -one if self.task == "CSI" else one - 5.0], 1)

    def decide(self, waveforms: Tensor) -> Tensor:
        threshold = 0.0 if self.task == "CSI" else self.objective.threshold
        return torch.where(waveforms @ self.weight > threshold, 0, 1 if self.task == "CSI" else REJECT)

    def distance(self) -> Tensor:
        """The smallest change in L2 that reaches the other decision, (rows,)."""
        threshold = 0.0 if self.task == "CSI" else self.objective.threshold
        return (self.waveforms @ self.weight - threshold).abs() / self.weight.norm()

    def corner(self, epsilon: float) -> Tensor:
        """The margin at the best corner of the ball, (rows,)."""
        up = (self.labels == 0) == self.objective.targeted
        change = epsilon * torch.where(up, 1.0, -1.0).unsqueeze(1) * self.weight.sign()
        return self.objective.loss(self(self.waveforms + change, None), self.labels)


@pytest.mark.parametrize(
    ("task", "targeted"),
    [
        pytest.param(task, goal, marks=[pytest.mark.slow] * ((task, goal) != ("OSI", True)))
        for task in ("CSI", "SV", "OSI")
        for goal in (False, True)
    ],
)
def test_cw2_reaches_the_smallest_change_in_l2(task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    assert {0, 1 if task == "CSI" else REJECT} == set(model.labels.tolist())
    attack = CW2(steps=200, learning_rate=0.005, initial_const=0.1)
    result = attack(model, model.waveforms, model.labels, objective=model.objective)
    ratios = (result.waveforms - model.waveforms).norm(dim=1) / model.distance()
    assert result.achieved.all()
    assert ratios.min() >= 0.999
    assert ratios.median() <= 1.05


def test_cw2_comes_closer_than_its_first_steps_are_long() -> None:
    """A rate of 0.1 that stayed what it is would leave a median of 1.02."""
    model = Linear("CSI", False)
    result = CW2(steps=200, learning_rate=0.1, initial_const=0.1)(model, model.waveforms, model.labels)
    ratios = (result.waveforms - model.waveforms).norm(dim=1) / model.distance()
    assert result.achieved.all() and ratios.median() <= 1.01


@GOALS
@TASKS
@pytest.mark.parametrize(
    "attack",
    [
        APGD(0.001, steps=10),
        APGD(0.001, steps=10, restarts=0, loss="margin"),
        TargetedAPGD(0.001, steps=10),
        APGD(0.001, steps=15, restarts=0, source=NES(400)),
    ],
    ids=["APGD", "APGD, margin", "targeted APGD", "APGD, NES"],
)
def test_apgd_reaches_the_best_corner_of_the_ball(attack: Attack, task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    result = attack(model, model.waveforms, model.labels, objective=model.objective, generator=seeded())
    margins = model.objective.loss(model(result.waveforms, None), model.labels)
    best, start = model.corner(0.001), model.corner(0.0)
    stands = best > 1e-6  # others leave once they have achieved the goal
    assert stands.sum() >= 4
    part = ((start - margins) / (start - best))[stands]
    assert part.max() <= 1.001
    assert part.min() >= (0.8 if getattr(attack, "source", None) else 0.999)
    assert torch.equal(result.achieved, best < 0.0)


@GOALS
@TASKS
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_fmn_reaches_the_smallest_change(norm: Any, task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    result = FMN(norm, steps=60)(model, model.waveforms, model.labels, objective=model.objective)
    change = result.waveforms - model.waveforms
    if norm == "l2":
        ratios = change.norm(dim=1) / model.distance()
    else:
        ratios = change.abs().amax(1) / (model.distance() * model.weight.norm() / model.weight.abs().sum())
    assert result.achieved.all()
    assert ratios.min() >= 0.999
    assert ratios.median() <= 1.05


@GOALS
@TASKS
def test_fakebob_reaches_the_goal_in_every_task_within_its_queries(task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    attack = FAKEBOB(0.2, steps=400, step_size=0.02, samples=10, queries=500)
    result = attack(model, model.waveforms, model.labels, objective=model.objective, generator=seeded())
    assert result.achieved.float().mean() >= 0.8
    assert len(set(result.queries.tolist())) > 2  # an utterance ends when it is done
    assert result.queries.max() <= 500 + 1
    assert (result.waveforms - model.waveforms).abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize(("rising", "last"), [(0.0, 0.01), (0.1, 0.004)], ids=["falls", "rises"])
def test_fakebob_halves_its_step_down_to_the_floor_where_the_loss_rises(rising: float, last: float) -> None:
    points: list[Tensor] = []

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        if len(w) == 1:  # the point itself, not one around it
            points.append(w)
        return torch.stack([5.0 + w[:, 0] + rising * len(points), 0.0 * w[:, 0]], 1)

    attack = FAKEBOB(0.5, steps=40, step_size=0.01, smallest_step=0.004, samples=4)
    attack(score, torch.zeros(1, 1), torch.tensor([0]), generator=seeded(), measure=False)
    moves = torch.cat(points).squeeze(1).diff().abs()
    assert float(moves[0]) == pytest.approx(0.01, abs=1e-6)
    assert float(moves[-1]) == pytest.approx(last, abs=1e-6)


def test_fakebob_gives_up_a_row_that_makes_no_progress() -> None:
    result = FAKEBOB(steps=1_000, samples=2)(
        lambda w, _: torch.stack([w[:, 0] * 0 + 1.0, w[:, 0] * 0], 1), torch.zeros(2, 5), torch.tensor([0, 0])
    )
    assert result.queries.tolist() == [101 * 3 + 1] * 2


@pytest.mark.parametrize("confidence", [0.0, 0.5])
@pytest.mark.parametrize("kind", [CW2, FMN])
def test_attacks_without_a_ball_take_their_own_confidence(kind: Any, confidence: float) -> None:
    model = Linear("CSI", targeted=False)
    budget = {"steps": 150, "learning_rate": 0.005, "initial_const": 0.1} if kind is CW2 else {"steps": 60}
    attack = kind(confidence=confidence, **budget)
    result = attack(model, model.waveforms, model.labels, objective=Objective(confidence=3.0))
    margins = Objective().loss(model(result.waveforms, None), model.labels)
    assert margins.max() <= -confidence
    assert margins.median() == pytest.approx(-confidence, abs=0.05)


def test_cw2_gives_up_a_descent_that_stalls_and_goes_on_with_the_next_constant() -> None:
    flat = CW2(steps=1_000, search_steps=3)(
        lambda w, _: torch.stack([w[:, 0] * 0 + 1.0, w[:, 0] * 0], 1), torch.zeros(2, 5), torch.tensor([0, 0])
    )
    assert flat.queries.tolist() == [3 * (2 * 100 + 1) + 1] * 2


def test_cw2_returns_the_utterance_itself_where_it_fails_or_where_nothing_needs_to_change() -> None:
    model = Linear("CSI", targeted=False)
    unreachable = CW2(confidence=1e4, steps=10, search_steps=3)(model, model.waveforms, model.labels)
    assert torch.equal(unreachable.waveforms, model.waveforms)
    assert not unreachable.achieved.any()
    model.seen = 0
    already = CW2(steps=10)(model, model.waveforms, 1 - model.labels)
    assert torch.equal(already.waveforms, model.waveforms)
    assert already.achieved.all()
    assert already.queries.tolist() == [2] * ROWS


def test_cw2_refuses_a_rejected_speaker_in_a_closed_set_instead_of_succeeding_without_a_change() -> None:
    model = Linear("CSI", targeted=False)
    with pytest.raises(ValueError, match="closed set nobody is rejected"):
        CW2(steps=1)(model, model.waveforms, torch.full((ROWS,), REJECT))


@pytest.mark.parametrize(
    "attack",
    [
        CW2(steps=200, search_steps=3, learning_rate=0.01, initial_const=0.1),
        APGD(0.03, steps=12),
        TargetedAPGD(0.03, steps=12),
        FMN(steps=20),
        FAKEBOB(0.03, steps=30, samples=10),
        Square(0.03, steps=60),
        AutoAttack(0.03, steps=5, queries=10),
    ],
    ids=lambda attack: attack.name,
)
def test_rows_end_by_themselves_whatever_becomes_of_their_mates(attack: Attack) -> None:
    """In double precision, where the number of rows makes no difference that could be seen."""
    model = Linear("CSI", targeted=False)
    model.weight, model.waveforms = model.weight.double(), model.waveforms.double()
    together = attack(model, model.waveforms, model.labels, generator=[seeded(row) for row in range(ROWS)])
    if not isinstance(attack, FMN):
        assert len(set(together.queries.tolist())) > 1  # they end at different times
    for row in range(0, ROWS, 5):
        alone = attack(model, model.waveforms[row : row + 1], model.labels[row : row + 1], generator=[seeded(row)])
        torch.testing.assert_close(alone.waveforms[0], together.waveforms[row], rtol=0, atol=1e-9)
        assert alone.queries[0] == together.queries[row]


class Noisy:
    """The linear recognizer behind fresh noise on its scores."""

    def __init__(self, deviation: float) -> None:
        self.model, self.deviation, self.generator = Linear("CSI", targeted=False), deviation, seeded(3)

    def __call__(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        scores = self.model(waveforms, lengths)
        return scores + self.deviation * torch.randn(scores.shape, generator=self.generator)


@pytest.mark.parametrize(
    "attacks",
    [
        [CW2(steps=60, search_steps=4, learning_rate=0.005, initial_const=0.1, draws=n) for n in (1, 20)],
        [APGD(0.08, steps=10, draws=n) for n in (1, 20)],
        [Square(0.1, steps=60, draws=n) for n in (1, 20)],
        [AutoAttack(0.08, "rand", steps=10, draws=n) for n in (1, 20)],
    ],
    ids=["CW2", "APGD", "Square", "AutoAttack"],
)
def test_with_draws_a_success_is_no_lucky_draw(attacks: list[Attack]) -> None:
    rates = []
    for attack in attacks:
        score = Noisy(deviation=0.1)
        result = attack(score, score.model.waveforms, score.model.labels, generator=seeded())
        fresh = [Objective().achieved(score(result.waveforms, None), score.model.labels) for _ in range(50)]
        rates.append(float(torch.stack(fresh).float().mean()))
    assert rates[1] > rates[0]
    assert rates[1] > 0.7


# Parts


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99, 105]
    assert checkpoints(1) == [1, 2]


def test_candidates_are_the_closest_other_decisions() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.3, 0.2]])
    labels = torch.tensor([0, REJECT])
    assert Objective().others(scores, labels.clamp_min(0), 9).tolist() == [[2, 1], [1, 2]]
    assert Objective(1.5).others(scores, labels, 9).tolist() == [[2, REJECT, 1], [1, 2, 0]]
    assert Objective(1.5).others(scores[:, :1], labels, 9).tolist() == [[REJECT], [0]]
    with pytest.raises(ValueError, match="closed set of one"):
        Objective().others(scores[:, :1], labels.clamp_min(0), 9)


@GOALS
def test_dlr_has_no_scale_and_the_sign_of_the_margin(targeted: bool) -> None:
    scores, labels = torch.randn(50, 5, generator=seeded(), dtype=torch.float64), torch.arange(50) % 5
    objective = Objective(targeted=targeted)
    dlr = attack_loss("dlr", objective, scores, labels)
    torch.testing.assert_close(attack_loss("dlr", objective, 1e3 * scores + 7.0, labels), dlr)
    assert torch.equal(dlr < 0, objective.loss(scores, labels) < 0)
    first, second, third, fourth, _ = sorted(scores[0].tolist(), reverse=True)
    expected = (first - second) / (first - ((third + fourth) / 2 if targeted else third))
    label = scores[:1].argsort(descending=True)[:, 1 if targeted else 0]
    assert float(attack_loss("dlr", objective, scores[:1], label)) == pytest.approx(expected)


def test_dlr_is_refused_where_it_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="at least 3 speakers"):
        attack_loss("dlr", Objective(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="DLR has no label"):
        attack_loss("dlr", Objective(0.5), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))


def test_the_estimated_gradient_approaches_the_true_one_as_samples_grow() -> None:
    center, x = torch.randn(1, 40, generator=seeded(4)), torch.randn(1, 40, generator=seeded(5))

    def quadratic(w: Tensor, _: Tensor | None) -> Tensor:
        return (w - center).square().sum(1, keepdim=True)

    cosines = []
    for samples in (20, 200, 2_000, 20_000):
        _, gradient = NES(samples, 0.01)(quadratic, x, torch.tensor([40]), lambda s: s[:, 0], [seeded(6)])
        cosines.append(float(functional.cosine_similarity(gradient, x - center)))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.995
    assert float(gradient.norm() / (2 * (x - center)).norm()) == pytest.approx(1.0, abs=0.02)


def test_the_estimated_gradient_is_zero_on_padding_and_of_the_row_alone() -> None:
    waveforms, lengths = torch.rand(3, 40, generator=seeded(7)), torch.tensor([40, 25, 8])
    estimate = NES(4)
    score = Linear("CSI", targeted=False)
    score.weight = score.weight[:40]
    _, together = estimate(score, waveforms, lengths, lambda s: s[:, 0], [seeded(row) for row in range(3)])
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(together[row, length:], torch.zeros(40 - length))
        rows = slice(row, row + 1)
        _, alone = estimate(score, waveforms[rows], lengths[rows], lambda s: s[:, 0], [seeded(row)])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_square_segments_stay_inside_the_utterance_and_at_the_corners_of_the_ball() -> None:
    model = Linear("CSI", targeted=False)
    lengths = torch.tensor([SIZE, 1, 17] * (ROWS // 3))
    waveforms = model.waveforms.masked_fill(torch.arange(SIZE) >= lengths.unsqueeze(1), 0.0)
    change = Square(0.01, steps=30)(model, waveforms, model.labels, lengths, generator=seeded()).waveforms - waveforms
    inside = torch.arange(SIZE) < lengths.unsqueeze(1)
    torch.testing.assert_close(change.abs(), 0.01 * inside, rtol=0, atol=1e-6)


def test_autoattack_refuses_a_member_with_a_larger_ball() -> None:
    with pytest.raises(ValueError, match=r"ball of at most 0\.001"):
        AutoAttack(0.001, members=[PGD(0.001), PGD(0.002)])
    with pytest.raises(ValueError, match="Expected members"):
        AutoAttack(members=[])
    with pytest.raises(ValueError, match=r"the length of an utterance as it is, got \[Replicate"):
        AutoAttack(members=[PGD(), Replicate(PGD())])


def test_autoattack_asks_members_for_standing_utterances_only() -> None:
    model, asked = Linear("CSI", targeted=False), []

    class Watch(Attack):
        epsilon = 0.0

        def perturb(self, score: Any, waveforms: Tensor, *_: Any) -> Tensor:
            asked.append(len(waveforms))
            return waveforms

    attack = AutoAttack(0.03, members=[Watch(), APGD(0.03, steps=12), Watch()])
    result = attack(model, model.waveforms, model.labels, generator=seeded())
    assert asked == [ROWS, int((~result.achieved).sum())]
    assert 0 < asked[1] < ROWS


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: CW2(learning_rate=0.0),
        lambda: CW2(initial_const=0.0),
        lambda: CW2(steps=0),
        lambda: CW2(confidence=math.nan),
        lambda: APGD(epsilon=3.0),
        lambda: APGD(draws=0),
        lambda: APGD(loss="hinge"),  # type: ignore[arg-type]
        lambda: TargetedAPGD(candidates=0),
        lambda: FMN(norm="l1"),  # type: ignore[arg-type]
        lambda: FMN(rate=1.0),
        lambda: FAKEBOB(smallest_step=0.0),
        lambda: FAKEBOB(queries=50),
        lambda: FAKEBOB(momentum=1.0),
        lambda: Square(segment=0.0),
        lambda: Square(steps=0),
        lambda: AutoAttack(version="plus"),  # type: ignore[arg-type]
        lambda: AutoAttack(draws=0),
        lambda: NES(samples=3),
        lambda: NES(sigma=0.0),
    ],
)
def test_a_parameter_outside_its_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        wrong()


# On the shipped checkpoint


@pytest.fixture(scope="module")
def shipped(data_root: Path) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The adversarially trained recognizer, and the first second of twelve utterances, which it recognizes."""
    recognizer = load_recognizer(CHECKPOINT)
    data = Spk251(root=data_root)
    data.connect(recognizer.scorer.speakers)
    dataset = data.dataset("test")
    batch = collate([dataset[index] for index in range(len(dataset))])
    waveforms, lengths = batch.waveforms[:, :16_000].contiguous(), batch.lengths.clamp_max(16_000)
    with torch.no_grad():
        assert torch.equal(recognizer.decide(recognizer(waveforms, lengths)), batch.speakers) and len(lengths) == 12
    return recognizer, waveforms, lengths, batch.speakers


def standing(attack: Attack, shipped: tuple[Any, Tensor, Tensor, Tensor]) -> int:
    """Utterances that an attack does not bring down."""
    recognizer, waveforms, lengths, labels = shipped
    generators = [seeded(row) for row in range(len(labels))]
    return int((~attack(recognizer, waveforms, labels, lengths, generator=generators).achieved).sum())


@pytest.mark.slow
def test_apgd_is_as_strong_as_pgd_of_as_many_gradients(shipped: tuple[Any, Tensor, Tensor, Tensor]) -> None:
    for epsilon in (0.0005, 0.001):
        pgd = standing(PGD(epsilon, epsilon / 5, steps=20), shipped)
        assert standing(APGD(epsilon, steps=20, restarts=0), shipped) <= pgd + 1


def test_autoattack_is_as_strong_as_each_member(shipped: tuple[Any, Tensor, Tensor, Tensor]) -> None:
    members = [Square(0.001, steps=20), APGD(0.001, 5, restarts=0), PGD(0.001, 0.0004, 5)]
    left = standing(AutoAttack(0.001, members=members), shipped)
    alone = [standing(member, shipped) for member in members]
    assert left <= min(alone)
    assert 0 < min(alone) < max(alone)


class Unpadded(nn.Module):
    """A recognizer of whole rows."""

    def __init__(self, recognizer: nn.Module) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.recognizer(waveforms)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_cw2_finds_changes_as_small_as_the_reference_library(shipped: tuple[Any, Tensor, Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    recognizer, waveforms, _, labels = shipped
    waveforms, labels = waveforms[:6], labels[:6]
    budget = {"confidence": 0.0, "steps": 60, "initial_const": 1e-3}
    reference = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=4, stepsize=0.002, **budget)
    classifier = foolbox.PyTorchModel(Unpadded(recognizer).eval(), bounds=(-1, 1), device="cpu")
    theirs = reference.run(classifier, waveforms, foolbox.criteria.Misclassification(labels))
    result = CW2(search_steps=4, learning_rate=0.002, **budget)(recognizer, waveforms, labels)
    with torch.no_grad():
        assert (recognizer(theirs).argmax(1) != labels).all()
    assert result.achieved.all()
    distances = [(found - waveforms).norm(dim=1).median() for found in (result.waveforms, theirs)]
    assert distances[0] <= 1.05 * distances[1]


def test_a_sweep_over_any_parameter_gives_names_of_their_own() -> None:
    changed = [
        {"sigma": 0.002},
        {"step_size": 0.002},
        {"momentum": 0.5},
        {"smallest_step": 1e-5},
        {"samples": 20},
        {"queries": 99},
    ]
    names = {FAKEBOB(**change).name for change in changed}  # type: ignore[arg-type]
    assert len(names) == len(changed) and FAKEBOB().name == "FAKEBOB-1000x50"
    sources = [NES(), NES(20), NES(sigma=0.01), None]
    assert [PGD(source=source).name for source in sources] == [
        "PGD-10-NES",
        "PGD-10-NES20",
        "PGD-10-NESsigma0.01",
        "PGD-10",
    ]
