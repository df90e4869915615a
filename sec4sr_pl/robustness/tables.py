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
from sec4sr_pl.metrics import r1_score, wilson_interval
from sec4sr_pl.robustness.campaign import BENIGN, Campaign, Record, counted, write_text
from sec4sr_pl.robustness.sentinel import Report, examine
from sec4sr_pl.types import REJECT

EXACT = ("l2", "linf", "snr")
MEASURES = (*EXACT, "pesq", "stoi")


class Rate(NamedTuple):
    """k of n, with its 95 % Wilson interval; fractions, None where n is 0."""

    successes: int
    trials: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, flags: Iterable[bool]) -> "Rate":
        """The rate of flags that are set."""
        listed = list(flags)
        successes, trials = sum(listed), len(listed)
        if not trials:
            return cls(0, 0, None, None, None)
        return cls(successes, trials, successes / trials, *wilson_interval(successes, trials))

    def __str__(self) -> str:
        """61.4 [55.2, 67.2], in percent."""
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


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
        }
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line an attack, the benign utterances first and the worst case last."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        rates = [f"{name}{part}" for name in ("accuracy", "success") for part in ("", "_k", "_n", "_low", "_high")]
        failures = [f"{name}_undefined" for name in MEASURES]
        ways = [f"{name}{part}" for name in self.directions for part in ("", "_k", "_n", "_low", "_high")]
        writer.writerow(["attack", *rates, "accuracy_over_draws", "queries", *MEASURES, *failures, *ways])
        nothing = [""] * (2 + 2 * len(MEASURES) + len(ways))

        def cells(rate: Rate) -> list[Any]:
            return [rate.value, rate.successes, rate.trials, rate.low, rate.high]

        writer.writerow([BENIGN, *cells(self.benign), *[""] * 5, self.benign_over_draws, *nothing[1:]])
        for row in self.rows:
            means = [row.measures[name]["mean"] for name in MEASURES]
            undefined = [row.measures[name]["undefined"] for name in MEASURES]
            writer.writerow(
                [
                    row.attack,
                    *cells(row.accuracy),
                    *cells(row.success),
                    row.accuracy_over_draws,
                    row.queries,
                    *means,
                    *undefined,
                    *(cell for rate in row.directions.values() for cell in cells(rate)),
                ]
            )
        writer.writerow(["worst case", *cells(self.worst), *[""] * 5, *nothing])
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
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        r1 = "-" if self.r1 is None else f"{100 * self.r1:.1f} %"
        head = f"Goal: {self.goal}. {self.benign.trials} utterances. R1 (benign and mean adversarial accuracy): {r1}."
        return "\n\n".join([head, table, *self.notes, *self.sentinel.lines()]) + "\n"


def shown(value: float | int | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there, None where nothing is; the same bytes in whatever order the records came."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def gather(campaigns: Sequence[Campaign], name: str) -> list[Record]:
    """The records of several campaigns, each named after its campaign too."""
    return [
        {**record, "name": f"{index}/{record['name']}"}
        for index, campaign in enumerate(campaigns)
        for record in campaign.records(name)
    ]


def summarize(*campaigns: Campaign) -> Summary:
    """Read the records of a finished campaign, or of several with the same settings, counted together.

    Raises:
        CampaignError: a unit that is not there.
    """
    campaign = campaigns[0]
    benign = {record["name"]: record for record in gather(campaigns, BENIGN)}
    records = {a.name: {record["name"]: record for record in gather(campaigns, a.name)} for a in campaign.attacks}
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
        notes(campaign),
        examine(campaign, benign, records),
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
        {} if campaign.threshold == -math.inf else directions(records, benign),
    )


def directions(records: Sequence[Record], benign: dict[str, Record]) -> dict[str, Rate]:
    """Imposters who are accepted, enrolled speakers who are rejected, and who are taken for another."""
    before = [(record["label"], record["decision"]) for record in records if benign[record["name"]]["correct"]]
    enrolled = [(label, decision) for label, decision in before if label != REJECT]
    return {
        "accepted": Rate.of(decision != REJECT for label, decision in before if label == REJECT),
        "rejected": Rate.of(decision == REJECT for _, decision in enrolled),
        "confused": Rate.of(decision not in (REJECT, label) for label, decision in enrolled),
    }


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


def write_summary(summary: Summary, output: Path) -> list[Path]:
    """Write `summary.json`, `summary.csv` and `summary.md` into a folder; the paths written."""
    texts = {"json": summary.to_json(), "csv": summary.to_csv(), "md": summary.to_markdown()}
    paths = [output / f"summary.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths
