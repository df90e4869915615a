"""Balls of energy: L2 against foolbox, SNR against its own definition."""

from collections.abc import Callable

import pytest
import torch
from test_strong_attacks import Linear, seeded
from torch import Tensor, nn

from sec4sr_pl.attacks import L2PGD, SNRPGD, Objective
from sec4sr_pl.attacks.l2 import unit_energy
from sec4sr_pl.metrics import signal_to_noise_ratio
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import valid_mask

Speech = tuple[Tensor, Tensor]


class Curved(nn.Module):
    """A small network in double precision that keeps each point at which a gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(80, 20, generator=seeded(1), dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(20, 5, generator=seeded(2), dtype=torch.float64))
        self.points: list[Tensor] = []

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        if waveforms.requires_grad:
            self.points.append(waveforms.detach().clone())
        return torch.tanh(waveforms @ self.first) @ self.second


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("spread", [0.5, 1.0], ids=["inside [-1, 1]", "at its borders"])
def test_every_step_equals_that_of_foolbox(spread: float, targeted: bool) -> None:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    waveforms = (4.0 * torch.rand(6, 80, generator=seeded(3), dtype=torch.float64) - 2.0).clamp(-spread, spread)
    labels = torch.arange(6) % 5
    theirs, ours = Curved(), Curved()
    reference = foolbox.attacks.L2PGD(abs_stepsize=0.3, steps=12, random_start=False)
    criteria = foolbox.criteria
    criterion = (criteria.TargetedMisclassification if targeted else criteria.Misclassification)(labels)
    classifier = foolbox.PyTorchModel(theirs.eval(), bounds=(-1, 1), device="cpu")
    theirs.points.append(reference.run(classifier, waveforms, criterion, epsilon=1.0))
    result = L2PGD(1.0, 0.3, steps=12)(ours, waveforms, labels, objective=Objective(targeted=targeted))
    ours.points.append(result.waveforms)
    assert len(ours.points) == len(theirs.points) == 13
    for mine, reference_point in zip(ours.points, theirs.points, strict=True):
        assert (mine - reference_point).abs().max() <= 1e-12
    assert (result.waveforms - waveforms).norm(dim=1).max() > 0.5


def test_random_starts_are_uniform_in_the_ball() -> None:
    clean = torch.zeros(4_000, 3, dtype=torch.float64)
    lengths = torch.tensor([3, 2] * 2_000)
    change = L2PGD(0.5).start(clean, lengths, seeded())
    size = change.norm(dim=1) / 0.5
    assert size.max() <= 1.0
    assert change[1::2, 2].abs().max() == 0.0
    for dimensions, sizes in ((3, size[::2]), (2, size[1::2])):  # the volume inside is uniform
        volume = sizes.sort().values ** dimensions
        assert (volume - torch.linspace(0, 1, len(volume))).abs().max() < 1.63 / len(volume) ** 0.5  # Kolmogorov, 1 %
    assert change.mean(0).abs().max() < 0.02


def test_a_tiny_gradient_has_a_direction_and_none_has_none() -> None:
    signal = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [1e30, 0.0]])
    torch.testing.assert_close(unit_energy(signal), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("snr", [0.0, 20.0, 45.0])
@pytest.mark.parametrize("restarts", [0, 2])
def test_the_snr_is_never_below_the_budget(snr: float, restarts: int, speech: Speech, recognizer: Recognizer) -> None:
    waveforms, lengths = speech[0][::3, :12_000], speech[1][::3].clamp_max(12_000)
    waveforms = waveforms / waveforms.abs().amax(1, keepdim=True)  # at full scale, so that clipping has its say
    lengths[1] = 7_000
    waveforms = waveforms.masked_fill(~valid_mask(lengths, 12_000), 0.0)
    labels = recognizer(waveforms, lengths).argmax(1)
    result = SNRPGD(snr, 0.5, steps=4, restarts=restarts)(
        recognizer, waveforms, labels, lengths, generator=seeded()
    ).waveforms
    for row, length in enumerate(lengths.tolist()):
        clean, changed = waveforms[row, :length].double(), result[row, :length].double()
        ratio = float(10.0 * torch.log10(clean.square().sum() / (changed - clean).square().sum()))
        assert snr <= ratio < snr + (2.0 if snr else 20.0)  # clipping takes some of it
        assert float(signal_to_noise_ratio(changed[None], clean[None])) == pytest.approx(ratio)


def test_silence_stays_silent_beside_speech() -> None:
    model = Linear("CSI", targeted=False)
    waveforms = model.waveforms.clone()
    waveforms[3] = 0.0
    result = SNRPGD(20.0, restarts=2)(model, waveforms, model.labels, generator=seeded())
    assert torch.equal(result.waveforms[3], waveforms[3])
    assert not torch.equal(result.waveforms[4], waveforms[4])
    assert result.waveforms.isfinite().all()


def test_samples_past_the_end_add_nothing_to_the_energy() -> None:
    attack, lengths = SNRPGD(20.0), torch.tensor([4, 2])
    waveforms = torch.tensor([[0.3, 0.0, 0.4, 0.0], [0.3, 0.4, 0.9, 0.9]])
    torch.testing.assert_close(attack.radii(waveforms, lengths), torch.tensor([[0.05], [0.05]]), rtol=1e-5, atol=0)


def test_a_score_that_looks_at_the_padding_leaves_the_whole_step_to_the_utterance() -> None:
    weight, lengths = torch.randn(2, 40, generator=seeded()), torch.tensor([40, 10])
    waveforms = torch.zeros(2, 40)
    result = L2PGD(0.3, 0.5, steps=1)(lambda w, _: w @ weight.T, waveforms, torch.tensor([0, 1]), lengths)
    torch.testing.assert_close(result.waveforms.norm(dim=1), torch.tensor([0.15, 0.15]))


@pytest.mark.parametrize("attack", [L2PGD(0.3), SNRPGD(40.0)], ids=["L2", "SNR"])
def test_a_row_of_no_gradient_stays_where_it_is(attack: L2PGD) -> None:
    flat: Callable[[Tensor, Tensor], Tensor] = lambda w, _: torch.stack([0.0 * w[:, 0] + 1.0, 0.0 * w[:, 0]], 1)  # noqa: E731
    waveforms = torch.rand(2, 30, generator=seeded()) - 0.5
    result = attack(flat, waveforms, torch.tensor([0, 0]))
    torch.testing.assert_close(result.waveforms, waveforms)
