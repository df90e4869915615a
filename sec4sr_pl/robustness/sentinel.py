"""The sentinel: reasons to doubt a campaign's figures. docs/sentinel.md has a paragraph on each."""

import math
from collections.abc import Callable
from typing import NamedTuple

from scipy.stats import binomtest

from sec4sr_pl.attacks import Adaptive, Attack, UniformNoise
from sec4sr_pl.robustness.campaign import Campaign, Record, counted
from sec4sr_pl.robustness.probe import ball, layers, limited, queries_victim, white_box

CHANCE = 0.05
"""A difference that is as likely by chance says nothing; it takes five utterances of five."""
PART = 0.1
"""The part of the utterances that may be odd."""
VANISHING = 1e-30
"""Below it most samples of a gradient are smaller than float32 can hold, and do not move."""
FALLING = 0.05
"""Part of the way that the last tenth of the steps may go: half of an even pace."""

FEW = 3
"""Utterances still standing, the least to tell whether a loss is falling."""

BUDGETS: dict[str, Callable[[float], float]] = {
    "epsilon": lambda epsilon: epsilon,
    "radius": lambda radius: radius,
    "snr": lambda snr: 10.0 ** (-snr / 20.0),
}
"""Parameters that limit a change, and the size up to which they let it grow."""


class Flag(NamedTuple):
    """A reason to doubt."""

    id: str
    """Heads its paragraph in docs/sentinel.md."""
    text: str
    """One sentence with the figures that raised it, Markdown."""


class Report(NamedTuple):
    """What the sentinel found."""

    flags: list[Flag]
    unchecked: list[str]
    """Ids for which there was nothing to compare."""

    def lines(self) -> list[str]:
        """Markdown, a paragraph each."""
        head = f"Sentinel: {len(self.flags) or 'no'} flag{'s' * (len(self.flags) != 1)} (docs/sentinel.md)."
        lines = [head, *(f"- **{flag.id}**: {flag.text}" for flag in self.flags)]
        return lines + [f"Nothing to compare for: {', '.join(self.unchecked)}."] * bool(self.unchecked)


class Evidence(NamedTuple):
    """A finished campaign and its records by utterance."""

    campaign: Campaign
    benign: dict[str, Record]
    records: dict[str, dict[str, Record]]
    """Of each attack, by its name."""

    @property
    def attacks(self) -> list[Attack]:
        """All but controls."""
        return [attack for attack in self.campaign.attacks if not isinstance(attack, UniformNoise)]

    def counted(self, attack: Attack) -> list[Record]:
        """The records on which an attack can succeed."""
        return counted(self.records[attack.name].values(), self.benign)

    def won(self, attack: Attack) -> set[str]:
        """The utterances on which it does."""
        return {record["name"] for record in self.counted(attack) if record["achieved"]}

    def sweeps(self, parameter: str, *tied: str) -> list[tuple[Attack, Attack]]:
        """Pairs of attacks that differ in a parameter alone, the smaller first; `tied` may go along with it."""

        def rest(attack: Attack) -> tuple[type[Attack], dict[str, object]]:
            return type(attack), {k: v for k, v in attack.settings().items() if k not in (parameter, *tied)}

        swept = [attack for attack in self.attacks if parameter in attack.settings()]
        swept.sort(key=lambda attack: attack.settings()[parameter])
        pairs = [(less, more) for i, less in enumerate(swept) for more in swept[i + 1 :] if rest(less) == rest(more)]
        return [pair for pair in pairs if getattr(pair[0], parameter) < getattr(pair[1], parameter)]


def beats(first: set[str], second: set[str]) -> bool:
    """Whether the first wins where the second does not more often than chance: McNemar's exact test, one-sided."""
    different = len(first ^ second)
    return different > 0 and bool(binomtest(len(first - second), different, alternative="greater").pvalue < CHANCE)


Sentences = list[str] | None
"""What a check found; None: nothing to compare."""


def no_eot(evidence: Evidence) -> Sentences:
    """A randomized recognizer, attacked without averaging."""
    if not (evidence.campaign.recognizer.randomized and evidence.campaign.adaptive):
        return []
    few = [attack.name for attack in evidence.attacks if attack.gradient_draws == 1 and queries_victim(attack)]
    text = f"Randomized recognizer, one draw a step (no EOT): {', '.join(few)} may look weaker than they are."
    return [text] if few else []


def no_gradient(evidence: Evidence) -> Sentences:
    """A defense through which another gradient passes than its own."""
    blunt = [type(d).__name__ for d in evidence.campaign.recognizer.defenses if not d.differentiable]
    attacks = [attack for attack in evidence.attacks if white_box(attack)]
    single = [attack.name for attack in attacks if not any(isinstance(layer, Adaptive) for layer in layers(attack))]
    if not (blunt and evidence.campaign.adaptive and single):
        return []
    return [f"{', '.join(blunt)} has no gradient and another stands for it: {', '.join(single)} may be misled."]


def oblivious(evidence: Evidence) -> Sentences:
    """Examples made without the defenses."""
    unaware = len(evidence.campaign.recognizer.defenses) > 0 and not evidence.campaign.adaptive
    return ["Oblivious: crafted without the defenses, so this is no measure of robustness."] if unaware else []


def gradient(evidence: Evidence) -> Sentences:
    """No usable gradient at the utterances themselves."""
    found = [record["gradient"] for record in evidence.benign.values()]
    broken, zero = sum(value is None for value in found), sum(value == 0.0 for value in found)
    small = sum(value is not None and 0.0 < value < VANISHING for value in found)
    if broken + zero + small <= PART * len(found):
        return []
    return [
        f"Of the gradients at {len(found)} utterances {broken} are not finite, {zero} zero and {small} below "
        f"{VANISHING:g}: attacks that follow them stand still."
    ]


def unchanged(evidence: Evidence) -> Sentences:
    """Utterances that withstood an attack which did nothing."""
    sentences = []
    for attack in evidence.attacks:
        records = evidence.records[attack.name].values()
        idle = sum(record["linf"] == 0 and not record["achieved"] for record in records)
        if idle > PART * len(records):
            sentences.append(f"{attack.name} left {idle} of {len(records)} utterances unchanged.")
    return sentences


def black_box(evidence: Evidence) -> Sentences:
    """An attack without gradients beats all those with gradients in the same ball."""
    sentences, compared = [], False
    for blind in evidence.attacks:
        rivals = [a for a in evidence.attacks if white_box(a) and ball(a) == ball(blind) < math.inf]
        if white_box(blind) or not rivals:
            continue
        compared = True
        won, theirs = evidence.won(blind), set[str]().union(*map(evidence.won, rivals))
        if beats(won, theirs):
            sentences.append(
                f"{blind.name}, without gradients, succeeds on {len(won)} utterances, "
                f"{', '.join(rival.name for rival in rivals)} on {len(theirs)}."
            )
    return sentences if compared else None


def epsilon(evidence: Evidence) -> Sentences:
    """A larger ball that does not help."""
    sentences, compared = [], False
    for budget, size in BUDGETS.items():
        for pair in evidence.sweeps(budget, "step_size"):
            less, more = sorted(pair, key=lambda attack: size(getattr(attack, budget)))
            small, large = getattr(less, budget), getattr(more, budget)
            if size(large) == math.inf:
                continue
            compared = True
            few, many, total = evidence.won(less), evidence.won(more), len(evidence.counted(more))
            flat = size(large) >= 2.0 * size(small) and 0 < len(few) >= len(many) and total - len(many) > PART * total
            if flat or beats(few, many):
                sentences.append(
                    f"{less.name} succeeds on {len(few)} of {total} utterances, {more.name} with {budget} of "
                    f"{large:g} instead of {small:g} on {len(many)}."
                )
    return sentences if compared else None


def steps(evidence: Evidence) -> Sentences:
    """More steps that help the defender."""
    pairs = evidence.sweeps("steps")
    sentences = []
    for less, more in pairs:
        few, many = evidence.won(less), evidence.won(more)
        if beats(few, many):
            sentences.append(f"{more.name} is weaker than {less.name}: {len(many)} successes against {len(few)}.")
    return sentences if pairs else None


def unbounded(evidence: Evidence) -> Sentences:
    """An attack that may change anything and still fails."""
    free = [attack for attack in evidence.attacks if not limited(attack) or 1.0 <= ball(attack) < math.inf]
    rates = [(attack.name, len(evidence.won(attack)), len(evidence.counted(attack))) for attack in free]
    sentences = [f"{name} has no limit and succeeds on {k} of {n} utterances." for name, k, n in rates if k < n]
    return sentences if free else None


def unfinished(evidence: Evidence) -> Sentences:
    """An attack that was stopped while its loss fell."""
    sentences, asked = [], False
    for attack in evidence.attacks:
        records = [record for record in evidence.counted(attack) if record["earlier"] is not None]
        standing = [record for record in records if not record["achieved"]]
        if not records or 0 < len(standing) < FEW:
            continue
        asked = True
        late = math.fsum(record["earlier"] - record["margin"] for record in standing)
        way = math.fsum(evidence.benign[record["name"]]["margin"] - record["margin"] for record in standing)
        if late > FALLING * way > 0.0:
            sentences.append(
                f"The margin of {len(standing)} utterances that withstood {attack.name} was still falling: the last "
                f"tenth of its steps went {100.0 * late / way:.0f} % of the way."
            )
    return sentences if asked else None


def adaptive(evidence: Evidence) -> Sentences:
    """Knowing the defense makes the attack weaker."""
    if not (len(evidence.campaign.recognizer.defenses) and evidence.campaign.adaptive):
        return []
    sentences, asked = [], False
    for attack in evidence.attacks:
        records = [record for record in evidence.counted(attack) if record["oblivious"] is not None]
        asked |= bool(records)
        aware = {record["name"] for record in records if record["achieved"]}
        unaware = {record["name"] for record in records if record["oblivious"]}
        if beats(unaware, aware):
            sentences.append(
                f"{attack.name} succeeds on {len(aware)} of {len(records)} utterances, crafted without the defenses on "
                f"{len(unaware)}."
            )
    return sentences if asked else None


def noise(evidence: Evidence) -> Sentences:
    """Mere noise in the same ball does nearly as well."""
    sentences, compared = [], False
    for attack in evidence.attacks:
        if ball(attack) == math.inf:
            continue
        compared, records = True, evidence.counted(attack)
        control = sum(evidence.benign[record["name"]]["noise"][str(ball(attack))] for record in records)
        won = len(evidence.won(attack))
        if control > 1 and 2 * control >= won:
            sentences.append(
                f"Uniform noise in the ball of {attack.name} succeeds on {control} of {len(records)} utterances, "
                f"the attack on {won}."
            )
    return sentences if compared else None


CHECKS: dict[str, Callable[[Evidence], Sentences]] = {
    "no-eot": no_eot,
    "no-gradient": no_gradient,
    "oblivious": oblivious,
    "gradient": gradient,
    "unchanged": unchanged,
    "black-box": black_box,
    "adaptive": adaptive,
    "epsilon": epsilon,
    "steps": steps,
    "unfinished": unfinished,
    "unbounded": unbounded,
    "noise": noise,
}
"""Every check under the id of its flags."""


def examine(campaign: Campaign, benign: dict[str, Record], records: dict[str, dict[str, Record]]) -> Report:
    """Everything that speaks against a finished campaign.

    Args:
        campaign: finished.
        benign: records of the utterances as they are, by name.
        records: of each attack, by its name, and by utterance.
    """
    found = {id: check(Evidence(campaign, benign, records)) for id, check in CHECKS.items()}
    flags = [Flag(id, text) for id, sentences in found.items() for text in sentences or []]
    return Report(flags, [id for id, sentences in found.items() if sentences is None])
