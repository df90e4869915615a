"""Bookkeeping of attacks whose finished utterances leave the batch."""

from types import SimpleNamespace

from torch import Tensor


class Rows(SimpleNamespace):
    """What an attack knows of the utterances it still works on: each attribute holds an entry a row, None, or a number.

    A row that leaves takes its entry of every attribute along, so nothing can fall out of step.
    """

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
