"""AudioNet and its adversarial training step as one writes them down from the papers, without care for speed."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer


class NaiveAudioNet(nn.Module):
    """The function of a recognizer with AudioNet, through torch.stft and a convolution of one channel.

    Args:
        recognizer: whose weights are copied.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        stage = LogMel().stages["raw"]
        self.register_buffer("window", stage.window)
        self.register_buffer("filters", stage.filters)
        sizes = [(32, 64), (64, 128), (128, 128), (128, 128), (128, 128), (128, 64), (64, 32)]
        self.prefilter = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2), nn.BatchNorm2d(1))
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(sizes):
            layers += [nn.Conv1d(inputs, outputs, 3, padding=int(index < 6)), nn.BatchNorm1d(outputs), nn.ReLU()]
            if index in (0, 3, 5):
                layers.append(nn.MaxPool1d(2))
        self.net = nn.Sequential(*layers)
        self.head = nn.Linear(32, len(recognizer.scorer.speakers))
        own = [v for name, v in recognizer.state_dict().items() if name != "scorer.threshold"]
        names = [name for name in self.state_dict() if name not in ("window", "filters")]
        self.load_state_dict(dict(zip(names, own, strict=True)), strict=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, speakers)."""
        emphasized = waveforms[:, 1:] - 0.97 * waveforms[:, :-1]
        spectrum = torch.stft(emphasized, 1024, 160, 800, self.window, center=True, return_complex=True)
        mel = self.filters.T @ spectrum.abs().square()
        decibels = 10.0 * mel.clamp_min(1e-16).log10()
        signal = self.prefilter(decibels.unsqueeze(1)).squeeze(1)
        return self.head(self.net(signal).amax(2))  # type: ignore[no-any-return]


def naive_step(model: NaiveAudioNet, optimizer: Optimizer, waveforms: Tensor, speakers: Tensor, attacked: int) -> float:
    """One step of adversarial training, PGD-10 on the first rows: gradients into the weights at each of 11 passes."""
    clean, labels = waveforms[:attacked], speakers[:attacked]
    x = clean.clone()
    for step in range(11):
        x = x.detach().requires_grad_(True)
        functional.cross_entropy(model(x), labels).backward()
        if step < 10:
            assert x.grad is not None
            x = torch.clamp(x + 0.0004 * x.grad.sign(), clean - 0.002, clean + 0.002).clamp(-1.0, 1.0)
    optimizer.zero_grad()
    batch = torch.cat([x.detach(), waveforms[attacked:]])
    loss = functional.cross_entropy(model(batch), speakers)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        (model(batch).argmax(1) == speakers).float().mean().item()
    return loss.item()
