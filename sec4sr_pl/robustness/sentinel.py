"""The sentinel: reasons to doubt a campaign's figures. docs/sentinel.md has a paragraph on each."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from scipy.stats import binomtest

from sec4sr_pl.attacks import Adaptive, Attack, UniformNoise
from sec4sr_pl.attacks.worst import WorstCase
from sec4sr_pl.robustness.campaign import QUERIES, WIDE, WIDEST, Campaign, Record, counted
from sec4sr_pl.robustness.probe import DISTANCES, STEP, ball, layers, limited, queries_victim, white_box

CHANCE = 0.05
"""A difference that is as likely by chance says nothing; it takes five utterances of five."""
PART = 0.1
"""The part of the utterances that may be odd."""
VANISHING = 1e-30
"""Below it most samples of a gradient are smaller than float32 can hold, and do not move."""
FALLING = 0.05
"""Part of the way that the last tenth of the steps may go: half of an even pace."""

LEAST_SLOPES, MOST_SLOPE = (0.5, 0.25, 0.1), 10.0
"""Of what a gradient says, at each of `DISTANCES`; medians behind shipped defenses were above 0.82, 0.66 and 0.35."""
LEAST_LIFT = 8.0
"""Times a random step; medians behind the shipped defenses that have a gradient were above 20, natural AudioNet."""
AGAINST = 0.25
"""Part of the utterances whose margin may move against its gradient; of the shipped parts 1 of 16 did at most."""
FEWEST = 5
"""Utterances of which half tells anything."""
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
    probe: dict[str, Record]
    """What was asked beside the attacks, by utterance."""

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

    def asked(self, question: str, about: object) -> tuple[set[str], set[str]]:
        """The utterances on which an attack can succeed that were asked a question, and those that answered yes."""
        answers = {
            name: record[question][str(about)]
            for name, record in self.probe.items()
            if str(about) in record[question] and counted([self.benign[name]], self.benign)
        }
        return set(answers), {name for name, answer in answers.items() if answer}

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


def randomness(evidence: Evidence) -> Sentences:
    """A recognizer that draws random numbers, and does not say so or can't be made to repeat them."""
    if evidence.campaign.repeats:
        return []
    return [
        "Two passes over the same utterances gave different scores or gradients: something in the recognizer draws "
        "random numbers, or remembers, without an attribute `randomized` and a method `seed`. Its figures are of draws "
        "that nobody can repeat."
    ]


def no_eot(evidence: Evidence) -> Sentences:
    """A randomized recognizer, attacked without averaging."""
    if not (evidence.campaign.randomized and evidence.campaign.adaptive):
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


def slope(evidence: Evidence) -> Sentences:
    """A gradient that does not say how the margin changes."""
    probed = list(evidence.probe.values())
    for place, (distance, least) in enumerate(zip(DISTANCES, LEAST_SLOPES, strict=True)):
        middle = statistics.median(record["slopes"][place] or 0.0 for record in probed)
        if not least <= middle <= MOST_SLOPE:
            return [
                f"Moved along their gradients by {distance:.1g} of full scale, {len(probed)} utterances change their "
                f"margins by {middle:.3g} of what the gradients say (median): they are not the recognizer's."
            ]
    against = sum((record["slopes"][STEP] or 0.0) < 0.0 for record in probed)
    if against >= FEW and against > AGAINST * len(probed):
        return [
            f"Moved along their gradients by {DISTANCES[STEP]:.1g} of full scale, {against} of {len(probed)} "
            "utterances change their margins the other way: these gradients are not the recognizer's."
        ]
    lift = statistics.median(record["lift"] or 0.0 for record in probed)
    if lift < LEAST_LIFT:
        return [
            f"A step against their gradients lowers the margins of {len(probed)} utterances by no more than {lift:.1f} "
            "times what a random step changes (median): the gradients leave most of the samples out."
        ]
    return []


def raised(evidence: Evidence) -> Sentences:
    """An attack by gradients that moves away from its goal."""
    sentences = []
    for attack in evidence.attacks if evidence.campaign.adaptive else []:
        records = [record for record in evidence.counted(attack) if record["margin"] is not None]
        before = [evidence.benign[record["name"]]["margin"] for record in records]
        up = sum(own is not None and record["margin"] > own for record, own in zip(records, before, strict=True))
        if white_box(attack) and up and binomtest(up, len(records), alternative="greater").pvalue < CHANCE:
            sentences.append(f"{attack.name} raised the margin of {up} of {len(records)} utterances.")
    return sentences


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
    for radius in evidence.campaign.doubted:
        names, won = evidence.asked("queried", radius)
        rivals = [attack for attack in evidence.attacks if white_box(attack) and ball(attack) == radius]
        theirs = set[str]().union(*map(evidence.won, rivals)) & names
        compared |= bool(names)
        if beats(won, theirs):
            sentences.append(
                f"{QUERIES} queries of Square succeed on {len(won)} of {len(names)} utterances, "
                f"{', '.join(rival.name for rival in rivals)} on {len(theirs)}."
            )
    return sentences if compared else None


def steps_of(attack: Attack) -> int:
    """How many it takes, or what it wraps."""
    return int(layers(attack)[-1].settings().get("steps", 1))


def suite(evidence: Evidence) -> Sentences:
    """A single attack beats one that tries several."""
    sentences = []
    suites = [attack for attack in evidence.attacks if isinstance(attack, WorstCase)]
    alone = [attack for attack in evidence.attacks if not isinstance(attack, WorstCase)]
    pairs = [(best, a) for best in suites for a in alone if ball(a) == ball(best) and steps_of(a) <= steps_of(best)]
    for best, other in pairs:
        won, theirs = evidence.won(other), evidence.won(best)
        if beats(won, theirs):
            sentences.append(f"{other.name} succeeds on {len(won)} utterances, {best.name} on {len(theirs)}.")
    return sentences if pairs or not suites else None


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
    for radius in evidence.campaign.doubted:
        names, won = evidence.asked("wide", radius)
        compared |= bool(names)
        if len(names) >= FEWEST and 2 * len(won) < len(names):
            large = max(WIDE * radius, WIDEST)
            sentences.append(f"PGD-10 in the ball of {large:g} succeeds on {len(won)} of {len(names)} utterances.")
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
        records = [record for record in evidence.counted(attack) if record["further"] is not None]
        standing = [record for record in records if not record["achieved"]]
        if not records or 0 < len(standing) < FEW:
            continue
        asked = True
        further = math.fsum(record["further"] for record in standing)
        way = math.fsum(evidence.benign[record["name"]]["margin"] - record["margin"] for record in standing)
        if further > FALLING * max(way, 0.0) and further > 0.0:
            went = f"{100.0 * further / way:.0f} % of the way" if way > 0.0 else "down, after a way up"
            sentences.append(
                f"The margin of {len(standing)} utterances that withstood {attack.name} was still falling: a tenth of "
                f"its steps more goes {went}."
            )
    return sentences if asked else None


def adaptive(evidence: Evidence) -> Sentences:
    """Knowing the defense makes the attack weaker."""
    if not (len(evidence.campaign.recognizer.defenses) and evidence.campaign.adaptive):
        return []
    sentences, asked = [], False
    for attack in evidence.attacks:
        names, unaware = evidence.asked("oblivious", attack.name)
        asked |= bool(names)
        aware = evidence.won(attack) & names
        if beats(unaware, aware):
            sentences.append(
                f"{attack.name} succeeds on {len(aware)} of {len(names)} utterances, crafted without the defenses on "
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
    "randomness": randomness,
    "no-eot": no_eot,
    "no-gradient": no_gradient,
    "oblivious": oblivious,
    "gradient": gradient,
    "slope": slope,
    "raised": raised,
    "unchanged": unchanged,
    "black-box": black_box,
    "suite": suite,
    "adaptive": adaptive,
    "epsilon": epsilon,
    "steps": steps,
    "unfinished": unfinished,
    "unbounded": unbounded,
    "noise": noise,
}
"""Every check under the id of its flags."""


def examine(
    campaign: Campaign, benign: dict[str, Record], records: dict[str, dict[str, Record]], probe: dict[str, Record]
) -> Report:
    """Everything that speaks against a finished campaign.

    Args:
        campaign: finished.
        benign: records of the utterances as they are, by name.
        records: of each attack, by its name, and by utterance.
        probe: what was asked beside the attacks, by utterance.
    """
    evidence = Evidence(campaign, benign, records, probe)
    found = {id: check(evidence) for id, check in CHECKS.items()}
    flags = [Flag(id, text) for id, sentences in found.items() for text in sentences or []]
    return Report(flags, [id for id, sentences in found.items() if sentences is None])
