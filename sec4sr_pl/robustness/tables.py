"""From records to numbers with intervals: JSON for programs, CSV for spreadsheets, Markdown for people."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sec4sr_pl.attacks import Attack, UniformNoise
from sec4sr_pl.metrics import r1_score
from sec4sr_pl.robustness.campaign import BENIGN, Campaign, Record, counted, write_text
from sec4sr_pl.robustness.errors import Errors, columns, directions, errors, said
from sec4sr_pl.robustness.rates import Rate, shown
from sec4sr_pl.robustness.sentinel import Report, examine

EXACT = ("l2", "linf", "snr")
MEASURES = (*EXACT, "pesq", "stoi")


class Row(NamedTuple):
    """What one attack did."""

    attack: str
    accuracy: Rate
    """Utterances still decided correctly."""
    success: Rate
    """The goal reached, among utterances that were decided correctly before and whose target is not their speaker."""
    accuracy_over_draws: float | None
    """Mean accuracy over fresh draws of a randomized recognizer."""
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
        titles += ["L2", "Linf", "SNR dB", "PESQ", "STOI", "undefined", "queries"]
        lines = [titles, ["---"] * len(titles)]
        blank = ["-"] * (9 + len(self.directions))

        def drawn(value: float | None) -> list[str]:
            return [shown(None if value is None else 100 * value, 1)] if randomized else []

        lines.append(["none (benign)", str(self.benign), *drawn(self.benign_over_draws), *blank])
        for row in self.rows:
            digits = {"l2": 3, "linf": 5, "snr": 1, "pesq": 2, "stoi": 3}
            means = [shown(row.measures[name]["mean"], digits[name]) for name in MEASURES]
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
        r1 = "-" if self.r1 is None else f"{100 * self.r1:.1f} %"
        head = f"Goal: {self.goal}. {self.benign.trials} utterances. R1 (benign and mean adversarial accuracy): {r1}."
        return "\n\n".join([head, *tables, *self.notes, *self.sentinel.lines()]) + "\n"


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
    judged = {} if campaign.threshold == -math.inf else {BENIGN: benign, **records}
    rows = [_row(a, list(records[a.name].values()), benign, campaign) for a in campaign.attacks]
    judges = [attack.name for attack in campaign.attacks if comparable(attack)]
    accuracies = [row.accuracy.value for row in rows if row.attack in judges and row.accuracy.value is not None]
    worst = [own["correct"] and all(records[a][name]["correct"] for a in judges) for name, own in benign.items()]
    benign_rate = Rate.of(own["correct"] for own in benign.values())
    r1 = r1_score(benign_rate.value or 0.0, math.fsum(accuracies) / len(accuracies)) if accuracies else None
    return Summary(
        benign_rate,
        mean(own["correct_rate"] for own in benign.values()),
        rows,
        Rate.of(worst),
        r1,
        campaign.goal,
        [*notes(campaign), *([f"minDCF: a claim is true with probability {target_prior:g}."] * campaign.verification)],
        examine(campaign, benign, records),
        {name: errors([*own.values()], campaign.verification, target_prior) for name, own in judged.items()},
    )


def comparable(attack: Attack) -> bool:
    """Whether an attack counts in the worst case and in R1: what may change anything and a control do not."""
    return math.isfinite(attack.epsilon) and not isinstance(attack, UniformNoise)


def _row(attack: Attack, records: Sequence[Record], benign: dict[str, Record], campaign: Campaign) -> Row:
    """The numbers of one attack; the distortion of one without a ball is that of its successes."""
    perceptual, tried = campaign.perceptual, counted(records, benign)
    changed = records if math.isfinite(attack.epsilon) else [record for record in tried if record["achieved"]]
    measures: dict[str, dict[str, float | int | None]] = {
        measure: {
            "mean": mean(record[measure] for record in changed),
            "undefined": sum(record[measure] is None for record in changed) if perceptual or measure in EXACT else None,
        }
        for measure in MEASURES
    }
    return Row(
        attack.name,
        Rate.of(record["correct"] for record in records),
        Rate.of(record["achieved"] for record in tried),
        mean(record["correct_rate"] for record in records),
        measures,
        math.fsum(record["queries"] for record in records) / len(records),
        {} if campaign.threshold == -math.inf else _directions(records, benign),
    )


def _directions(records: Sequence[Record], benign: dict[str, Record]) -> dict[str, Rate]:
    before = [record for record in records if benign[record["name"]]["correct"]]
    return dict(zip(("accepted", "rejected", "confused"), directions(before), strict=True))


def notes(campaign: Campaign) -> list[str]:
    """How to read the table."""
    found = []
    if campaign.excluded:
        found.append(f"{campaign.excluded} utterances of imposters were left out: a closed set rejects nobody.")
    if free := [attack.name for attack in campaign.attacks if not math.isfinite(attack.epsilon)]:
        found.append(
            f"{', '.join(free)}: no ball, so not in the worst case and in R1; read how much a success changed "
            "(means over the successes)."
        )
    if campaign.goal != "untargeted":
        found.append("Targeted attacks do not aim at wrong decisions: read their success; accuracy and R1 flatter.")
    if campaign.perceptual is False:
        found.append("PESQ and STOI were not measured.")
    return found


def write_summary(summary: Summary, output: str | Path) -> list[Path]:
    """Write `summary.json`, `summary.csv` and `summary.md` into a folder; the paths written."""
    texts = {"json": summary.to_json(), "csv": summary.to_csv(), "md": summary.to_markdown()}
    paths = [Path(output, f"summary.{suffix}") for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths
