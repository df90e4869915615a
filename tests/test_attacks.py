"""White-box attacks: what every attack promises, equality with foolbox and ART, and a model that is only borrowed."""

import itertools
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl import attacks
from sec4sr_pl.attacks import (
    APGD,
    CW2,
    FAKEBOB,
    FGSM,
    FMN,
    NES,
    PGD,
    Attack,
    AutoAttack,
    CWinf,
    Kenansville,
    Objective,
    SirenAttack,
    Square,
    TargetedAPGD,
    UniformNoise,
)
from sec4sr_pl.attacks.gradient import attack_loss
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import REJECT, valid_mask

Speech = tuple[Tensor, Tensor]

ATTACKS: dict[str, tuple[Attack, int]] = {  # and the forward rows an utterance: gradients, restarts compared, success
    "FGSM": (FGSM(), 2),
    "FGSM, margin, 2 draws": (FGSM(draws=2, loss="margin"), 3),
    "PGD": (PGD(steps=3), 4),
    "PGD, a random start": (PGD(steps=2, restarts=1), 3),
    "PGD, 3 restarts": (PGD(steps=2, restarts=3), 3 * 2 + 3 + 1),
    "PGD, 2 draws": (PGD(steps=2, draws=2), 5),
    "PGD, 2 restarts of 2 draws": (PGD(steps=2, restarts=2, draws=2), 2 * 4 + 4 + 1),
    "PGD, margin": (PGD(steps=3, loss="margin"), 4),
    "PGD, wide": (PGD(epsilon=0.3, step_size=0.2, steps=2), 3),
    "CWinf": (CWinf(steps=3), 4),
    "CWinf, 2 restarts": (CWinf(steps=2, restarts=2), 7),
    "PGD, NES": (PGD(steps=2, source=NES(4)), 2 * 5 + 1),
    "CW2": (CW2(steps=3, search_steps=2, initial_const=10.0), 2 * 4 + 1),
    "CW2, 2 draws": (CW2(steps=2, search_steps=1, initial_const=10.0, draws=2), 2 * 3 + 1),
    "APGD": (APGD(steps=3, restarts=0), 4 + 1),
    "APGD, margin, a random start": (APGD(steps=3, loss="margin"), 4 + 1),
    "APGD, 2 restarts of 2 draws": (APGD(steps=2, restarts=2, draws=2), 2 * 2 * 3 + 1),
    "targeted APGD": (TargetedAPGD(steps=2, candidates=2), 1 + 2 * 3 + 1),
    "Square": (Square(steps=4), 5 + 1),
    "Square, 2 draws": (Square(steps=2, draws=2), 2 * 3 + 1),
    "FAKEBOB": (FAKEBOB(steps=3, samples=10), 3 * 11 + 1 + 1),
    "FAKEBOB, 2 draws": (FAKEBOB(steps=2, samples=6, draws=2), 2 * (2 * 7 + 1) + 1),
    "FMN": (FMN(steps=3), 4 + 1),
    "FMN, L-infinity, 2 draws": (FMN("linf", steps=2, draws=2), 2 * 3 + 1),
    "uniform noise": (UniformNoise(), 1),
    "Siren": (SirenAttack(particles=3, epochs=2, steps=2), 2 * 3 * 3 + 1),
    "Kenansville, fft": (Kenansville(rounds=3), 1 + 3 + 1),
    "Kenansville, ssa, 2 draws": (Kenansville("ssa", rounds=1, draws=2), 2 * 2 + 1),
    "AutoAttack": (AutoAttack(steps=1, queries=2), 1 + 3 * (2 + 1) + (2 + 1) + (1 + 9 * 2 + 1) + (3 + 1) + 1),
    "AutoAttack, rand": (AutoAttack(version="rand", steps=1, draws=2), 1 + 3 * (2 * 2 + 2) + 1),
}
UNFINISHED = (PGD, FGSM, CWinf)
"""Attacks that never stop early, so that the number of forward rows is known beforehand."""
EVERY_ATTACK = pytest.mark.parametrize(("attack", "queries"), ATTACKS.values(), ids=ATTACKS)
GOALS = {
    "CSI": Objective(),
    "CSI, targeted": Objective(targeted=True, confidence=1.0),
    "OSI": Objective(threshold=0.0),
    "OSI, targeted": Objective(threshold=0.0, targeted=True),
}


@pytest.fixture
def loud(speech: Speech) -> Speech:
    """Three utterances of three lengths, about half a second, that reach full scale."""
    lengths = torch.tensor([8_000, 6_543, 5_210])
    waveforms = speech[0][::3, 4_000:12_000].masked_fill(~valid_mask(lengths, 8_000), 0.0)
    return waveforms / waveforms.abs().amax(1, keepdim=True), lengths


def wanted(scores: Tensor, labels: Tensor, objective: Objective) -> list[bool]:
    """Whether each decision is what the objective wants, row by row."""
    outcome = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        decision = best if row[best] > objective.threshold else REJECT
        outcome.append((decision == label) == objective.targeted)
    return outcome


def draws(attack: Attack) -> bool:
    """Whether an attack draws random numbers."""
    return bool(
        getattr(attack, "restarts", not isinstance(attack, (CW2, FMN, Kenansville))) or getattr(attack, "source", None)
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Observed(nn.Module):
    """A recognizer that tells of each call."""

    def __init__(self, recognizer: Recognizer, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.recognizer, self.tell = recognizer, tell

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.tell(waveforms)
        return self.recognizer(waveforms, lengths)


# What every attack promises


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(g, id=n, marks=[] if n in ("CSI", "OSI, targeted") else [pytest.mark.slow])
        for n, g in GOALS.items()
    ],
)
@EVERY_ATTACK
def test_every_attack_keeps_its_promises(
    attack: PGD,
    queries: int,
    objective: Objective,
    loud: Speech,
    recognizer: Recognizer,
    device: torch.device,
) -> None:
    recognizer.to(device)
    waveforms, lengths = (tensor.to(device) for tensor in loud)
    decisions = recognizer(waveforms, lengths).argmax(1)
    labels = (decisions + 1) % 10 if objective.targeted else decisions
    if objective.threshold > -math.inf:
        labels[1] = REJECT
    inputs = waveforms.clone(), labels.clone(), lengths.clone()
    batches: list[int] = []
    score = Observed(recognizer, lambda w: batches.append(len(w)))

    result = attack(score, waveforms, labels, lengths, objective, seeded())

    changed = result.waveforms
    assert changed.shape == waveforms.shape
    assert (changed.dtype, changed.device) == (waveforms.dtype, waveforms.device)
    assert not changed.requires_grad
    assert (changed - waveforms).abs().max() <= attack.epsilon + 6e-8  # half a step of float32 at full scale
    assert changed.abs().max() <= 1.0
    if isinstance(attack, UNFINISHED):
        assert (changed - waveforms).abs().max() > 0.9 * min(attack.epsilon, attack.steps * attack.step_size)
    assert torch.equal(changed.masked_select(~valid_mask(lengths, changed.shape[1])).abs().sum().cpu(), torch.zeros(()))
    assert torch.equal(result.lengths, lengths)
    assert result.achieved.tolist() == wanted(recognizer(changed, lengths), labels, objective)
    assert result.queries.max() <= queries
    assert int(result.queries.sum()) == sum(batches) - 1  # all are counted, but for one row to look at the labels
    if isinstance(attack, UNFINISHED):
        assert result.queries.tolist() == [queries] * 3
    for tensor, before in zip((waveforms, labels, lengths), inputs, strict=True):
        assert torch.equal(tensor, before)
    again = attack(score, waveforms, labels, lengths, objective, seeded())
    assert torch.equal(again.waveforms, changed)


@EVERY_ATTACK
def test_random_starts_and_nothing_else_follow_the_generator(
    attack: PGD, queries: int, loud: Speech, recognizer: Recognizer
) -> None:
    labels = recognizer(*loud).argmax(1)
    first, other = (attack(recognizer, loud[0], labels, loud[1], generator=seeded(s), measure=False) for s in (1, 2))
    assert torch.equal(first.waveforms, other.waveforms) is not draws(attack)


@EVERY_ATTACK
def test_a_row_does_not_depend_on_its_batch_mates(
    attack: PGD, queries: int, loud: Speech, recognizer: Recognizer
) -> None:
    waveforms, lengths = loud
    labels = recognizer(*loud).argmax(1)
    result = attack(recognizer, waveforms, labels, lengths, generator=seeded())
    mates = waveforms[[0, 0, 2]] * torch.tensor([[-0.3], [1.0], [0.1]])
    among_others = attack(
        recognizer, torch.cat([mates[:1], waveforms[1:2], mates[2:]]), labels, lengths, generator=seeded()
    )
    assert torch.equal(among_others.waveforms[1], result.waveforms[1])
    if not draws(attack):  # its own draws would be others
        size = int(lengths[1])
        alone = attack(recognizer, waveforms[1:2, :size], labels[1:2])
        difference = (alone.waveforms[0] - result.waveforms[1, :size]).abs()
        assert (difference > 1e-6).float().mean() < 0.01  # rounding flips signs where there is hardly a gradient
        with torch.no_grad():
            together = Objective().loss(recognizer(result.waveforms, lengths), labels)[1]
            apart = Objective().loss(recognizer(alone.waveforms), labels[1:2])[0]
        # a minimum-norm attack ends beside the boundary, at a loss of nearly 0: scores are the same within 1e-4
        assert float(apart) == pytest.approx(float(together), rel=1e-3, abs=1e-4)


@EVERY_ATTACK
def test_padding_stays_zero_for_a_score_that_looks_at_it(attack: Attack, queries: int) -> None:
    weight = torch.randn(4, 100, generator=seeded())
    waveforms = torch.rand(3, 100, generator=seeded()) - 0.5
    lengths = torch.tensor([100, 60, 1])
    waveforms[~valid_mask(lengths, 100)] = 0.0
    result = attack(lambda w, _: w @ weight.T, waveforms, torch.tensor([0, 1, 2]), lengths, generator=seeded())
    assert result.waveforms[~valid_mask(lengths, 100)].abs().max() == 0.0
    assert result.achieved.tolist() == wanted(result.waveforms @ weight.T, torch.tensor([0, 1, 2]), Objective())


def test_without_lengths_a_module_is_told_of_none_and_a_function_of_all(loud: Speech, recognizer: Recognizer) -> None:
    told: list[Tensor | None] = []

    class Spy(torch.nn.Module):
        def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
            told.append(lengths)
            return recognizer(waveforms, lengths)

    full = torch.full((3,), loud[0].shape[1])
    by_function = PGD(steps=2)(lambda x, n: recognizer(x, n) if n is not None else x, loud[0], torch.tensor([0, 1, 2]))
    result = PGD(steps=2)(Spy(), loud[0], torch.tensor([0, 1, 2]))
    assert by_function.lengths.equal(full)
    assert told == [None] * 4
    assert result.lengths.tolist() == [loud[0].shape[1]] * 3


def test_an_empty_batch_comes_back_empty(recognizer: Recognizer) -> None:
    for attack, _ in ATTACKS.values():
        result = attack(recognizer, torch.zeros(0, 16_000), torch.zeros(0, dtype=torch.int64), measure=False)
        assert result.waveforms.shape == (0, 16_000)


def test_an_attack_that_leaves_the_ball_is_brought_back() -> None:
    class Cheat(Attack):
        epsilon = 0.1

        def perturb(self, score: Any, waveforms: Tensor, *_: Any) -> Tensor:
            return waveforms + torch.tensor([5.0, -5.0, 0.05])

    waveforms = torch.tensor([[0.5, 0.5, 0.5], [0.95, -0.95, 0.0]])
    seen = []

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        seen.append(w)
        return torch.stack([w.sum(1), -w.sum(1)], 1)

    result = Cheat()(score, waveforms, torch.tensor([0, 0]), torch.tensor([3, 2]))
    expected = torch.tensor([[0.6, 0.4, 0.55], [1.0, -1.0, 0.0]])
    torch.testing.assert_close(result.waveforms, expected)
    torch.testing.assert_close(seen[-1], expected)  # what success was measured on


# Where it is called

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "with gradients": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
EVERY_CONTEXT = pytest.mark.parametrize(
    "context",
    [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n != "inference_mode")) for n, c in CONTEXTS.items()],
)


@pytest.mark.parametrize("as_function", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["module", "function"])
@EVERY_CONTEXT
@EVERY_ATTACK
def test_the_result_is_the_same_in_training_validation_and_inference_mode(
    attack: Attack,
    queries: int,
    context: Callable[[], AbstractContextManager[Any]],
    as_function: bool,
    loud: Speech,
    recognizer: Recognizer,
) -> None:
    labels = recognizer(*loud).argmax(1)
    score: Any = (lambda w, n: recognizer(w, n)) if as_function else recognizer
    expected = attack(score, loud[0], labels, loud[1], generator=seeded())
    with context():  # inputs are made inside, as a data loader's are
        inputs = loud[0] * 1.0, labels + 0, loud[1] + 0
        result = attack(score, inputs[0], inputs[1], inputs[2], generator=seeded())
        assert torch.is_grad_enabled() is (context is torch.enable_grad)
        assert torch.is_inference_mode_enabled() is (context is torch.inference_mode)
    assert torch.equal(result.waveforms, expected.waveforms)
    assert torch.equal(result.achieved, expected.achieved)
    assert not result.waveforms.is_inference()  # so that a training step may follow
    assert all(parameter.grad is None for parameter in recognizer.parameters())


@pytest.mark.parametrize(
    "context", [*(pytest.param(c, marks=pytest.mark.slow) for c in (nullcontext, torch.no_grad)), torch.inference_mode]
)
@EVERY_ATTACK
def test_attacks_work_under_bf16_autocast(
    attack: PGD,
    queries: int,
    context: Callable[[], AbstractContextManager[Any]],
    loud: Speech,
    recognizer: Recognizer,
) -> None:
    labels = recognizer(*loud).argmax(1)
    with torch.autocast("cpu", torch.bfloat16), context():
        result = attack(recognizer, loud[0], labels, loud[1], generator=seeded())
        scores = recognizer(result.waveforms, loud[1])
        assert scores.dtype == torch.float32  # the head is, the backbone is not
    assert result.waveforms.dtype == torch.float32
    assert (result.waveforms - loud[0]).abs().max() <= attack.epsilon + 6e-8
    assert result.achieved.tolist() == wanted(scores, labels, Objective())
    plain = attack(recognizer, loud[0], labels, loud[1], generator=seeded()).waveforms
    if not isinstance(attack, UNFINISHED):
        return
    agreement = ((result.waveforms - loud[0]).sign() == (plain - loud[0]).sign()).float().mean()
    assert agreement > 0.6  # the same attack, up to its gradient's rounding; chance gives half


@pytest.mark.parametrize("as_function", [False, True], ids=["module", "function"])
def test_weights_can_be_trained_under_autocast_after_an_attack(
    as_function: bool, loud: Speech, recognizer: Recognizer
) -> None:
    """Autocast keeps casts of weights, which must not be those made while gradients were off."""
    labels = torch.tensor([0, 1, 2])
    score: Any = (lambda w, n: recognizer(w, n)) if as_function else recognizer
    with torch.autocast("cpu", torch.bfloat16):
        PGD(steps=1)(score, loud[0], labels, loud[1])
        loss = functional.cross_entropy(recognizer(*loud), labels)
    loss.backward()
    assert [name for name, weight in recognizer.named_parameters() if weight.grad is None] == []


# A borrowed model


def mixed(recognizer: Recognizer) -> None:
    """Training flags and frozen weights in no simple order, and gradients of an earlier micro-batch."""
    recognizer.train()
    modules = list(recognizer.modules())
    for index, module in enumerate(modules):
        module.training = index % 3 != 0
    for index, parameter in enumerate(recognizer.parameters()):
        parameter.requires_grad_(index % 4 != 1)
        parameter.grad = torch.full_like(parameter, float(index)) if index % 2 else None


def state(module: nn.Module) -> tuple[Any, ...]:
    """Everything an attack must leave alone; tensors as bytes."""
    return (
        [m.training for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [None if p.grad is None else p.grad.numpy().tobytes() for p in module.parameters()],
        {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()},
    )


@EVERY_CONTEXT
@EVERY_ATTACK
def test_the_model_comes_back_as_it_was(
    attack: Attack,
    queries: int,
    context: Callable[[], AbstractContextManager[Any]],
    loud: Speech,
    recognizer: Recognizer,
) -> None:
    mixed(recognizer)
    before = state(recognizer)
    assert {True, False} == set(before[0]) == set(before[1])
    seen = []
    score = Observed(recognizer, lambda _: seen.append([*state(recognizer)[:2]]))
    with context():
        attack(score, loud[0], torch.tensor([0, 1, 2]), loud[1])
    assert state(recognizer) == before
    assert seen
    for training, trainable in seen:
        assert not any(training)
        assert not any(trainable)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_the_model_comes_back_as_it_was_when_the_attack_raises(call: int, loud: Speech, recognizer: Recognizer) -> None:
    mixed(recognizer)
    before = state(recognizer)
    calls = []

    def fail(_: Tensor) -> None:
        calls.append(0)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    with pytest.raises((RuntimeError, ValueError), match="out of memory"):
        PGD(steps=1)(Observed(recognizer, fail), loud[0], torch.tensor([0, 1, 2]), loud[1])
    assert state(recognizer) == before


# The fast path


@pytest.mark.parametrize(
    ("attack", "queries"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (index % 2 or "draws" in name or "restarts" in name))
        for index, (name, case) in enumerate(ATTACKS.items())
    ],
)
def test_a_recognizers_fused_form_is_attacked_like_itself(
    attack: Attack, queries: int, speech: Speech, recognizer: Recognizer
) -> None:
    """In double precision: in single precision rounding flips signs of small gradients."""
    recognizer, waveforms = recognizer.double(), speech[0].double()
    labels, objective = torch.arange(len(waveforms)) % 10, Objective()

    def plain(waveforms: Tensor, lengths: Tensor) -> Tensor:
        return recognizer.eval()(waveforms, lengths)  # type: ignore[no-any-return]

    results = [attack(score, waveforms, labels, speech[1], generator=seeded(4)) for score in (recognizer, plain)]
    fast, slow = (objective.loss(recognizer(result.waveforms, speech[1]), labels) for result in results)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    assert torch.equal(results[0].queries, results[1].queries)


def test_the_gradient_through_the_fused_form_is_that_of_the_recognizer(speech: Speech, recognizer: Recognizer) -> None:
    recognizer.eval().requires_grad_(False)
    fast = recognizer.fused()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fast.modules())
    gradients = []
    for score in (recognizer, fast):
        x = speech[0].clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(functional.cross_entropy(score(x, speech[1]), torch.arange(8)), x)[0])
    cosine = functional.cosine_similarity(*gradients, dim=1)
    assert float(cosine.min()) > 0.99999


def test_a_large_batch_is_attacked_in_parts_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waveforms, labels = torch.rand(7, 40, generator=seeded(5)) - 0.5, torch.arange(7) % 5
    generators = [[seeded(row) for row in range(7)] for _ in range(2)]
    whole = PGD(steps=2, restarts=2)(bumpy, waveforms, labels, generator=generators[0])
    rows = []

    def watched(w: Tensor, _: Tensor | None) -> Tensor:
        rows.append(len(w))
        return bumpy(w, None)

    monkeypatch.setattr("sec4sr_pl.attacks.base.CACHED_SAMPLES", 3 * 40 + 39)
    parts = PGD(steps=2, restarts=2)(watched, waveforms, labels, generator=generators[1])
    assert rows == [1, *[3] * 7, *[3] * 7, *[1] * 7]  # one row to look at the labels
    torch.testing.assert_close(parts.waveforms, whole.waveforms, rtol=0, atol=1e-7)
    assert torch.equal(parts.achieved, whole.achieved)
    assert torch.equal(parts.queries, whole.queries)


def test_an_attack_of_the_whole_batch_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    class Together(PGD):
        separable = False

    monkeypatch.setattr("sec4sr_pl.attacks.base.CACHED_SAMPLES", 40)
    assert Together().parts(torch.zeros(5, 40)) == [slice(0, 5)]
    assert PGD().parts(torch.zeros(5, 40, device="meta")) == [slice(0, 5)]  # a CPU's cache is no measure elsewhere
    assert PGD().parts(torch.zeros(2, 90)) == [slice(0, 1), slice(1, 2)]  # longer than the cache: one by one


# Random starts and draws


def bumpy(waveforms: Tensor, _: Tensor | None) -> Tensor:
    """Scores with many local minima, so that the start decides where a run ends."""
    mixing = torch.randn(5, waveforms.shape[1], generator=seeded(3)).to(waveforms)
    return torch.sin(400.0 * waveforms @ mixing.T) + torch.cos(150.0 * waveforms @ mixing.T.flip(0))


def test_the_best_restart_is_kept_for_each_utterance() -> None:
    waveforms, labels = 0.5 - torch.rand(16, 40, generator=seeded(5)), torch.arange(16) % 5
    objective = Objective()
    generator = seeded(6)
    runs = [PGD(steps=2, restarts=1, loss="margin")(bumpy, waveforms, labels, generator=generator) for _ in range(4)]
    losses = torch.stack([objective.loss(bumpy(run.waveforms, None), labels) for run in runs])
    best = losses.argmin(0)
    assert len(set(best.tolist())) == 4  # every run is the best of somebody
    expected = torch.stack([runs[index].waveforms[row] for row, index in enumerate(best.tolist())])
    result = PGD(steps=2, restarts=4, loss="margin")(bumpy, waveforms, labels, generator=seeded(6))
    assert torch.equal(result.waveforms, expected)


def test_random_starts_fill_the_ball_and_stay_in_range() -> None:
    waveforms = torch.tensor([[-1.0, 0.0, 1.0]]).repeat(2000, 1)
    starts = []

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        starts.append(w.detach())
        return torch.stack([w.sum(1), -w.sum(1)], 1)

    PGD(epsilon=0.1, step_size=0.01, steps=1, restarts=1)(
        score, waveforms, torch.zeros(2000, dtype=torch.int64), generator=seeded(), measure=False
    )
    (start,) = starts
    delta = (start - waveforms)[:, 1]
    assert start.abs().max() <= 1.0
    assert delta.min() == pytest.approx(-0.1, abs=1e-3) and delta.max() == pytest.approx(0.1, abs=1e-3)
    assert float(delta.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(delta.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_with_a_generator_for_each_row_random_starts_do_not_depend_on_batch_mates_or_padding() -> None:
    waveforms, labels = torch.rand(6, 40, generator=seeded(5)) - 0.5, torch.arange(6) % 5
    attack = PGD(steps=2, restarts=3)
    together = attack(bumpy, waveforms, labels, generator=[seeded(row) for row in range(6)]).waveforms
    some = [4, 1]
    apart = attack(bumpy, waveforms[some], labels[some], generator=[seeded(row) for row in some]).waveforms
    torch.testing.assert_close(apart, together[some], rtol=0, atol=1e-7)
    padded = attack(
        lambda w, _: bumpy(w[:, :40], None),
        functional.pad(waveforms, (0, 13)),
        labels,
        torch.full((6,), 40),
        generator=[seeded(row) for row in range(6)],
    ).waveforms
    torch.testing.assert_close(padded[:, :40], together, rtol=0, atol=1e-7)


class RandomLinear:
    """Scores of weights with fresh noise at each call."""

    def __init__(self, deviation: float) -> None:
        self.weight = torch.randn(2, 400, generator=seeded(8))
        self.deviation, self.generator = deviation, seeded(9)

    def __call__(self, waveforms: Tensor, _: Tensor | None) -> Tensor:
        noise = torch.randn(self.weight.shape, generator=self.generator)
        return waveforms @ (self.weight + self.deviation * noise).T


def test_the_mean_gradient_of_draws_converges() -> None:
    waveforms, labels = torch.zeros(1, 400), torch.tensor([0])
    cosines = []
    for draws in (1, 4, 64, 1024):
        score = RandomLinear(deviation=4.0)
        gradient = PGD(draws=draws, loss="margin").gradient(score, waveforms, labels, torch.tensor([400]), Objective())
        truth = score.weight[0] - score.weight[1]
        cosines.append(float(functional.cosine_similarity(gradient[0], truth, 0)))
    expected = [1 / math.sqrt(1 + 16 / draws) for draws in (1, 4, 64, 1024)]  # signal over signal and noise
    assert cosines == pytest.approx(expected, abs=0.15)
    assert cosines == sorted(cosines)


def test_draws_make_an_attack_on_a_randomized_model_stronger() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    margins = []
    for draws in (1, 64):
        score = RandomLinear(deviation=4.0)
        result = FGSM(epsilon=0.01, draws=draws, loss="margin")(score, torch.zeros(1, 400), labels)
        margins.append(float(Objective().loss(result.waveforms @ score.weight.T, labels)))
        assert result.queries.tolist() == [draws + 1]
    assert margins[1] < 2.0 * margins[0] < 0.0


def test_draws_change_nothing_on_a_deterministic_model(loud: Speech, recognizer: Recognizer) -> None:
    labels = torch.tensor([0, 1, 2])
    one, three = (PGD(steps=2, draws=draws)(recognizer, loud[0], labels, loud[1]) for draws in (1, 3))
    assert torch.equal(one.waveforms, three.waveforms)


# The right answer is known


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("threshold", [-math.inf, 0.0])
@pytest.mark.parametrize(
    "attack",
    [FGSM(0.01), PGD(0.01, 0.002, 5), PGD(0.01, 0.002, 13, restarts=2), CWinf(0.01, 0.002, 5), PGD(0.01, 0.1, 1)],
    ids=["FGSM", "PGD", "PGD, restarts", "CWinf", "PGD, long step"],
)
def test_on_a_linear_scorer_the_corner_of_the_ball_is_reached(attack: Attack, threshold: float, targeted: bool) -> None:
    weight = torch.randn(30, generator=seeded(1))
    waveforms = torch.rand(6, 30, generator=seeded(2)) * 2 - 1
    waveforms[:, :4] = torch.tensor([1.0, -1.0, 0.995, -0.995])

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        one = w @ weight
        return torch.stack([one, -one], 1) if threshold == -math.inf else one.unsqueeze(1)

    labels = torch.arange(6) % 2 if threshold == -math.inf else torch.arange(6) % 2 - 1
    up = (labels == 0) == targeted  # the first speaker's score must rise
    direction = torch.where(up, 1.0, -1.0).unsqueeze(1) * weight.sign()
    expected = (waveforms + 0.01 * direction).clamp(-1.0, 1.0)
    result = attack(score, waveforms, labels, objective=Objective(threshold, targeted), generator=seeded())
    torch.testing.assert_close(result.waveforms, expected, rtol=0, atol=1e-6)


# What makes no sense is refused


@pytest.mark.parametrize("attack", [FGSM(loss="cross_entropy"), PGD(loss="cross_entropy")], ids=["FGSM", "PGD"])
def test_cross_entropy_is_refused_where_there_is_a_threshold(
    attack: Attack, loud: Speech, recognizer: Recognizer
) -> None:
    with pytest.raises(ValueError, match="use loss 'margin' where there is a threshold"):
        attack(recognizer, loud[0], torch.tensor([0, 1, 2]), loud[1], Objective(threshold=0.0))


def spoilt(value: float) -> Tensor:
    waveforms = torch.zeros(2, 16_000)
    waveforms[1, 7] = value
    return waveforms


FINE: dict[str, Any] = {"waveforms": torch.zeros(2, 16_000), "labels": torch.tensor([0, 9]), "lengths": None}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"waveforms": spoilt(math.nan)}, "nan"),
    "inf": ({"waveforms": spoilt(math.inf)}, "inf"),
    "above 1": ({"waveforms": spoilt(1.001)}, "1.001"),
    "below -1": ({"waveforms": spoilt(-32_768.0)}, "32768"),
    "one dimension": ({"waveforms": torch.zeros(16_000)}, r"\(16000,\)"),
    "three dimensions": ({"waveforms": torch.zeros(2, 1, 16_000)}, r"\(2, 1, 16000\)"),
    "int16 waveforms": ({"waveforms": torch.zeros(2, 16_000, dtype=torch.int16)}, "int16"),
    "labels of another batch": ({"labels": torch.tensor([0])}, "1 labels"),
    "float labels": ({"labels": torch.tensor([0.0, 1.0])}, "float32"),
    "int32 labels": ({"labels": torch.tensor([0, 1], dtype=torch.int32)}, "int32"),
    "a label too high": ({"labels": torch.tensor([0, 10])}, "10"),
    "a label too low": ({"labels": torch.tensor([0, -2])}, "-2"),
    "REJECT in a closed set": ({"labels": torch.tensor([0, REJECT])}, "closed set"),
    "lengths of another batch": ({"lengths": torch.tensor([16_000])}, r"\(1,\)"),
    "float lengths": ({"lengths": torch.tensor([16_000.0, 16_000.0])}, "float32"),
    "a length beyond the end": ({"lengths": torch.tensor([16_000, 16_001])}, "16001"),
    "a length of 0": ({"lengths": torch.tensor([16_000, 0])}, "0"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(changes: dict[str, Any], message: str, recognizer: Recognizer) -> None:
    arguments = {**FINE, **changes}
    PGD(steps=1)(recognizer, **FINE)
    with pytest.raises(ValueError, match=message):
        PGD(steps=1)(recognizer, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"epsilon": 3.0},
        {"step_size": -0.0001},
        {"steps": 0},
        {"restarts": -1},
        {"draws": 0},
        {"loss": "hinge"},
    ],
    ids=str,
)
def test_a_parameter_outside_its_range_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        PGD(**arguments)


def test_an_attack_prints_as_the_call_that_makes_it() -> None:
    for attack, _ in ATTACKS.values():
        again = eval(repr(attack), vars(attacks))
        assert vars(again) == vars(attack)


def test_an_attack_without_parameters_prints_too() -> None:
    class Nothing(Attack):
        epsilon = 0.0

        def perturb(self, score: Any, waveforms: Tensor, *_: Any) -> Tensor:
            return waveforms

    assert repr(Nothing()) == "Nothing()"


def test_an_attack_is_named_as_papers_name_it() -> None:
    assert [PGD().name, PGD(steps=100).name, CWinf().name, FGSM().name] == ["PGD-10", "PGD-100", "CWinf-10", "FGSM"]


# Equality with the reference libraries


class Recorded(nn.Module):
    """A recognizer of utterances with known lengths that keeps each point at which a gradient is taken."""

    def __init__(self, recognizer: Recognizer, lengths: Tensor) -> None:
        super().__init__()
        self.recognizer, self.lengths = recognizer, lengths
        self.points: list[Tensor] = []

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        if waveforms.requires_grad:
            self.points.append(waveforms.detach().clone())
        return self.recognizer(waveforms, self.lengths[: len(waveforms)])


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Own score minus the best other, of a closed set."""
    own = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = [
        torch.cat([row[:label], row[label + 1 :]]).max() for row, label in zip(scores, labels.tolist(), strict=True)
    ]
    return own - torch.stack(others)


def by_foolbox(name: str, steps: int, targeted: bool, model: Recorded, waveforms: Tensor, labels: Tensor) -> Tensor:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    ep = pytest.importorskip("eagerpy")
    reference: Any
    if name == "FGSM" and targeted:  # foolbox's has no targets
        reference = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.002, steps=1, random_start=False)
    elif name == "FGSM":
        reference = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    elif name == "PGD":
        reference = foolbox.attacks.LinfPGD(abs_stepsize=0.0004, steps=steps, random_start=False)
    elif name == "BIM":
        reference = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.0004, steps=steps, random_start=False)
    else:

        class MarginAttack(foolbox.attacks.LinfBasicIterativeAttack):
            def get_loss_fn(self, model: Any, labels: Any) -> Any:  # foolbox ascends it, and descends where targeted
                return lambda inputs: ep.astensor(-margin(model(inputs).raw, labels.raw).sum())

        reference = MarginAttack(abs_stepsize=0.0004, steps=steps, random_start=False)
    criterion = (foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification)(labels)
    classifier = foolbox.PyTorchModel(model.eval(), bounds=(-1, 1), device="cpu")
    result: Tensor = reference.run(classifier, waveforms, criterion, epsilon=0.002)
    return result


class MarginLoss(nn.Module):
    """For ART, which ascends it and descends where targeted; labels come one-hot."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -margin(scores, labels.argmax(1)).sum()


def by_art(name: str, steps: int, targeted: bool, model: Recorded, waveforms: Tensor, labels: Tensor) -> Tensor:
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    loss = MarginLoss() if name == "CWinf" else nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(
        model, loss, waveforms.shape[1:], nb_classes=10, clip_values=(-1.0, 1.0), device_type="cpu"
    )
    common = {"eps": 0.002, "targeted": targeted, "batch_size": len(waveforms)}
    if name == "FGSM":
        reference = evasion.FastGradientMethod(classifier, **common)
    elif name == "BIM":
        reference = evasion.BasicIterativeMethod(classifier, eps_step=0.0004, max_iter=steps, verbose=False, **common)
    else:
        reference = evasion.ProjectedGradientDescentPyTorch(
            classifier, eps_step=0.0004, max_iter=steps, verbose=False, **common
        )
    return torch.from_numpy(reference.generate(waveforms.numpy(), labels.numpy()))


@pytest.fixture
def double_art(monkeypatch: pytest.MonkeyPatch) -> None:
    """ART in double precision, if it is there."""
    try:
        from art.attacks import evasion  # noqa: F401
        from art.estimators import classification  # noqa: F401
    except ImportError:
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("art.") and hasattr(module, "ART_NUMPY_DTYPE"):
            monkeypatch.setattr(module, "ART_NUMPY_DTYPE", np.float64)


REFERENCES = [("FGSM", FGSM()), ("BIM", PGD()), ("PGD", PGD(steps=20)), ("CWinf", CWinf())]


@pytest.mark.parametrize("library", [by_foolbox, by_art], ids=["foolbox", "ART"])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(("name", "attack"), REFERENCES, ids=[name for name, _ in REFERENCES])
def test_every_step_equals_that_of_the_reference_libraries(
    name: str,
    attack: PGD,
    targeted: bool,
    library: Callable[..., Tensor],
    speech: Speech,
    recognizer: Recognizer,
    double_art: None,
) -> None:
    """In double precision: in single, the last bit in which two ways to clip differ soon flips a sign."""
    waveforms, lengths = speech[0][::4, :16_000].double(), speech[1][::4].clamp_max(16_000)
    recognizer = recognizer.double()
    decisions = recognizer(waveforms, lengths).argmax(1)
    labels = (decisions + 3) % 10 if targeted else decisions
    objective = Objective(targeted=targeted)

    own, theirs = Recorded(recognizer, lengths), Recorded(recognizer, lengths)
    result = attack(own, waveforms, labels, lengths, objective)
    own.points.append(result.waveforms)
    theirs.points.append(library(name, attack.steps, targeted, theirs, waveforms.clone(), labels))

    assert len(own.points) == len(theirs.points) == attack.steps + 1
    for ours, reference in zip(own.points, theirs.points, strict=True):
        assert ours.dtype == reference.dtype == torch.float64
        assert (ours - reference).abs().max() <= 1e-12
        with torch.no_grad():
            losses = [attack_loss(attack.loss, objective, recognizer(w, lengths), labels) for w in (ours, reference)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-9)
    assert (own.points[-1] - waveforms).abs().max() == pytest.approx(0.002)


@pytest.mark.parametrize("library", [by_foolbox, by_art], ids=["foolbox", "ART"])
@pytest.mark.parametrize(("name", "attack"), [("FGSM", FGSM()), ("BIM", PGD()), ("CWinf", CWinf())])
def test_in_single_precision_a_step_from_the_same_point_is_the_same(
    name: str, attack: PGD, library: Callable[..., Tensor], speech: Speech, recognizer: Recognizer
) -> None:
    waveforms, lengths = speech[0][::4, :16_000], speech[1][::4].clamp_max(16_000)
    labels = recognizer(waveforms, lengths).argmax(1)
    theirs = Recorded(recognizer, lengths)
    theirs.points.append(library(name, attack.steps, False, theirs, waveforms.clone(), labels))
    assert len(theirs.points) == attack.steps + 1
    step = PGD(attack.epsilon, attack.step_size, steps=1, loss=attack.loss)
    for before, after in itertools.pairwise(theirs.points):
        ours = step.descend(recognizer, before, waveforms, labels, lengths, Objective())
        assert (ours - after).abs().max() <= 1e-8
