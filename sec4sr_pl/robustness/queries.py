"""What an attack's queries buy: its success rate against the forward rows spent on an utterance."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from sec4sr_pl.robustness.campaign import BENIGN, Campaign, counted


class Curve(NamedTuple):
    """A step function."""

    queries: list[int]
    """Where it steps, ascending; the first is 0, the last is what the most costly utterance took."""
    rates: list[float]
    """From there on, fractions."""


def success_by_queries(achieved: Iterable[bool], queries: Iterable[int]) -> Curve:
    """The success rate that an attack would have had with so many queries an utterance: `queries`' distribution.

    Args:
        achieved: of each utterance, whether the attack succeeded.
        queries: forward rows spent on each, in the same order, those of the final measurement among them.

    Raises:
        ValueError: no utterance, or not one number for each.
    """
    utterances = list(zip(achieved, queries, strict=True))
    if not utterances:
        raise ValueError("Expected at least one utterance, got none")
    successes = Counter(spent for success, spent in utterances if success)
    steps = sorted({0, *successes, max(spent for _, spent in utterances)})
    reached, rates = 0, []
    for step in steps:
        reached += successes[step]
        rates.append(reached / len(utterances))
    return Curve(steps, rates)


def query_curves(campaign: Campaign) -> dict[str, Curve]:
    """The curve of each attack that stops at success, at different times; over the utterances that count.

    Raises:
        CampaignError: a unit that is not there.
    """
    benign = {record["name"]: record for record in campaign.records(BENIGN)}
    curves = {}
    for attack in campaign.attacks:
        records = counted(campaign.records(attack.name), benign)
        if attack.stops_at_success and len({record["queries"] for record in records}) > 1:
            achieved, queries = ([record[field] for record in records] for field in ("achieved", "queries"))
            curves[attack.name] = success_by_queries(achieved, queries)
    return curves
