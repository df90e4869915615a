"""Cost of PGD-10 an utterance, by batch (8 to 64, 5 s each) and by length (1 to 8 s, batch 16), as a figure.

Usage: python benchmarks/scaling.py [runs/figures/scaling.png]
"""

import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from setting import ARGUMENTS, figure, rounds, sized

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

BATCHES, LENGTHS = sized(((8, 16, 32, 64), (1.0, 2.0, 4.0, 8.0)), ((1, 2), (0.5,)))
BATCH, SECONDS = sized((16, 5.0), (1, 0.5))


def cost(recognizer: Recognizer, shapes: list[tuple[int, float]], rounds: int) -> list[float]:
    """Median milliseconds an utterance of each (batch, seconds), measured in turn."""
    times: dict[tuple[int, float], list[float]] = {shape: [] for shape in shapes}
    for turn in range(rounds + 1):  # the first warms up
        for (batch, seconds), values in times.items():
            waveforms = 0.05 * torch.randn(batch, round(16_000 * seconds))
            start = time.perf_counter()
            PGD()(recognizer, waveforms, torch.arange(batch))
            if turn:
                values.append(1e3 * (time.perf_counter() - start) / batch)
    return [statistics.median(values) for values in times.values()]


def main(path: Path, turns: int = rounds(5)) -> None:
    """Print the table and write the figure."""
    keep_large_blocks()
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, 251)).eval()
    by_batch = cost(recognizer, [(batch, SECONDS) for batch in BATCHES], turns)
    by_length = cost(recognizer, [(BATCH, seconds) for seconds in LENGTHS], turns)
    print(f"PGD-10, ms an utterance, {torch.get_num_threads()} threads, {turns} rounds in turn")
    for batch, value in zip(BATCHES, by_batch, strict=True):
        print(f"  {batch:3} x {SECONDS:g} s {value:7.1f} ms, {value / by_batch[0]:.2f} of that at batch {BATCHES[0]}")
    for seconds, value in zip(LENGTHS, by_length, strict=True):
        print(f"  {BATCH} x {seconds:g} s {value:7.1f} ms, {value / seconds:.1f} ms a second of speech")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(BATCHES, by_batch, "o-")
    left.set(
        xlabel=f"batch ({SECONDS:g} s each)", ylabel="ms an utterance", ylim=(0, 1.2 * max(by_batch)), title="by batch"
    )
    right.plot(LENGTHS, by_length, "o-")
    right.set(xlabel=f"length, s (batch {BATCH})", ylim=(0, None), xlim=(0, None), title="by length")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(Path(ARGUMENTS[0]) if ARGUMENTS else figure("scaling.png"))
