"""What every attack beyond the paper promises: goals in every task, seeds, batch mates, padding, budgets, names."""

import copy
from collections.abc import Callable

import pytest
import torch
from test_strong_attacks import GOALS, SIZE, TASKS, Linear, seeded
from torch import Tensor

from sec4sr_pl import attacks
from sec4sr_pl.attacks import (
    L2PGD,
    MIFGSM,
    NES,
    PGD,
    SNRPGD,
    Attack,
    Channel,
    InputDiversity,
    Objective,
    OverTheAirPGD,
    PsychoacousticPGD,
)
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import mask_padding, valid_mask

ATTACKS: dict[str, tuple[Attack, int]] = {  # and the forward rows an utterance
    "MIFGSM": (MIFGSM(steps=3), 3 + 1),
    "NI-FGSM, variance tuning, 2 draws": (MIFGSM(steps=3, nesterov=True, neighbors=2, draws=2), 2 * (3 + 2 * 2) + 1),
    "PGD, diversity": (PGD(steps=3, source=InputDiversity(probability=0.8)), 3 + 1),
    "PGD, diversity, NES": (PGD(steps=2, source=InputDiversity(0.8, source=NES(4))), 2 * 5 + 1),
    "L2PGD": (L2PGD(steps=3), 3 + 1),
    "L2PGD, 2 restarts": (L2PGD(steps=2, restarts=2, loss="margin"), 2 * 3 + 1),
    "L2PGD, NES": (L2PGD(steps=2, source=NES(4)), 2 * 5 + 1),
    "SNRPGD": (SNRPGD(steps=3), 3 + 1),
    "SNRPGD, a random start of 2 draws": (SNRPGD(steps=2, restarts=1, draws=2), 2 * 2 + 1),
    "OverTheAirPGD": (OverTheAirPGD(steps=2, draws=3), 2 * 3 + 1),
    "OverTheAirPGD, NES": (OverTheAirPGD(steps=1, draws=2, channel=Channel(0.1, source=NES(2))), 2 * 3 + 1),
    "PsychoacousticPGD": (PsychoacousticPGD(steps=2, masking_steps=4), 2 + 4 + 1),
    "PsychoacousticPGD, 2 draws": (PsychoacousticPGD(steps=1, masking_steps=2, draws=2), 2 * 3 + 1),
}
EVERY_ATTACK = pytest.mark.parametrize(("attack", "queries"), ATTACKS.values(), ids=ATTACKS)

MakeRecognizer = Callable[..., Recognizer]
Speech = tuple[Tensor, Tensor]
BUILT: list[Recognizer] = []


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    """A copy of one recognizer, which costs less than another one."""
    if not BUILT:
        BUILT.append(make_recognizer())
    return copy.deepcopy(BUILT[0])


@pytest.fixture
def loud(speech: Speech) -> Speech:
    """Three utterances of three lengths, about half a second, that reach full scale."""
    lengths = torch.tensor([8_000, 6_543, 5_210])
    waveforms = speech[0][::3, 4_000:12_000].masked_fill(~valid_mask(lengths, 8_000), 0.0)
    return waveforms / waveforms.abs().amax(1, keepdim=True), lengths


def per_row(count: int = 3) -> list[torch.Generator]:
    return [seeded(row) for row in range(count)]


@pytest.mark.parametrize("objective", [Objective(), Objective(0.0, targeted=True)], ids=["CSI", "OSI, targeted"])
@EVERY_ATTACK
def test_every_attack_keeps_its_promises(
    attack: Attack, queries: int, objective: Objective, loud: Speech, recognizer: Recognizer, device: torch.device
) -> None:
    recognizer.to(device)
    waveforms, lengths = (tensor.to(device) for tensor in loud)
    labels = recognizer(waveforms, lengths).argmax(1)
    labels = (labels + 1) % 10 if objective.targeted else labels
    result = attack(recognizer, waveforms, labels, lengths, objective, seeded())
    assert result.waveforms.abs().max() <= 1.0
    assert not torch.equal(result.waveforms, waveforms)
    assert (result.waveforms - waveforms).abs().max() <= attack.epsilon + 6e-8
    assert result.waveforms[~valid_mask(lengths, 8_000)].abs().max() == 0.0
    assert result.queries.tolist() == [queries] * 3
    assert torch.equal(result.achieved, objective.achieved(recognizer(result.waveforms, lengths), labels))
    again, other = (attack(recognizer, waveforms, labels, lengths, objective, seeded(seed)) for seed in (0, 1))
    assert torch.equal(again.waveforms, result.waveforms)
    source, draws = getattr(attack, "source", None), getattr(attack, "neighbors", 0) or getattr(attack, "restarts", 0)
    assert torch.equal(other.waveforms, result.waveforms) is not bool(source or draws)


@EVERY_ATTACK
def test_a_row_depends_neither_on_its_batch_mates_nor_on_its_padding(
    attack: Attack, queries: int, loud: Speech, recognizer: Recognizer
) -> None:
    waveforms, lengths = loud
    labels = recognizer(*loud).argmax(1)
    result = attack(recognizer, waveforms, labels, lengths, generator=per_row())
    mates = torch.cat([0.1 * waveforms[:1], waveforms[1:2], -0.3 * waveforms[2:]])
    among_others = attack(recognizer, mates, labels, lengths, generator=per_row())
    assert torch.equal(among_others.waveforms[1], result.waveforms[1])
    alone = attack(recognizer, waveforms[1:2, :6_543], labels[1:2], generator=[seeded(1)])
    with torch.no_grad():
        together = Objective().loss(recognizer(result.waveforms, lengths), labels)[1]
        apart = Objective().loss(recognizer(alone.waveforms), labels[1:2])[0]
    assert float(apart) == pytest.approx(float(together), rel=0.02, abs=0.02)  # rounding flips small gradients' signs


@pytest.mark.parametrize("attack", [attack for attack, _ in ATTACKS.values()], ids=ATTACKS)
def test_in_double_precision_a_row_alone_is_the_row_in_a_padded_batch(attack: Attack) -> None:
    weight = torch.randn(3, 100, generator=seeded(), dtype=torch.float64)
    waveforms = torch.rand(3, 100, generator=seeded(), dtype=torch.float64) - 0.5
    lengths = torch.tensor([100, 60, 9])
    waveforms[~valid_mask(lengths, 100)] = 0.0

    def score(w: Tensor, valid: Tensor) -> Tensor:
        return torch.sin(3.0 * mask_padding(w, valid) @ weight[:, : w.shape[1]].T)

    labels = torch.tensor([0, 1, 2])
    together = attack(score, waveforms, labels, lengths, generator=per_row()).waveforms
    for row, length in enumerate(lengths.tolist()):
        rows = slice(row, row + 1)
        alone = attack(score, waveforms[rows, :length], labels[rows], generator=[seeded(row)]).waveforms
        torch.testing.assert_close(alone[0], together[row, :length], rtol=0, atol=1e-7)


CLEAR = Channel(reverberation=0.001, direct=80.0, low=0.1, high=8_000.0, gain=0.0, snr=120.0)

REACH: dict[str, tuple[PGD, float]] = {  # and the part of the best margin in the ball
    "MIFGSM": (MIFGSM(0.001, 0.0005, steps=4), 0.999),
    "NI-FGSM, variance tuning": (MIFGSM(0.001, 0.0005, steps=4, nesterov=True, neighbors=2), 0.999),
    "L2PGD": (L2PGD(0.005, 0.5, steps=4), 0.999),
    "L2PGD, restarts": (L2PGD(0.005, 0.5, steps=12, restarts=2), 0.98),
    "SNRPGD": (SNRPGD(45.0, 0.5, steps=4), 0.999),
    "PGD, diversity": (PGD(0.001, 0.0001, steps=40, source=InputDiversity(0.3)), 0.7),
    "OverTheAirPGD through a clear channel": (OverTheAirPGD(0.001, 0.0005, 4, channel=CLEAR), 0.9),
}


@GOALS
@TASKS
@pytest.mark.parametrize(("attack", "least"), REACH.values(), ids=REACH)
def test_on_a_linear_scorer_the_best_point_of_the_ball_is_reached(
    attack: PGD, least: float, task: str, targeted: bool
) -> None:
    model = Linear(task, targeted)
    waveforms = model.waveforms
    result = attack(model, waveforms, model.labels, objective=model.objective, generator=seeded())
    if isinstance(attack, SNRPGD):
        radius = waveforms.norm(dim=1) * 10.0 ** (-45.0 / 20.0)
    elif isinstance(attack, L2PGD):
        radius = torch.full((len(waveforms),), 0.005)
    else:
        radius = 0.001 * model.weight.abs().sum() / model.weight.norm() * torch.ones(len(waveforms))
    up = torch.where((model.labels == 0) == targeted, 1.0, -1.0).unsqueeze(1)
    best = waveforms + up * radius.unsqueeze(1) * model.weight / model.weight.norm()
    margins = [model.objective.loss(model(w, None), model.labels) for w in (waveforms, result.waveforms, best)]
    part = (margins[0] - margins[1]) / (margins[0] - margins[2])
    assert part.max() <= 1.001
    assert part.min() >= least


@GOALS
@TASKS
def test_psychoacoustic_pgd_achieves_what_pgd_achieves(task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    plain = PGD(0.03, 0.006)(model, model.waveforms, model.labels, objective=model.objective)
    hidden = PsychoacousticPGD(0.03, 0.006, masking_steps=20)(
        model, model.waveforms, model.labels, objective=model.objective
    )
    assert torch.equal(hidden.achieved, plain.achieved)
    assert plain.achieved.sum() > 0
    stands = ~plain.achieved
    assert torch.equal(hidden.waveforms[stands], plain.waveforms[stands])
    assert hidden.waveforms.shape[1] == SIZE


class RandomSlope:
    """A linear scorer of two speakers with fresh noise on its weights at each call."""

    def __init__(self) -> None:
        self.weight, self.generator = torch.randn(2, 400, generator=seeded(8)), seeded(9)

    def __call__(self, waveforms: Tensor, _: Tensor | None) -> Tensor:
        return waveforms @ (self.weight + 4.0 * torch.randn(self.weight.shape, generator=self.generator)).T


@pytest.mark.parametrize("kind", [MIFGSM, L2PGD, SNRPGD, PsychoacousticPGD])
def test_draws_make_an_attack_on_a_randomized_recognizer_stronger(kind: type[PGD]) -> None:
    margins = []
    waveforms = 0.01 * torch.randn(1, 400, generator=seeded(4))
    for draws in (1, 64):
        score = RandomSlope()
        budget = {"masking_steps": 1} if kind is PsychoacousticPGD else {}
        attack = kind(steps=1, draws=draws, loss="margin", **budget)  # type: ignore[arg-type]
        result = attack(score, waveforms, torch.tensor([0])).waveforms
        margins.append(float(Objective().loss((result - waveforms) @ score.weight.T, torch.tensor([0]))))
    assert margins[1] < 2.0 * margins[0] < 0.0


def test_an_attack_prints_as_the_call_that_makes_it() -> None:
    for attack, _ in ATTACKS.values():
        assert vars(eval(repr(attack), vars(attacks))) == vars(attack)


def test_a_sweep_over_any_parameter_gives_names_of_their_own() -> None:
    made = [
        *(MIFGSM(**change) for change in ({}, {"momentum": 0.5}, {"nesterov": True}, {"neighbors": 5}, {"steps": 5})),  # type: ignore[arg-type]
        *(MIFGSM(neighbors=5, radius=2.0), MIFGSM(source=InputDiversity()), MIFGSM(source=InputDiversity(0.7))),
        *(MIFGSM(source=InputDiversity(shortest=0.8)), MIFGSM(source=InputDiversity(source=NES()))),
        *(L2PGD(**change) for change in ({}, {"radius": 1.0}, {"step_size": 0.1}, {"loss": "margin"}, {"draws": 2})),  # type: ignore[arg-type]
        *(SNRPGD(**change) for change in ({}, {"snr": 40.0}, {"restarts": 2}, {"source": NES()})),  # type: ignore[arg-type]
        *(OverTheAirPGD(), OverTheAirPGD(draws=2), OverTheAirPGD(channel=Channel(0.2)), OverTheAirPGD(0.02)),
        *(PsychoacousticPGD(), PsychoacousticPGD(masking_steps=50), PsychoacousticPGD(steps=20)),
    ]
    names = [attack.name for attack in made]
    assert len(set(names)) == len(names)
    assert names[0] == "MIFGSM-10"
    assert {"L2PGD-10-r0.25", "SNRPGD-10-35dB", "PsychoacousticPGD-10-100"} <= set(names)


def test_a_scaled_attack_has_a_smaller_ball() -> None:
    assert (L2PGD(0.5).scaled(0.5).radius, L2PGD(0.5).scaled(0.5).step_size) == (0.25, 0.2)
    assert SNRPGD(40.0).scaled(0.1).snr == pytest.approx(60.0)
    silent = SNRPGD(40.0).scaled(0.0)(lambda w, _: w[:, :2], torch.ones(1, 9), torch.tensor([0]))
    assert torch.equal(silent.waveforms, torch.ones(1, 9))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MIFGSM(momentum=-1.0),
        lambda: MIFGSM(neighbors=-1),
        lambda: MIFGSM(radius=-0.1),
        lambda: InputDiversity(1.5),
        lambda: InputDiversity(shortest=0.0),
        lambda: L2PGD(-1.0),
        lambda: L2PGD(float("inf")),
        lambda: L2PGD(steps=0),
        lambda: SNRPGD(float("nan")),
        lambda: Channel(reverberation=0.0),
        lambda: Channel(low=5_000.0),
        lambda: Channel(high=9_000.0),
        lambda: Channel(snr=float("inf")),
        lambda: PsychoacousticPGD(masking_steps=0),
    ],
)
def test_a_parameter_outside_its_range_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        wrong()
