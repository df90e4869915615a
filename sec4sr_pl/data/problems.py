"""What is wrong with a data set, told at once."""

import re
import warnings
from pathlib import Path

from sec4sr_pl.audio import AudioError, Member

SHOWN = 8
"""Kinds that a message tells, of which each has one example."""


class DataError(ValueError):
    """A data set that can't be used, with what was expected, what came, and what to do."""


class Problems:
    """Faults, for which data are refused, and notes, which are warnings; of each kind the first and their number."""

    def __init__(self) -> None:
        self.faults: dict[str, dict[str, str]] = {}
        """Kind -> place -> sentence."""
        self.notes: dict[str, dict[str, str]] = {}

    def fault(self, place: str | Path | Member, what: str, kind: str | None = None) -> None:
        """Something can't be used.

        Args:
            place: of what.
            what: the sentence that follows the place.
            kind: what is counted together; default: the same sentence.
        """
        self.faults.setdefault(what if kind is None else kind, {})[str(place)] = f"{place} {what}"

    def note(self, place: str | Path | Member, what: str, kind: str | None = None) -> None:
        """Something is left out or looks wrong; arguments as of `fault`."""
        self.notes.setdefault(what if kind is None else kind, {})[str(place)] = f"{place} {what}"

    def unreadable(self, place: str | Path | Member, error: AudioError) -> None:
        """A file that can't be read; those that differ in figures alone are of one kind."""
        what = str(error).removeprefix(f"{place} ")
        self.fault(place, what, re.sub(r"\d+", "#", what))

    def stop(self, error: DataError) -> None:
        """A place that could not be looked at."""
        self.faults[str(error)] = {str(error): str(error)}

    def add(self, others: "Problems") -> None:
        """Take over what was found elsewhere."""
        for own, more in ((self.faults, others.faults), (self.notes, others.notes)):
            for kind, places in more.items():
                own.setdefault(kind, {}).update(places)

    def pass_to(self, others: "Problems | None") -> None:
        """Let others collect what was found; None: tell it."""
        if others is None:
            self.tell()
        else:
            others.add(self)

    def tell(self) -> None:
        """Warn of the notes, and refuse the faults.

        Raises:
            DataError: there are any.
        """
        if self.notes:
            warnings.warn(_sentences(self.notes), stacklevel=2)
        if self.faults:
            total = sum(map(len, self.faults.values()))
            raise DataError(f"The data has {total} faults. " * (len(self.faults) > 1) + _sentences(self.faults))


def _sentences(kinds: dict[str, dict[str, str]]) -> str:
    """The first of each kind and how many more there are, the most frequent kinds first."""
    ordered = sorted(kinds.values(), key=len, reverse=True)
    parts = [
        next(iter(places.values())) + (f" (and {len(places) - 1} more)" if len(places) > 1 else "")
        for places in ordered[:SHOWN]
    ]
    if rest := ordered[SHOWN:]:
        parts.append(f"{sum(map(len, rest))} more of {len(rest)} other kinds")
    return parts[0] if len(parts) == 1 else "; ".join(f"({number}) {part}" for number, part in enumerate(parts, 1))
