"""One step of adversarial training (32 crops of 5 s, PGD-10 on half of them): this package against the naive step.

Each measurement is a process of its own, in turn, so that a busy machine slows all and no allocator inherits another's
heap. `floor` is the passes of the convolutional network alone: what no front end, bookkeeping or optimizer can beat.
"""

from collections.abc import Callable

import torch
from naive import NaiveAudioNet, naive_step
from setting import ARGUMENTS, rounds, sized
from torch import Tensor
from torch.nn import functional
from turns import in_turn, median_seconds

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.draws import key
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training.objectives import AdversarialTraining
from sec4sr_pl.types import Batch, full_lengths

SPEAKERS = 251
BATCH, SECONDS = sized((32, 5.0), (4, 0.5))
WAYS = ("ours", "ours, bf16", "naive", "floor")


def make() -> tuple[Recognizer, Tensor, Tensor]:
    """A recognizer in train mode, and a batch."""
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, SPEAKERS)).train()
    return recognizer, 0.05 * torch.randn(BATCH, round(16_000 * SECONDS)), torch.arange(BATCH)


def ours(bf16: bool) -> Callable[[], object]:
    """The package's step; keys are chosen so that exactly half of the rows are attacked."""
    keep_large_blocks()
    recognizer, waveforms, speakers = make()
    optimizer = torch.optim.Adam(recognizer.parameters())
    objective = AdversarialTraining(PGD(), fraction=0.5)
    batch = Batch(waveforms, full_lengths(waveforms), speakers, [str(i) for i in range(BATCH)])
    keys = next(k for s in range(1000) if halves(k := [1000 * s + i for i in range(BATCH)]))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outcome = objective(recognizer, batch, keys)
        assert int(outcome.adversarial.sum()) == BATCH // 2
        outcome.loss.backward()
        optimizer.step()

    return step


def halves(keys: list[int]) -> bool:
    """Whether the objective would attack half of the rows of these keys."""
    return sum(key(k, "adversarial") < 0.5 * 2**63 for k in keys) == BATCH // 2


def naive() -> Callable[[], object]:
    """The naive step of the same function."""
    recognizer, waveforms, speakers = make()
    model = NaiveAudioNet(recognizer).train()
    torch.testing.assert_close(model(waveforms[:2]), recognizer(waveforms[:2]), rtol=1e-3, atol=1e-3)
    optimizer = torch.optim.Adam(model.parameters())
    return lambda: naive_step(model, optimizer, waveforms, speakers, BATCH // 2)


def floor() -> Callable[[], object]:
    """10 passes of the attacked half to the input and one of the batch to the weights, from ready frames."""
    keep_large_blocks()
    recognizer, waveforms, speakers = make()
    frames = recognizer.features(waveforms)[0].detach()
    fast = recognizer.fused()
    rows = PGD().parts(waveforms[: BATCH // 2])

    def passes() -> None:
        for part in rows:
            x = frames[: BATCH // 2][part].requires_grad_(True)
            for _ in range(10):
                scores = fast.scorer(fast.backbone(x))
                torch.autograd.grad(functional.cross_entropy(scores, speakers[: BATCH // 2][part]), x)
        functional.cross_entropy(recognizer.scorer(recognizer.backbone(frames)), speakers).backward()

    return passes


def worker(way: str, steps: int) -> None:
    """Print the median seconds of a step."""
    step = {"ours": lambda: ours(False), "ours, bf16": lambda: ours(True), "naive": naive, "floor": floor}[way]()
    print(median_seconds(step, steps, warmup=2))


def main(turns: int = rounds(5), steps: int = sized(5, 1)) -> None:
    """Print the medians over rounds of processes, and the ratios to the naive step under the same allocator."""
    print(f"{BATCH} x {SECONDS} s, PGD-10 on half, {torch.get_num_threads()} threads, {turns} processes a row in turn")
    in_turn(__file__, WAYS, turns, steps, reference="naive")


if __name__ == "__main__":
    worker(ARGUMENTS[0], int(ARGUMENTS[1])) if ARGUMENTS else main()
