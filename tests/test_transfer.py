"""What makes examples transfer: momentum, look ahead, variance tuning, diversity; and attacks crafted elsewhere."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_campaign import SPEAKERS as ENROLLED
from test_campaign import load, write_voices
from test_strong_attacks import seeded
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.attacks import (
    MIFGSM,
    PGD,
    AssumedThreshold,
    AutoAttack,
    InputDiversity,
    Objective,
    Replicate,
    UniversalPerturbation,
)
from sec4sr_pl.attacks.momentum import unit_mean
from sec4sr_pl.audio import write_adversarial
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.robustness import Campaign, Transfer, summarize
from sec4sr_pl.types import valid_mask

MakeRecognizer = Callable[..., Recognizer]
Speech = tuple[Tensor, Tensor]
TIME, CLASSES = 50, 4


class Toy(nn.Module):
    """A curved function of images (batch, 1, 1, time) in double precision that keeps each point it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(TIME, 16, generator=seeded(1), dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(16, CLASSES, generator=seeded(2), dtype=torch.float64))
        self.points: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().flatten(1).clone())
        return torch.tanh(2.0 * images.flatten(1) @ self.first) @ self.second


def middle(rows: int = 5) -> tuple[Tensor, Tensor]:
    """Waveforms far from 0 and 1, where torchattacks clips, and labels."""
    return 0.4 + 0.2 * torch.rand(rows, TIME, generator=seeded(3), dtype=torch.float64), torch.arange(rows) % CLASSES


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("MIFGSM", {"decay": 0.7}, {"momentum": 0.7}),
        ("NIFGSM", {"decay": 1.0}, {"nesterov": True}),
        ("VMIFGSM", {"N": 2, "beta": 0.0}, {"neighbors": 2, "radius": 0.0}),
        ("VNIFGSM", {"N": 2, "beta": 0.0}, {"neighbors": 2, "radius": 0.0, "nesterov": True}),
    ],
)
def test_every_step_equals_that_of_torchattacks(name: str, options: Any, ours: Any, targeted: bool) -> None:
    """Variance tuning without a radius draws nothing, and still corrects where Nesterov looks ahead."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    model = Toy()
    waveforms, labels = middle()
    reference = getattr(torchattacks, name)(model, eps=0.05, alpha=0.01, steps=8, **options)
    if targeted:
        reference.set_mode_targeted_by_label(quiet=True)
    theirs = reference(waveforms.view(-1, 1, 1, TIME), labels).flatten(1)
    points = [point for point in model.points if len(point) == len(waveforms)]
    own: list[Tensor] = []

    def score(w: Tensor, _: Tensor) -> Tensor:
        own.append(w.detach().clone())
        return model(w.view(-1, 1, 1, TIME))  # type: ignore[no-any-return]

    attack = MIFGSM(0.05, 0.01, steps=8, **ours)
    result = attack(score, waveforms, labels, objective=Objective(targeted=targeted), measure=False)
    assert (result.waveforms - theirs).abs().max() <= 1e-12
    assert (result.waveforms - waveforms).abs().max() == pytest.approx(0.05)
    asked = [point for point in own if len(point) == len(waveforms)]
    assert len(asked) >= 8
    for mine, reference_point in zip(asked, points, strict=False):
        assert (mine - reference_point).abs().max() <= 1e-12


def test_variance_tuning_follows_the_algorithm_of_the_paper() -> None:
    """Algorithm 1 of Wang and He, one utterance at a time, with the attack's own draws."""
    model, (waveforms, labels) = Toy(), middle(2)

    def score(w: Tensor, _: Tensor) -> Tensor:
        return model(w.view(-1, 1, 1, TIME))  # type: ignore[no-any-return]

    result = MIFGSM(0.05, 0.01, steps=5, neighbors=3, radius=1.5)(
        score, waveforms, labels, generator=[seeded(7), seeded(8)], measure=False
    ).waveforms
    for row in range(2):
        generator = seeded(7 + row)

        def ascent(x: Tensor, label: Tensor = labels[row : row + 1]) -> Tensor:
            x = x.clone().requires_grad_(True)
            return torch.autograd.grad(functional.cross_entropy(score(x.unsqueeze(0), x), label), x)[0]

        clean = waveforms[row]
        x, momentum, variance = clean, torch.zeros(TIME).double(), torch.zeros(TIME).double()
        for _ in range(5):
            gradient = ascent(x)
            momentum = momentum + (gradient + variance) / (gradient + variance).abs().sum()
            neighbors = []
            for _ in range(3):
                draw = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
                shift = torch.rand(TIME, generator=draw, dtype=torch.float64)
                neighbors.append(ascent(x + 0.05 * 1.5 * (2.0 * shift - 1.0)))
            variance = torch.stack(neighbors).mean(0) - gradient
            x = (x + 0.01 * momentum.sign()).clamp(clean - 0.05, clean + 0.05)
        assert (result[row] - x).abs().max() <= 1e-12


def test_momentum_is_normalized_over_valid_samples_of_each_utterance() -> None:
    gradient = torch.tensor([[2.0, -4.0, 9.0], [1e-30, 0.0, 0.0], [0.0, 0.0, 0.0]])
    unit = unit_mean(gradient, torch.tensor([2, 1, 3]))
    torch.testing.assert_close(unit, torch.tensor([[2 / 3, -4 / 3, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


# Input diversity


def test_diversity_resamples_by_linear_interpolation_and_pads() -> None:
    waveforms = torch.randn(40, 300, generator=seeded(), dtype=torch.float64)
    lengths = torch.randint(100, 301, (40,), generator=seeded(1))
    waveforms[~valid_mask(lengths, 300)] = 0.0
    changed = InputDiversity(0.6, 0.8).draw(waveforms, lengths, seeded(2))(waveforms)
    draws = torch.rand(40, 3, generator=seeded(2), dtype=torch.float64)
    kinds = set()
    for row, (applied, length, place) in enumerate(draws.tolist()):
        size = int(lengths[row])
        factor = 0.8 + 0.2 * length if applied < 0.6 else 1.0
        offset = round(place * (1.0 - factor) * (size - 1))
        positions = (np.arange(size) - offset) / factor
        expected = np.interp(positions, np.arange(size), waveforms[row, :size].numpy(), left=0.0, right=0.0)
        np.testing.assert_allclose(changed[row, :size].numpy(), expected, atol=1e-12)
        silent = int((changed[row, :size] == 0.0).sum())
        assert silent <= (1.0 - factor) * size + 2
        kinds.add(factor == 1.0)
    assert kinds == {True, False}


@pytest.mark.parametrize("never", [InputDiversity(0.0), InputDiversity(1.0, shortest=1.0)])
def test_diversity_that_changes_nothing_is_back_propagation(never: InputDiversity) -> None:
    model, (waveforms, labels) = Toy(), middle()

    def score(w: Tensor, _: Tensor) -> Tensor:
        return model(w.view(-1, 1, 1, TIME))  # type: ignore[no-any-return]

    plain, diverse = (PGD(source=source)(score, waveforms, labels, generator=seeded()) for source in (None, never))
    torch.testing.assert_close(diverse.waveforms, plain.waveforms, rtol=0, atol=1e-12)


def test_diversity_has_the_gradient_of_what_it_does() -> None:
    waveforms, lengths = torch.randn(3, 40, generator=seeded(), dtype=torch.float64), torch.tensor([40, 31, 12])
    waveforms[~valid_mask(lengths, 40)] = 0.0
    transform = InputDiversity(1.0, 0.7).draw(waveforms, lengths, seeded())
    assert torch.autograd.gradcheck(transform, waveforms.requires_grad_(True))


# Ensembles and surrogates


def test_an_ensemble_of_surrogates_transfers_better_than_one() -> None:
    """Linear recognizers that share a direction: the mean of many has less of what is its own."""
    shared = torch.randn(2, 400, generator=seeded(20), dtype=torch.float64)

    def one(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        weight = shared + 3.0 * torch.randn(2, 400, generator=seeded(seed), dtype=torch.float64)
        return lambda w, _: w @ weight.T

    victim, members = one(99), [one(seed) for seed in range(16)]
    waveforms = 0.1 * torch.randn(200, 400, generator=seeded(21), dtype=torch.float64).clamp(-5, 5)
    labels = victim(waveforms, waveforms).argmax(1)

    def rate(score: Callable[[Tensor, Tensor], Tensor]) -> float:
        crafted = PGD(0.05, 0.01, loss="margin")(score, waveforms, labels).waveforms
        return float(Objective().achieved(victim(crafted, labels), labels).double().mean())

    single = np.mean([rate(member) for member in members[:4]])
    together = rate(lambda w, n: torch.stack([member(w, n) for member in members]).mean(0))
    assert together > single + 0.1


@pytest.fixture
def surrogates(make_recognizer: MakeRecognizer, tmp_path: Path) -> list[Path]:
    """Checkpoints of two recognizers of the same speakers."""
    paths = [tmp_path / f"surrogate{seed}.ckpt" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        save_recognizer(make_recognizer(seed=seed), path)
    return paths


@pytest.mark.parametrize("count", [1, 2])
def test_a_transferred_example_is_the_surrogates_and_judged_on_the_victim(
    count: int, surrogates: list[Path], make_recognizer: MakeRecognizer, speech: Speech
) -> None:
    victim, members = make_recognizer(), [make_recognizer(seed=seed) for seed in (1, 2)][:count]
    waveforms, lengths = speech[0][:3], speech[1][:3]
    labels = victim(waveforms, lengths).argmax(1)
    crafted_on = members[0] if count == 1 else Ensemble(members)
    inner = MIFGSM(steps=3, source=InputDiversity())
    expected = inner(crafted_on, waveforms, labels, lengths, generator=after_the_seed())
    attack = Transfer(inner, surrogates[:count])
    result = attack(victim, waveforms, labels, lengths, generator=seeded())
    assert torch.equal(result.waveforms, expected.waveforms)
    assert torch.equal(result.achieved, Objective().achieved(victim(result.waveforms, lengths), labels))
    assert result.queries.tolist() == [1, 1, 1]
    assert attack.name.startswith("Transfer-MIFGSM-3") and attack.name.endswith(surrogates[count - 1].stem)


def after_the_seed() -> torch.Generator:
    """The generator that crafts, after the surrogates' defenses got their seed from it."""
    generator = seeded()
    torch.randint(2**62, (), generator=generator)
    return generator


def test_a_surrogate_of_other_speakers_is_refused(
    surrogates: list[Path], make_recognizer: MakeRecognizer, speech: Speech
) -> None:
    with pytest.raises(ValueError, match="the victim's speakers"):
        Transfer(PGD(), surrogates)(make_recognizer(11), speech[0][:1], torch.tensor([0]), speech[1][:1])
    with pytest.raises(ValueError, match="at least one surrogate"):
        Transfer(PGD(), [])


def test_a_surrogate_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    for path in (tmp_path / "a.ckpt", Path("/dev/zero"), tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            _ = Transfer(PGD(), [path]).identity


def test_a_closed_surrogate_does_not_stand_for_a_victim_that_rejects(
    surrogates: list[Path], make_recognizer: MakeRecognizer, speech: Speech
) -> None:
    with pytest.raises(ValueError, match=r"got 0\.5 and -inf"):
        Transfer(PGD(), surrogates)(make_recognizer(), speech[0][:1], torch.tensor([0]), speech[1][:1], Objective(0.5))


def test_the_surrogates_own_threshold_is_crossed(
    make_recognizer: MakeRecognizer, tmp_path: Path, speech: Speech
) -> None:
    """Where everybody is far below the threshold, only the best score counts; far above, two scores do."""
    surrogate = make_recognizer(seed=1)
    surrogate.scorer.threshold.fill_(50.0)
    save_recognizer(surrogate, tmp_path / "open.ckpt")
    waveforms, lengths = speech[0][:2], speech[1][:2]
    labels = surrogate(waveforms, lengths).argmax(1)
    victims, own = Objective(threshold=-50.0), Objective(threshold=50.0)
    result = Transfer(PGD(steps=2), [tmp_path / "open.ckpt"])(make_recognizer(), waveforms, labels, lengths, victims)
    expected, other = (PGD(steps=2)(surrogate, waveforms, labels, lengths, aim) for aim in (own, victims))
    assert torch.equal(result.waveforms, expected.waveforms)
    assert not torch.equal(expected.waveforms, other.waveforms)


def test_another_surrogate_of_the_same_name_is_another_campaign(
    surrogates: list[Path], make_recognizer: MakeRecognizer
) -> None:
    attack = Transfer(PGD(), surrogates)
    before = attack.identity
    save_recognizer(make_recognizer(seed=5), surrogates[1])
    assert attack.identity != before
    assert math.isclose(attack.epsilon, 0.002)


def test_a_campaign_runs_attacks_from_files_and_knows_their_content(
    surrogates: list[Path], make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    data = load(write_voices(tmp_path / "voices"))
    victim = make_recognizer(list(ENROLLED))
    save_recognizer(make_recognizer(list(ENROLLED), seed=1), surrogates[0])
    noise = 0.004 * torch.rand(500, generator=seeded()) - 0.002
    write_adversarial(tmp_path / "noise.wav", noise, torch.zeros(500), 0.002)
    attacks = [Transfer(PGD(steps=2), surrogates[:1]), UniversalPerturbation(tmp_path / "noise.wav")]
    campaign = Campaign(victim, data, attacks, tmp_path / "campaign", perceptual=False)
    campaign.run()
    assert [row.attack for row in summarize(campaign).rows] == [attack.name for attack in attacks]
    for path, attack in ((surrogates[0], attacks[0]), (tmp_path / "noise.wav", attacks[1])):
        before = campaign.identity["attacks"][attack.name]
        if path.suffix == ".wav":
            write_adversarial(path, -noise, torch.zeros(500), 0.002)
        else:
            save_recognizer(make_recognizer(list(ENROLLED), seed=2), path)
        assert Campaign(victim, data, attacks, tmp_path / "campaign").identity["attacks"][attack.name] != before


def test_wrappers_tell_what_they_hold_from_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "learned.wav"
    told = []
    for size in (1, 2):
        write_adversarial(path, torch.full((160,), size / 32_768), torch.zeros(160), 0.002)
        inner = UniversalPerturbation(path)
        wrappers = [AutoAttack(members=[inner]), AssumedThreshold(inner, 0.5), Replicate(inner)]
        told.append([wrapper.identity for wrapper in wrappers])
    assert all(before != after for before, after in zip(*told, strict=True))


def test_a_wrapped_attack_presents_its_result_as_alone() -> None:
    waveforms, lengths = torch.rand(2, 400), torch.tensor([400, 320])
    alone = Replicate(PGD()).present(waveforms, lengths)
    wrapped = AssumedThreshold(Replicate(PGD()), 0.5).present(waveforms, lengths)
    assert all(map(torch.equal, alone, wrapped)) and alone[0].shape[1] > 400
