"""The goal of an attack as a loss: signs, formulas, gradients."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.attacks import FGSM, Objective
from sec4sr_pl.types import REJECT

TASKS = ("CSI", "SV", "OSI")
GOALS = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])


def cases(task: str, number: int, rows: int = 64) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Random (rows, speakers) scores and labels with meaning, and a threshold among the scores."""
    generator = torch.Generator().manual_seed(TASKS.index(task))
    for case in range(number):
        speakers = 1 if task == "SV" else 2 + case % 9
        scale = 10.0 ** (case % 5 - 2)
        scores = scale * torch.randn(rows, speakers, generator=generator, dtype=torch.float64)
        threshold = -math.inf if task == "CSI" else scale * float(torch.randn((), generator=generator))
        lowest = 0 if task == "CSI" else REJECT
        yield scores, torch.randint(lowest, speakers, (rows,), generator=generator), threshold


def decision(scores: list[float], threshold: float) -> int:
    best = max(range(len(scores)), key=scores.__getitem__)
    return best if scores[best] > threshold else REJECT


def plain_loss(task: str, targeted: bool, s: list[float], label: int, threshold: float, confidence: float) -> float:
    """The table of losses, a line each."""
    others = [score for i, score in enumerate(s) if i != label]
    if task == "CSI":
        if targeted:
            return max(others) - s[label] + confidence
        return s[label] - max(others) + confidence
    if task == "SV":
        accepted_wanted = (label == 0) == targeted
        return threshold + confidence - s[0] if accepted_wanted else s[0] + confidence - threshold
    if targeted:
        if label == REJECT:
            return max(s) + confidence - threshold
        return max(max(others), threshold) + confidence - s[label]
    if label == REJECT:
        return threshold + confidence - max(s)
    return min(max(s) + confidence - threshold, max(s[label], threshold) + confidence - max(others))


@GOALS
@pytest.mark.parametrize("task", TASKS)
def test_loss_is_negative_exactly_when_the_decision_is_the_wanted_one(task: str, targeted: bool) -> None:
    outcomes = set()
    for scores, labels, threshold in cases(task, 40):
        objective = Objective(threshold, targeted)
        wanted = [
            (decision(row, threshold) == label) == targeted
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        assert objective.achieved(scores, labels).tolist() == wanted
        assert (objective.loss(scores, labels) < 0).tolist() == wanted
        outcomes.update(wanted)
    assert outcomes == {True, False}


@GOALS
@pytest.mark.parametrize("task", TASKS)
def test_loss_is_that_of_the_table(task: str, targeted: bool) -> None:
    for number, (scores, labels, threshold) in enumerate(cases(task, 40)):
        confidence = (0.0, 0.7, -0.3)[number % 3]
        losses = Objective(threshold, targeted, confidence).loss(scores, labels)
        expected = [
            plain_loss(task, targeted, row, label, threshold, confidence)
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        assert losses.shape == labels.shape
        assert losses.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@GOALS
@pytest.mark.parametrize("task", TASKS)
def test_confidence_shifts_the_loss_and_leaves_the_outcome(task: str, targeted: bool) -> None:
    for scores, labels, threshold in cases(task, 10):
        plain, confident = Objective(threshold, targeted), Objective(threshold, targeted, confidence=1.5)
        torch.testing.assert_close(confident.loss(scores, labels), plain.loss(scores, labels) + 1.5)
        assert torch.equal(confident.achieved(scores, labels), plain.achieved(scores, labels))


@GOALS
def test_a_score_at_the_threshold_is_rejected(targeted: bool) -> None:
    scores, objective = torch.tensor([[0.25, 0.5]]), Objective(0.5, targeted)
    assert bool(objective.achieved(scores, torch.tensor([REJECT]))) is targeted
    assert bool(objective.achieved(scores, torch.tensor([1]))) is not targeted


@GOALS
def test_osi_without_a_threshold_is_csi_and_with_one_speaker_is_sv(targeted: bool) -> None:
    for scores, labels, _ in cases("CSI", 5):
        below = float(scores.min()) - 1.0  # a threshold that nobody misses
        loss = Objective(targeted=targeted).loss(scores, labels)
        torch.testing.assert_close(loss, Objective(below, targeted).loss(scores, labels))
    for scores, labels, threshold in cases("SV", 5):
        losses = Objective(threshold, targeted).loss(scores, labels).tolist()
        rows = zip(scores.tolist(), labels.tolist(), strict=True)
        assert losses == pytest.approx([plain_loss("SV", targeted, s, y, threshold, 0.0) for s, y in rows])


@GOALS
def test_a_label_without_meaning_is_refused(targeted: bool) -> None:
    closed, open_set = Objective(targeted=targeted), Objective(0.0, targeted)
    with pytest.raises(ValueError, match="closed set nobody is rejected"):
        closed.check(torch.tensor([0, REJECT]), speakers=3)
    open_set.check(torch.tensor([0, REJECT, 2]), speakers=3)
    for objective, label in ((closed, 3), (open_set, 3), (open_set, -2), (closed, -2)):
        with pytest.raises(ValueError, match=f"{label}"):
            objective.check(torch.tensor([0, label]), speakers=3)


@GOALS
@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_those_of_finite_differences(task: str, targeted: bool) -> None:
    for scores, labels, threshold in cases(task, 5, rows=6):
        objective = Objective(threshold, targeted)
        loss: Callable[[Tensor], Tensor] = lambda s, o=objective, y=labels: o.loss(s, y)  # noqa: E731
        assert torch.autograd.gradcheck(loss, scores.clone().requires_grad_(True))


@GOALS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("speakers", "threshold"), [(1, 0.2), (1, -math.inf), (5, 0.2), (5, -math.inf)])
def test_gradients_are_finite(speakers: int, threshold: float, dtype: torch.dtype, targeted: bool) -> None:
    labels = torch.arange(0 if threshold == -math.inf else REJECT, speakers)
    scores = torch.randn(len(labels), speakers, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores.requires_grad_(True)
    loss = Objective(threshold, targeted, 0.5).loss(scores, labels)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).all()  # every row is told where to go


@GOALS
@pytest.mark.parametrize("task", TASKS)
def test_one_fgsm_step_on_a_linear_scorer_lowers_its_own_loss(task: str, targeted: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    for scores, labels, threshold in cases(task, 20, rows=16):
        weight = torch.randn(scores.shape[1], 50, generator=generator, dtype=torch.float64)
        x = (torch.rand(len(labels), 50, generator=generator, dtype=torch.float64) - 0.5).clamp(-0.9, 0.9)
        bias = scores - x @ weight.T  # scores as drawn at x

        def score(w: Tensor, _: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return w @ weight.T + bias[: len(w)]

        objective = Objective(threshold, targeted)
        for loss in (None, "margin"):  # 1e-7 crosses no kink of the margin
            result = FGSM(epsilon=1e-7, loss=loss)(score, x, labels, objective=objective)
            after = score(result.waveforms, labels)
            if task == "CSI" and loss is None:
                sign = 1.0 if targeted else -1.0
                before_entropy = functional.cross_entropy(scores, labels, reduction="none")
                after_entropy = functional.cross_entropy(after, labels, reduction="none")
                assert (sign * (after_entropy - before_entropy) < 0).logical_or(before_entropy < 1e-7).all()
            else:
                assert (objective.loss(after, labels) < objective.loss(scores, labels)).all()
