"""Accuracy by the length of an utterance: an attack has the more samples to change, the longer it is."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from sec4sr_pl.robustness.campaign import Record
from sec4sr_pl.robustness.errors import Groups, rate
from sec4sr_pl.robustness.rates import Rate

FEWEST = 8
"""Utterances below which a quarter says nothing."""


class Quarter(NamedTuple):
    """A quarter of the utterances, of similar length."""

    shortest: float
    """Seconds."""
    longest: float
    """Seconds."""
    accuracy: dict[str, Rate]
    """Of the benign utterances and under each attack."""

    @property
    def title(self) -> str:
        """What heads its column."""
        return f"{self.shortest:.1f} to {self.longest:.1f} s"


def quarters(seconds: Mapping[str, float], records: Mapping[str, Sequence[Record]], groups: Groups) -> list[Quarter]:
    """Accuracy in each quarter, the shortest utterances first; none for fewer utterances than `FEWEST`.

    Args:
        seconds: of each utterance, by its name.
        records: of the benign utterances and of each attack, by its name.
        groups: what was made from one recording.
    """
    if len(seconds) < FEWEST:
        return []
    ordered = sorted(seconds, key=lambda name: (seconds[name], name))
    borders = [len(ordered) * part // 4 for part in range(5)]
    found = []
    for first, end in pairwise(borders):
        names = set(ordered[first:end])
        accuracy = {}
        for attack, everywhere in records.items():
            own = [record for record in everywhere if record["name"] in names]
            accuracy[attack] = rate(own, lambda record: record["correct"], groups)
        found.append(Quarter(seconds[ordered[first]], seconds[ordered[end - 1]], accuracy))
    return found
