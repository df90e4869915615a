"""The summary on a terminal: what fits 80 columns; the files hold the rest."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from sec4sr_pl.robustness.campaign import BENIGN
from sec4sr_pl.robustness.errors import said
from sec4sr_pl.robustness.rates import Rate, shown
from sec4sr_pl.robustness.tables import Summary


def show(summary: Summary, paths: Sequence[Path], console: Console) -> None:
    """Print the rates of each attack, R1, the notes, the sentinel's report, and where the full tables lie.

    Args:
        summary: of a finished campaign.
        paths: the files written.
        console: to print on.
    """
    console.print(table(summary))
    if summary.errors:
        console.print(wrong(summary))
    if summary.quarters:
        console.print(lengths(summary))
    r1 = "-" if summary.r1 is None else f"{100 * summary.r1:.1f} %"
    console.print(Text(f"R1, harmonic mean of the benign and the mean adversarial accuracy: {r1}"))
    for note in [f"- {note}" for note in summary.notes] + summary.sentinel.lines():
        console.print(Markdown(note))
    console.print(Text("Full tables: " + ", ".join(str(path) for path in paths)), soft_wrap=True)


def table(summary: Summary) -> Table:
    """A line an attack: accuracy and success in percent, SNR in dB, PESQ; `over draws` for randomized recognizers."""
    randomized = summary.benign_over_draws is not None
    counted = max((row.success.trials for row in summary.rows), default=0)
    drawn = ["over draws %"] if randomized else []
    title = f"{summary.benign.trials} utterances, goal: {summary.goal}"
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("attack", overflow="fold")
    for name in ["accuracy %\n[95 %]", *drawn, f"success % of {counted}\n[95 %]", "SNR\ndB", "PESQ"]:
        grid.add_column(name, justify="right", no_wrap=True)

    def line(attack: str, accuracy: Rate, over_draws: float | None, *rest: str) -> None:
        draws = [shown(None if over_draws is None else 100 * over_draws, 1)] if randomized else []
        grid.add_row(*(Text(cell) for cell in (attack, str(accuracy), *draws, *rest)))

    line("none (benign)", summary.benign, summary.benign_over_draws, "-", "-", "-")
    for row in summary.rows:
        snr, pesq = (shown(row.measures[name]["mean"], digits) for name, digits in (("snr", 1), ("pesq", 2)))
        line(row.attack, row.accuracy, row.accuracy_over_draws, str(row.success), snr, pesq)
    line("worst case", summary.worst, None, "-", "-", "-")
    return grid


def wrong(summary: Summary) -> Table:
    """A line an attack: errors of a recognizer with a threshold."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    lines = {attack: said(found) for attack, found in summary.errors.items()}
    grid.add_column("errors", overflow="fold")
    for title in lines[BENIGN]:
        grid.add_column(title.replace(" [", "\n["), justify="right", no_wrap=True)
    for attack, cells in lines.items():
        grid.add_row(*map(Text, (attack, *cells.values())))
    return grid


def lengths(summary: Summary) -> Table:
    """A line an attack: accuracy in each quarter of length."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("accuracy % by length", overflow="fold")
    for quarter in summary.quarters:
        grid.add_column(quarter.title, justify="right", no_wrap=True)
    for attack, *cells in summary.by_length():
        grid.add_row(*map(Text, (attack, *(cell.partition(" [")[0] for cell in cells))))
    return grid
