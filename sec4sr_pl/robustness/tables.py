"""From records to numbers with intervals: JSON for programs, CSV for spreadsheets, Markdown for people."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sec4sr_pl.attacks import Attack, Claim, UniformNoise
from sec4sr_pl.metrics import r1_score
from sec4sr_pl.robustness.campaign import BENIGN, PROBE, Campaign, Record, counted, write_text
from sec4sr_pl.robustness.errors import Errors, Groups, columns, directions, errors, rate, said
from sec4sr_pl.robustness.lengths import Quarter, quarters
from sec4sr_pl.robustness.rates import Rate, shown
from sec4sr_pl.robustness.sentinel import Report, examine
from sec4sr_pl.types import SAMPLE_RATE

EXACT = ("l0", "l1", "l2", "linf", "snr")
MEASURES = {"l0": ("L0", 0), "l1": ("L1", 2), "l2": ("L2", 3), "linf": ("Linf", 5), "snr": ("SNR dB", 1)} | {
    "pesq": ("PESQ", 2),
    "stoi": ("STOI", 3),
}
"""Title and digits of each measure of distortion."""


class Row(NamedTuple):
    """What one attack did."""

    attack: str
    accuracy: Rate
    """Utterances still decided correctly."""
    success: Rate
    """The goal reached, among utterances that were decided correctly before and whose target is not their speaker."""
    accuracy_over_draws: float | None
    """Mean accuracy over fresh draws of a randomized recognizer."""
    changed: int
    """Utterances that the attack changed, over which distortion is measured; without a ball, those of its successes."""
    measures: dict[str, dict[str, float | int | None]]
    """Mean of each measure of distortion, and for how many utterances it is not defined; None where not measured."""
    queries: float
    """Forward rows an utterance, mean."""
    directions: Mapping[str, Rate] = MappingProxyType({})
    """In an open set: those who were decided correctly before and are now wrongly accepted, rejected, or confused."""


class Summary(NamedTuple):
    """A campaign in numbers."""

    benign: Rate
    benign_over_draws: float | None
    rows: list[Row]
    worst: Rate
    """Utterances decided correctly whatever the attack."""
    r1: float | None
    """Harmonic mean of the benign accuracy and the mean accuracy over the attacks."""
    goal: str
    notes: list[str]
    sentinel: Report
    errors: dict[str, Errors]
    """Of the benign utterances and under each attack; none in a closed set."""
    seconds: tuple[float, float, float]
    """Length of the shortest, the median and the longest utterance."""
    quarters: list[Quarter]
    """Accuracy by length; none of few utterances."""

    @property
    def directions(self) -> list[str]:
        """The ways in which an attack succeeds; none in a closed set."""
        return list(self.rows[0].directions) if self.rows else []

    def to_json(self) -> str:
        """All numbers, fractions."""
        plain: dict[str, Any] = {
            **self._asdict(),
            "benign": self.benign._asdict(),
            "worst": self.worst._asdict(),
            "rows": [
                {
                    **row._asdict(),
                    "accuracy": row.accuracy._asdict(),
                    "success": row.success._asdict(),
                    "directions": {name: rate._asdict() for name, rate in row.directions.items()},
                }
                for row in self.rows
            ],
            "sentinel": {**self.sentinel._asdict(), "flags": [flag._asdict() for flag in self.sentinel.flags]},
            "errors": {
                attack: {name: value._asdict() if isinstance(value, Rate) else value for name, value in found.items()}
                for attack, found in self.errors.items()
            },
            "quarters": [
                {**q._asdict(), "accuracy": {name: rate._asdict() for name, rate in q.accuracy.items()}}
                for q in self.quarters
            ],
        }
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line an attack, the benign utterances first and the worst case last."""
        benign = {"attack": BENIGN, **self.benign.columns("accuracy"), "accuracy_over_draws": self.benign_over_draws}
        attacked: list[dict[str, Any]] = [
            {
                "attack": row.attack,
                **row.accuracy.columns("accuracy"),
                **row.success.columns("success"),
                "accuracy_over_draws": row.accuracy_over_draws,
                "queries": row.queries,
                "changed": row.changed,
                **{name: row.measures[name]["mean"] for name in MEASURES},
                **{f"{name}_undefined": row.measures[name]["undefined"] for name in MEASURES},
                **{title: cell for name, rate in row.directions.items() for title, cell in rate.columns(name).items()},
            }
            for row in self.rows
        ]
        for line in (benign, *attacked):
            line |= columns(self.errors.get(line["attack"], {}))
        worst = {"attack": "worst case", **self.worst.columns("accuracy")}
        text = io.StringIO()
        titles = dict.fromkeys(title for line in (*attacked, benign) for title in line)
        writer = csv.DictWriter(text, titles, lineterminator="\n")
        writer.writeheader()
        writer.writerows([benign, *attacked, worst])
        return text.getvalue()

    def to_markdown(self) -> str:
        """A table for people, percentages with intervals, the notes and the sentinel's report below."""
        randomized = self.benign_over_draws is not None
        titles = ["attack", "accuracy % [95 %]", *(["over draws %"] if randomized else [])]
        titles += ["success % of n [95 %]", "n", *(f"{name} % [95 %]" for name in self.directions)]
        titles += ["changed", *(title for title, _ in MEASURES.values()), "undefined", "queries"]
        lines = [titles, ["---"] * len(titles)]
        blank = ["-"] * (5 + len(MEASURES) + len(self.directions))

        def drawn(value: float | None) -> list[str]:
            return [shown(None if value is None else 100 * value, 1)] if randomized else []

        lines.append(["none (benign)", str(self.benign), *drawn(self.benign_over_draws), *blank])
        for row in self.rows:
            means = [shown(row.measures[name]["mean"], digits) for name, (_, digits) in MEASURES.items()]
            undefined = ", ".join(
                f"{row.measures[m]['undefined']} {m.upper()}" for m in MEASURES if row.measures[m]["undefined"]
            )
            lines.append(
                [
                    row.attack,
                    str(row.accuracy),
                    *drawn(row.accuracy_over_draws),
                    str(row.success),
                    str(row.success.trials),
                    *map(str, row.directions.values()),
                    str(row.changed),
                    *means,
                    undefined or "0",
                    f"{row.queries:.0f}",
                ]
            )
        lines.append(["worst case", str(self.worst), *([""] if randomized else []), *blank])
        tables = [markdown(lines)]
        if self.errors:
            wrong = [{"errors": attack, **said(found)} for attack, found in self.errors.items()]
            tables.append(markdown([[*wrong[0]], ["---"] * len(wrong[0]), *(line.values() for line in wrong)]))
        if self.quarters:
            titles = ["accuracy % [95 %] by length", *(quarter.title for quarter in self.quarters)]
            tables.append(markdown([titles, ["---"] * len(titles), *self.by_length()]))
        r1 = "-" if self.r1 is None else f"{100 * self.r1:.1f} %"
        lengths = "of {:.1f} to {:.1f} s, median {:.1f} s".format(*(self.seconds[i] for i in (0, 2, 1)))
        head = (
            f"Goal: {self.goal}. {self.benign.trials} utterances {lengths}. "
            f"R1 (benign and mean adversarial accuracy): {r1}."
        )
        return "\n\n".join([head, *tables, *self.notes, *self.sentinel.lines()]) + "\n"

    def by_length(self) -> list[list[str]]:
        """A line an attack, the benign utterances first: its name, and the accuracy in each quarter."""
        return [
            [attack, *(str(quarter.accuracy[attack]) for quarter in self.quarters)]
            for attack in (BENIGN, *(row.attack for row in self.rows))
        ]


def markdown(lines: Iterable[Iterable[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there, None where nothing is; the same bytes in whatever order the records came."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def summarize(campaign: Campaign, target_prior: float = 0.01) -> Summary:
    """Read the records of a finished campaign.

    Args:
        campaign: whose units are done.
        target_prior: probability of a true claim, for minDCF.

    Raises:
        CampaignError: a unit that is not there.
    """
    benign = {record["name"]: record for record in campaign.records(BENIGN)}
    records = {a.name: {record["name"]: record for record in campaign.records(a.name)} for a in campaign.attacks}
    groups = {utterance.name: (utterance.path, utterance.start) for utterance in campaign.data.utterances}
    seconds = {utterance.name: utterance.frames / SAMPLE_RATE for utterance in campaign.data.utterances}
    everything = {BENIGN: [*benign.values()], **{name: [*own.values()] for name, own in records.items()}}
    judged = {} if campaign.threshold == -math.inf else everything
    rows = [_row(a, everything[a.name], benign, groups, campaign) for a in campaign.attacks]
    judges = [attack.name for attack in campaign.attacks if comparable(attack)]
    accuracies = [row.accuracy.value for row in rows if row.attack in judges and row.accuracy.value is not None]
    benign_rate = rate(everything[BENIGN], lambda own: own["correct"], groups)
    worst = rate(
        everything[BENIGN],
        lambda own: own["correct"] and all(records[judge][own["name"]]["correct"] for judge in judges),
        groups,
    )
    r1 = r1_score(benign_rate.value or 0.0, math.fsum(accuracies) / len(accuracies)) if accuracies else None
    return Summary(
        benign_rate,
        mean(own["correct_rate"] for own in benign.values()),
        rows,
        worst,
        r1,
        campaign.goal,
        [*notes(campaign, target_prior), *nonfinite(everything)],
        examine(campaign, benign, records, {record["name"]: record for record in campaign.records(PROBE)}),
        {name: errors(own, groups, campaign.verification, target_prior) for name, own in judged.items()},
        (min(seconds.values()), statistics.median(seconds.values()), max(seconds.values())),
        quarters(seconds, everything, groups),
    )


def comparable(attack: Attack) -> bool:
    """Whether an attack counts in the worst case and in R1: what may change anything and a control do not."""
    return math.isfinite(attack.epsilon) and not isinstance(attack, UniformNoise)


def _row(
    attack: Attack, records: Sequence[Record], benign: dict[str, Record], groups: Groups, campaign: Campaign
) -> Row:
    """The numbers of one attack; the distortion of one without a ball is that of its successes."""
    perceptual, tried = campaign.perceptual, counted(records, benign)
    heard = records if math.isfinite(attack.epsilon) else [record for record in tried if record["achieved"]]
    changed = [record for record in heard if record["linf"] > 0.0]
    measures: dict[str, dict[str, float | int | None]] = {
        measure: {
            "mean": mean(record[measure] for record in changed),
            "undefined": sum(record[measure] is None for record in changed) if perceptual or measure in EXACT else None,
        }
        for measure in MEASURES
    }
    return Row(
        attack.name,
        rate(records, lambda record: record["correct"], groups),
        rate(tried, lambda record: record["achieved"], groups),
        mean(record["correct_rate"] for record in records),
        len(changed),
        measures,
        math.fsum(record["queries"] for record in records) / len(records),
        {} if campaign.threshold == -math.inf else _directions(records, benign, groups),
    )


def _directions(records: Sequence[Record], benign: dict[str, Record], groups: Groups) -> dict[str, Rate]:
    before = [record for record in records if benign[record["name"]]["correct"]]
    return dict(zip(("accepted", "rejected", "confused"), directions(before, groups), strict=True))


def notes(campaign: Campaign, target_prior: float) -> list[str]:
    """How to read the table."""
    found = []
    if campaign.excluded:
        found.append(f"{campaign.excluded} utterances of imposters were left out: a closed set rejects nobody.")
    if free := [attack.name for attack in campaign.attacks if not math.isfinite(attack.epsilon)]:
        found.append(
            f"{', '.join(free)}: no ball, so not in the worst case and in R1; read how much a success changed "
            "(means over the successes)."
        )
    if isinstance(campaign.objective, Claim):
        found.append("Intervals count the claims of one recording together.")
    if campaign.goal != "untargeted":
        found.append("Targeted attacks do not aim at wrong decisions: read their success; accuracy and R1 flatter.")
    if campaign.perceptual is False:
        found.append("PESQ and STOI were not measured.")
    if campaign.verification:
        found.append(f"minDCF: a claim is true with probability {target_prior:g}.")
    return found


def nonfinite(records: dict[str, list[Record]]) -> list[str]:
    """How many scores were not finite, and what was made of them."""
    counts = {name: sum(not record["finite"] for record in own) for name, own in records.items()}
    found = [f"{count} ({name})" for name, count in counts.items() if count]
    return [f"Scores that are not finite, counted as errors and as successes: {', '.join(found)}."] * bool(found)


def write_summary(summary: Summary, output: str | Path) -> list[Path]:
    """Write `summary.json`, `summary.csv` and `summary.md` into a folder; the paths written."""
    texts = {"json": summary.to_json(), "csv": summary.to_csv(), "md": summary.to_markdown()}
    paths = [Path(output, f"summary.{suffix}") for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths
