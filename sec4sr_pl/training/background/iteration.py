"""Iterations that can be stopped at any time and go on where they were."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import track
from torch import Tensor

from sec4sr_pl.checkpoint import write_whole
from sec4sr_pl.kaldi import Extractor, FullGMM

Model = TypeVar("Model", FullGMM, Extractor)
Frames = Iterable[tuple[Tensor, Tensor]]
"""Batches of (batch, frames, inputs) and (batch,) valid frames, the same each time that they are gone through."""


def iterate(
    start: Callable[[], Model],
    step: Callable[[Model], tuple[Model, float]],
    iterations: int,
    label: str,
    path: Path | None = None,
) -> Model:
    """The model after so many steps, with a progress bar; each step's model is kept in a file, from which to go on.

    Args:
        start: the first model.
        step: a better model, and the log-likelihood (a frame or an utterance) of the one it was given.
        iterations: steps in all, those of earlier runs included.
        label: stands beside the bar.
        path: the file; None: nothing is kept.

    Raises:
        ValueError: fewer than one iteration, or a file with a model of other sizes.
    """
    if iterations < 1:
        raise ValueError(f"Expected at least 1 iteration, got {iterations}")
    model, history = start(), list[float]()
    if path is not None and path.exists():
        content = torch.load(path, map_location="cpu", weights_only=True)
        history, kept = content["history"], content["model"]
        if {name: part.shape for name, part in kept.items()} != {n: p.shape for n, p in model._asdict().items()}:
            raise ValueError(f"{path} holds a model of other sizes: remove it to start again, or name another folder")
        model = type(model)(**{name: part.to(getattr(model, name)) for name, part in kept.items()})
    for _ in track(range(len(history), iterations), label):
        model, likelihood = step(model)
        history.append(likelihood)
        if path is not None:
            write_whole(path, {"model": model._asdict(), "history": history})
    return model
