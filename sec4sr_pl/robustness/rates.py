"""A rate with its interval, as a table says it."""

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import compress
from typing import NamedTuple

from sec4sr_pl.metrics import clustered_interval, wilson_interval


class Rate(NamedTuple):
    """k of n, with its 95 % interval; fractions, None where n is 0."""

    successes: int
    trials: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, flags: Iterable[bool], groups: Iterable[Hashable] | None = None) -> "Rate":
        """The rate of flags that are set.

        Args:
            flags: one a trial.
            groups: what each belongs to, where some belong together; the interval is then `clustered_interval`'s.
        """
        listed = list(flags)
        successes, trials = sum(listed), len(listed)
        if not trials:
            return cls(0, 0, None, None, None)
        if groups is None:
            return cls(successes, trials, successes / trials, *wilson_interval(successes, trials))
        belongs = list(groups)
        tried, won = Counter(belongs), Counter(compress(belongs, listed))
        interval = clustered_interval([won[group] for group in tried], list(tried.values()))
        return cls(successes, trials, successes / trials, *interval)

    def __str__(self) -> str:
        """61.4 [55.2, 67.2], in percent."""
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def columns(self, name: str) -> dict[str, float | int | None]:
        """Its numbers in a spreadsheet, by title."""
        return {
            name: self.value,
            f"{name}_k": self.successes,
            f"{name}_n": self.trials,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
        }


def shown(value: float | int | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
