"""Iterations that can be stopped at any time and go on where they were."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import track
from torch import Tensor

from sec4sr_pl.checkpoint import write_whole
from sec4sr_pl.kaldi import Extractor, FullGMM
from sec4sr_pl.weights import check_finite, restore

Model = TypeVar("Model", FullGMM, Extractor)
Frames = Iterable[tuple[Tensor, Tensor]]
"""Batches of (batch, frames, inputs) and (batch,) valid frames, the same each time that they are gone through."""


def iterate(
    batches: Frames,
    start: Callable[[Frames], Model],
    step: Callable[[Model, Frames], tuple[Model, float]],
    iterations: int,
    label: str,
    path: Path | None = None,
    **made_from: str | int | float,
) -> Model:
    """The model after so many steps, each with a progress bar; its model is kept in a file, from which to go on.

    Args:
        batches: gone through in each step.
        start: the first model, from the batches.
        step: a better model, and the log-likelihood (a frame or an utterance) of the one it was given.
        iterations: steps in all, those of earlier runs included.
        label: stands beside the bars.
        path: the file; None: nothing is kept.
        made_from: by name, what the model depends on beside its sizes; kept in the file too.

    Raises:
        ValueError: fewer than one iteration, or a file with a model of more, of other sizes or made from other things,
            which does not say, or which is damaged.
    """
    if iterations < 1:
        raise ValueError(f"Expected at least 1 iteration, got {iterations}")
    model, history = start(track(batches, f"{label} start")), list[float]()
    known = {"sizes": [list(part.shape) for part in model], **made_from}
    if path is not None and path.exists():
        history, kept, before = restore("this training", lambda content: unpack(content, model), path)
        if before is None:
            raise ValueError(f"{path} was written before models told what they are made from: remove it to start again")
        before["sizes"] = [list(part.shape) for part in kept]
        others = [f"other {name}" for name, value in known.items() if before.get(name) != value]
        if len(history) > iterations:
            others.append(f"{len(history)} iterations, more than {iterations}")
        if others:
            raise ValueError(
                f"{path} holds a model of {', '.join(others)}: remove it to start again, or name another folder"
            )
        model = kept
    for number in range(len(history) + 1, iterations + 1):
        model, likelihood = step(model, track(batches, f"{label} {number}/{iterations}"))
        history.append(likelihood)
        if path is not None:
            write_whole(path, {"model": model._asdict(), "history": history, "known": known})
    return model


def unpack(content: Any, model: Model) -> tuple[list[float], Model, dict[str, Any] | None]:
    """Likelihoods, a model of the same kind and what it was made from; any error for the content of another file."""
    parts = {name: part.to(getattr(model, name)) for name, part in content["model"].items()}
    check_finite(parts)
    known = content.get("known")
    return [float(value) for value in content["history"]], type(model)(**parts), known and dict(known)


def fingerprint(model: FullGMM) -> str:
    """Tells a model from any other, to the last bit."""
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in model)).hexdigest()
