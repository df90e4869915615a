"""CW2 (100 steps, 8 x 5 s) and FAKEBOB (10 steps of 50 samples, 4 x 5 s) against the same attacks written plainly.

The plain ones run on a model with torch.stft, all rows and samples at once, with torch's Adam. FAKEBOB's confidence is
out of reach, so that no utterance leaves early and both do the same work. What each reaches is printed.
"""

from collections.abc import Callable
from functools import partial

import torch
from naive import NaiveAudioNet
from setting import ARGUMENTS, rounds, sized
from torch import Tensor
from turns import in_turn, median_seconds

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import CW2, FAKEBOB, Objective
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

SECONDS, SPEAKERS = sized(5.0, 0.5), 251
STEPS = sized({"CW2": 100, "FAKEBOB": 10}, {"CW2": 2, "FAKEBOB": 2})
BATCH = sized({"CW2": 8, "FAKEBOB": 4}, {"CW2": 2, "FAKEBOB": 2})
CONST, SAMPLES, SIGMA = 1.0, sized(50, 4), 0.001
Score = Callable[[Tensor], Tensor]


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the label is ahead, (batch,)."""
    own = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - scores.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)


def plain_cw2(model: Score, waveforms: Tensor, labels: Tensor, steps: int) -> Tensor:
    """One descent, as the paper writes it; the smallest change that succeeds."""
    best, smallest = waveforms.clone(), waveforms.new_full((len(waveforms),), torch.inf)
    origin = torch.atanh(0.999999 * waveforms)
    w = torch.zeros_like(waveforms, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.01)
    for _ in range(steps + 1):
        x = torch.tanh(w + origin)
        found, change = margin(model(x), labels), (x - waveforms).square().sum(1)
        closer = (found < 0.0) & (change < smallest)
        best[closer], smallest[closer] = x[closer].detach(), change[closer].detach()
        optimizer.zero_grad()
        (change + CONST * found.clamp_min(0.0)).sum().backward()
        optimizer.step()
    return best


@torch.no_grad()
def plain_fakebob(model: Score, waveforms: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Sign steps along estimated gradients with momentum."""
    low, high = (waveforms - 0.002).clamp_min(-1.0), (waveforms + 0.002).clamp_max(1.0)
    x, mean = waveforms.clone(), torch.zeros_like(waveforms)
    for _ in range(steps):
        model(x)
        directions = torch.randn(SAMPLES // 2, *x.shape)
        directions = torch.cat([directions, -directions])
        points = (x + SIGMA * directions).flatten(0, 1)
        losses = margin(model(points), labels.repeat(SAMPLES)).reshape(SAMPLES, -1, 1)
        mean = 0.9 * mean + 0.1 * (losses * directions).mean(0) / SIGMA
        x = torch.clamp(x - 0.001 * mean.sign(), low, high)
    model(x)
    return x


def worker(way: str, runs: int) -> None:
    """Print the median seconds of a run, and the margin that it reached."""
    torch.manual_seed(0)
    name, _, plain = way.partition(" ")
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, SPEAKERS)).eval()
    waveforms = 0.05 * torch.randn(BATCH[name], round(16_000 * SECONDS))
    labels = recognizer(waveforms).argmax(1)
    if plain:
        model, attack = NaiveAudioNet(recognizer).eval(), {"CW2": plain_cw2, "FAKEBOB": plain_fakebob}[name]
        run = partial(attack, model, waveforms, labels, STEPS[name])
    else:
        keep_large_blocks()
        cw2 = CW2(steps=STEPS["CW2"], search_steps=1, initial_const=CONST)
        ours = {"CW2": cw2, "FAKEBOB": FAKEBOB(steps=STEPS["FAKEBOB"], samples=SAMPLES, sigma=SIGMA)}[name]
        goal = Objective(confidence=1.0 if name == "FAKEBOB" else 0.0)
        run = lambda: ours(recognizer, waveforms, labels, objective=goal, measure=False).waveforms  # noqa: E731
    seconds, adversarial = median_seconds(run, runs), run()
    with torch.no_grad():
        change, left = (adversarial - waveforms).norm(dim=1), margin(recognizer(adversarial), labels)
    print(seconds, f"mean change {change.mean().item():.4f} (L2), mean margin {left.mean().item():.5f}")


def main(turns: int = rounds(5), runs: int = 1) -> None:
    """Print medians over rounds of processes, and the ratios to ours under the same allocator."""
    for name in STEPS:
        print(f"{name}-{STEPS[name]}, {BATCH[name]} x {SECONDS} s, {torch.get_num_threads()} threads, {turns} rounds")
        in_turn(__file__, (name, f"{name} plain"), turns, runs, reference=name)


if __name__ == "__main__":
    worker(ARGUMENTS[0], int(ARGUMENTS[1])) if ARGUMENTS else main()
