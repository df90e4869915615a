"""SirenAttack where the best corner of the ball is known, and on the shipped checkpoint."""

from typing import Any

import pytest
import torch
from test_strong_attacks import GOALS, ROWS, SIZE, TASKS, Linear, Noisy, seeded, shipped
from torch import Tensor

from sec4sr_pl.attacks import Objective, SirenAttack

__all__ = ["shipped"]


@GOALS
@TASKS
def test_it_reaches_its_goal_in_every_task_with_a_known_threshold(task: str, targeted: bool) -> None:
    model = Linear(task, targeted)
    attack = SirenAttack(0.3, particles=20, epochs=3, steps=40)
    reachable = model.corner(0.3) < -2.0
    model.seen = 0
    result = attack(model, model.waveforms, model.labels, objective=model.objective, generator=seeded())
    assert reachable.sum() >= 6
    assert result.achieved[reachable].all()
    assert (result.waveforms - model.waveforms).abs().max() <= 0.3 + 1e-6
    assert int(result.queries.sum()) == model.seen - 1


def test_the_swarm_moves_by_the_formula_of_the_paper() -> None:
    """In one dimension, from the places at which the score was asked."""
    places: list[Tensor] = []

    def score(w: Tensor, _: Tensor) -> Tensor:
        places.append(w.squeeze(1).clone())
        return torch.stack([1.0 + w[:, 0], 0.0 * w[:, 0]], 1)

    SirenAttack(0.5, particles=3, epochs=1, steps=4)(
        score, torch.zeros(1, 1), torch.tensor([0]), generator=seeded(), measure=False
    )
    x = torch.stack(places)
    own_seed = int(torch.randint(2**63 - 1, (1,), generator=seeded()))
    own = torch.Generator().manual_seed(own_seed)

    def number() -> float:
        seed = int(torch.randint(2**63 - 1, (), generator=own))
        return float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))

    position = [0.0, *[-0.5 + number() for _ in range(3)][1:]]
    velocity = [2.0 * number() - 1.0 for _ in range(3)]
    best = list(position)
    for step in range(5):
        assert x[step].tolist() == pytest.approx(position, abs=1e-6)
        best = [min(old, new) for old, new in zip(best, position, strict=True)]  # the score falls with the sample
        inertia = 0.8 * (4 - step - 1) / 4 + 0.1
        for i in range(3):
            pull = number() * (best[i] - position[i]) + number() * (min(best) - position[i])
            velocity[i] = inertia * velocity[i] + 1.4961 * pull
            position[i] = max(-0.5, min(0.5, position[i] + velocity[i]))


def test_the_best_place_survives_from_epoch_to_epoch() -> None:
    model = Linear("CSI", targeted=False)
    never = Objective(confidence=1e3)
    margins = []
    for epochs in (1, 2, 4):
        result = SirenAttack(0.1, particles=6, epochs=epochs, steps=9)(
            model, model.waveforms, model.labels, objective=never, generator=seeded()
        )
        assert result.queries.tolist() == [6 * 10 * epochs + 1] * ROWS
        margins.append(never.loss(model(result.waveforms, None), model.labels))
    assert (margins[1] <= margins[0]).all() and (margins[2] <= margins[1]).all()
    assert margins[2].sum() < margins[0].sum()


def test_an_utterance_without_progress_ends_its_epochs_and_leaves() -> None:
    def flat(w: Tensor, _: Tensor) -> Tensor:
        return torch.stack([w[:, 0] * 0 + 1.0, w[:, 0] * 0], 1)

    result = SirenAttack(particles=2)(flat, torch.zeros(2, 5), torch.tensor([0, 0]), generator=seeded())
    assert result.queries.tolist() == [11 * 11 * 2 + 1] * 2  # epochs of 10 steps and the start, at last the eleventh


@pytest.mark.parametrize(
    ("epochs", "steps", "stalled", "moving"),
    [(1, 30, 11, 31), (14, 1, 11 * 2, 14 * 2)],
    ids=["within an epoch", "over epochs"],
)
def test_an_utterance_stalls_by_itself(epochs: int, steps: int, stalled: int, moving: int) -> None:
    """Fault L12: a stop by the batch's mean ends, or keeps, both. Their lengths tell the two utterances apart."""

    def score(w: Tensor, lengths: Tensor) -> Tensor:
        slope = torch.where(lengths < w.shape[1], 0.0, 1e-3)  # so that a thousand samples have far to go
        return torch.stack([2.0 + slope * w.sum(1), 0.0 * slope], 1)

    result = SirenAttack(1.0, particles=4, epochs=epochs, steps=steps)(
        score, torch.zeros(2, 1_000), torch.tensor([0, 0]), torch.tensor([999, 1_000]), generator=seeded()
    )
    assert result.queries.tolist() == [4 * stalled + 1, 4 * moving + 1]


@pytest.mark.parametrize("draws", [1, 2])
def test_a_row_ends_by_itself_whatever_becomes_of_its_mates(draws: int) -> None:
    model = Linear("CSI", targeted=False)
    model.weight, model.waveforms = model.weight.double(), model.waveforms.double()
    attack = SirenAttack(0.08, particles=8, epochs=3, steps=12, draws=draws)
    together = attack(model, model.waveforms, model.labels, generator=[seeded(row) for row in range(ROWS)])
    assert len(set(together.queries.tolist())) > 3
    for row in range(0, ROWS, 4):
        alone = attack(model, model.waveforms[row : row + 1], model.labels[row : row + 1], generator=[seeded(row)])
        torch.testing.assert_close(alone.waveforms[0], together.waveforms[row], rtol=0, atol=1e-9)
        assert alone.queries[0] == together.queries[row]


def test_particles_are_asked_in_parts_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, attack = Linear("CSI", targeted=False), SirenAttack(0.03, particles=7, epochs=1, steps=5)
    whole = attack(model, model.waveforms, model.labels, generator=seeded())
    sizes: list[int] = []

    def watched(w: Tensor, lengths: Tensor) -> Tensor:
        sizes.append(len(w))
        return model(w, lengths)

    monkeypatch.setattr("sec4sr_pl.attacks.source.CACHED_SAMPLES", 3 * ROWS * SIZE)
    parts = attack(watched, model.waveforms, model.labels, generator=seeded())
    assert max(sizes) == 3 * ROWS
    torch.testing.assert_close(parts.waveforms, whole.waveforms, rtol=0, atol=1e-6)
    assert torch.equal(parts.queries, whole.queries)


def test_padding_changes_nothing() -> None:
    model, lengths = Linear("CSI", targeted=False), torch.tensor([SIZE, 20, 41] * (ROWS // 3))
    waveforms = model.waveforms.masked_fill(torch.arange(SIZE) >= lengths.unsqueeze(1), 0.0)
    attack = SirenAttack(0.05, particles=5, epochs=2, steps=8)
    together = attack(model, waveforms, model.labels, lengths, generator=[seeded(row) for row in range(ROWS)]).waveforms
    for row in (1, 2):
        size = int(lengths[row])

        def short(w: Tensor, _: Tensor, size: int = size) -> Tensor:
            one = w @ model.weight[:size]
            return torch.stack([one, -one], 1)

        alone = attack(short, waveforms[row : row + 1, :size], model.labels[row : row + 1], generator=[seeded(row)])
        torch.testing.assert_close(alone.waveforms[0], together[row, :size], rtol=0, atol=1e-6)


def test_with_draws_a_success_is_no_lucky_draw() -> None:
    rates = []
    for draws in (1, 20):
        score = Noisy(deviation=0.1)
        attack = SirenAttack(0.3, particles=10, epochs=2, steps=20, draws=draws)
        result = attack(score, score.model.waveforms, score.model.labels, generator=seeded())
        fresh = [Objective().achieved(score(result.waveforms, None), score.model.labels) for _ in range(50)]
        rates.append(float(torch.stack(fresh).float().mean()))
    assert rates[1] > rates[0]
    assert rates[1] > 0.9


@pytest.mark.parametrize("wrong", [{"epsilon": 3.0}, {"particles": 0}, {"epochs": 0}, {"steps": 0}, {"draws": 0}])
def test_a_parameter_outside_its_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        SirenAttack(**wrong)


def test_defaults_are_those_of_the_published_command_line() -> None:
    attack = SirenAttack()
    assert (attack.particles, attack.epochs, attack.steps, attack.epsilon) == (50, 30, 300, 0.002)
    assert attack.name == "Siren-30x300x50"
    assert SirenAttack(0.001, 10, 2, 20, 3).name == "Siren-2x20x10-EOT3-eps0.001"


def test_on_real_speech_the_swarm_finds_more_than_as_many_random_points(
    shipped: tuple[Any, Tensor, Tensor, Tensor],
) -> None:
    recognizer, waveforms, lengths, labels = (part[:6] if isinstance(part, Tensor) else part for part in shipped)
    never = Objective(confidence=20.0)
    generators = [seeded(row) for row in range(6)]
    result = SirenAttack(particles=10, epochs=1, steps=12)(
        recognizer, waveforms, labels, lengths, never, generator=generators
    )
    assert result.queries.tolist() == [10 * 13 + 1] * 6
    noise = [waveforms + 0.002 * (2.0 * torch.rand(waveforms.shape, generator=seeded(i)) - 1.0) for i in range(130)]
    with torch.no_grad():
        margins = torch.stack([never.loss(recognizer(x.clamp(-1, 1), lengths), labels) for x in noise])
        reached = never.loss(recognizer(result.waveforms, lengths), labels)
    assert (reached < margins.min(0).values).all()
