"""Batched i-vectors against one utterance at a time with quadratic terms rebuilt, at the size of Kaldi's recipe.

Both run in turn in one process, so that a busy machine slows both; the ratio of medians is the figure, in time and in
CPU time, of which other programs take no part. The other way is a common one in PyTorch: densities by whole
covariances, component by component, statistics by way of (frames, components, inputs), and T' S^-1 T computed for each
utterance. A process of its own tells the peak memory of the batched way.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from setting import ARGUMENTS, rounds, sized
from torch import Tensor

from sec4sr_pl.backbones import IVector
from sec4sr_pl.kaldi import Extractor, FullGMM


def random_model(components: int = sized(2048, 8), inputs: int = 72, size: int = sized(400, 10)) -> IVector:
    """A model with full covariances."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(components, inputs, 2 * inputs, generator=generator)
    precisions = root @ root.mT / (2 * inputs)
    means = torch.randn(components, inputs, generator=generator)
    loadings = 0.1 * torch.randn(components, inputs, size, generator=generator)
    weights = torch.full((components,), 1.0 / components)
    return IVector.of(FullGMM(weights, means, precisions), Extractor(weights, loadings, precisions, torch.zeros(())))


@torch.no_grad()
def one_by_one(model: IVector, frames: Tensor) -> Tensor:
    """i-vectors, an utterance at a time."""
    gmm, (_, loadings, residuals, offset) = model.models()
    vectors = []
    for utterance in frames:
        log = model.constants + model.linear @ utterance.T
        for component, precision in enumerate(gmm.precisions):
            log[component] -= 0.5 * ((utterance @ precision) * utterance).sum(1)
        posteriors = log.softmax(0).T
        counts = posteriors.sum(0)
        sums = (posteriors.unsqueeze(2) * utterance.unsqueeze(1)).sum(0)  # by way of (frames, components, inputs)
        projected = residuals @ loadings
        quadratic = loadings.mT @ projected  # (components, embedding_size, embedding_size)
        precision = torch.eye(model.embedding_size) + torch.einsum("c,cij->ij", counts, quadratic)
        linear = torch.einsum("cfd,cf->d", projected, sums)
        linear[0] += offset
        vector = torch.linalg.inv(precision) @ linear
        vector[0] -= offset
        vectors.append(vector)
    return torch.stack(vectors)


def peak_memory() -> float:
    """GB that this process held at most (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def gradient(model: IVector, frames: Tensor) -> Tensor:
    """d(sum of i-vectors)/d(frames)."""
    leaf = frames.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).sum(), leaf)[0]


def main() -> None:
    """Print medians, their ratio, the difference of the results, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=sized(8, 2))
    parser.add_argument("--frames", type=int, default=sized(1000, 50), help="of each utterance, 100 a second")
    parser.add_argument("--memory", choices=["forward", "gradient"], help="run once and print the peak memory alone")
    options = parser.parse_args(ARGUMENTS)
    model, turns = random_model(), rounds(3)
    frames = torch.randn(options.batch, options.frames, 72, generator=torch.Generator().manual_seed(1))
    if options.memory:
        before = peak_memory()
        with torch.no_grad():
            model(frames)
        if options.memory == "gradient":
            gradient(model, frames)
        print(f"{before:.1f} GB while the model was made, {peak_memory():.1f} GB in all")
        return
    ways: dict[str, Callable[[], Tensor]] = {
        "batched": torch.no_grad()(lambda: model(frames)),
        "with gradient": lambda: gradient(model, frames),
        "one by one": lambda: one_by_one(model, frames),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for index in range(turns + 1):
        for name, run in ways.items():
            start, started = time.perf_counter(), time.process_time()
            results[name] = run()
            if index:  # the first round warms up
                times[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    worked = {name: statistics.median(values) for name, values in busy.items()}
    expected = results["one by one"]
    error = (results["batched"] - expected).norm() / expected.norm()
    print(f"{options.batch} x {options.frames} frames, {torch.get_num_threads()} threads, {turns} rounds")
    for name, median in medians.items():
        spread = f"from {min(times[name]):.2f} to {max(times[name]):.2f}"
        print(f"  {name:13} {median:6.2f} s ({spread}), {worked[name]:6.2f} s of the CPU")
    ratios = [each["one by one"] / each["batched"] for each in (medians, worked)]
    print(f"  ratio {ratios[0]:.1f} in time, {ratios[1]:.1f} of the CPU; relative difference {error:.1e}")
    for part in ("forward", "gradient"):
        command = [sys.executable, __file__, "--memory", part, *sized([], ["--smallest"])]
        command += ["--batch", str(options.batch), "--frames", str(options.frames)]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  peak memory, {part}: {told.stdout.strip()}")


if __name__ == "__main__":
    main()
