"""Files of tensors and plain data, which can't run code."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network")


class CheckpointError(ValueError):
    """A checkpoint that can't be used, with what was expected, what came, and what to do."""


def read_plain(path: Path) -> Any:
    """The content of a file of torch.save.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, or one that holds code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it holds more than the tensors and plain data that were expected, which could run "
            "code, or is damaged"
        ) from error
    except Exception as error:  # from a damaged file or a web page, torch.load raises anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {type(error).__name__}: {error}") from error


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Refuse weights of which nothing can be made but figures that look like results.

    Args:
        tensors: by name; a `threshold` may be -inf, which every score exceeds.

    Raises:
        ValueError: the first that holds NaN or an infinity.
    """
    for name, tensor in tensors.items():
        good = torch.as_tensor(tensor).isfinite()
        if name.endswith("threshold"):
            good |= tensor == -torch.inf
        if not good.all():
            raise ValueError(f"'{name}' holds NaN or an infinity")


def restore(name: str, make: Callable[[Any], Network], path: Path) -> Network:
    """What `make` makes of a file's content.

    Args:
        name: of what is made, for the error.
        make: takes the content, which may be of another network or anything else; it may raise what it will.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: as `read_plain`, or `make` failed.
    """
    content = read_plain(path)
    try:
        made = make(content)
        if isinstance(made, nn.Module):
            check_finite(made.state_dict())
        return made
    except Exception as error:
        raise CheckpointError(
            f"The weights of {path} are not those of {name}: {type(error).__name__}: {error}"
        ) from error
