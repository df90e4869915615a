"""Bookkeeping of attacks whose finished utterances leave the batch."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import CountedScore, Generators
from sec4sr_pl.attacks.source import row_generators


class Rows(SimpleNamespace):
    """What an attack knows of the utterances it still works on: each attribute holds an entry a row, None, or a number.

    A row that leaves takes its entry of every attribute along, so nothing can fall out of step.
    """

    @classmethod
    def of(
        cls, score: CountedScore, labels: Tensor, lengths: Tensor, generator: Generators, **entries: Tensor
    ) -> "Rows":
        """All utterances of an attack, each with a generator of its own; `index` is their place in its batch."""
        index, generators = torch.arange(len(labels), device=labels.device), row_generators(generator, len(labels))
        known: dict[str, Any] = {"index": index, "score": score, "labels": labels, "lengths": lengths}
        return cls(**known, generators=generators, **entries)

    def keep(self, mask: Tensor) -> bool:
        """Let the rows outside the (batch,) mask go; False when nobody is left. Synchronizes an accelerator."""
        chosen = mask.nonzero().squeeze(1)
        if len(chosen) < len(mask):
            for name, value in vars(self).items():
                setattr(self, name, chosen_of(value, chosen))
        return len(chosen) > 0


def chosen_of(value: object, rows: Tensor) -> object:
    """The entries of some rows."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    return value.only(rows) if hasattr(value, "only") else value
