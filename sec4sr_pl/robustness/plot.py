"""A campaign in pictures: accuracy under each attack, with intervals, success against queries, error tradeoffs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sec4sr_pl.files import whole
from sec4sr_pl.metrics import DETCurve
from sec4sr_pl.robustness.queries import Curve
from sec4sr_pl.robustness.tables import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(summary: Summary, path: Path) -> Path:
    """Write a PNG of accuracies with their 95 % intervals; the path."""
    from matplotlib.figure import Figure

    rates = [
        ("benign", summary.benign),
        *((row.attack, row.accuracy) for row in summary.rows),
        ("worst", summary.worst),
    ]
    names = [name for name, _ in rates]
    values = [100 * (rate.value or 0.0) for _, rate in rates]
    lows = [max(0.0, value - 100 * (rate.low or 0.0)) for value, (_, rate) in zip(values, rates, strict=True)]
    highs = [max(0.0, 100 * (rate.high or 0.0) - value) for value, (_, rate) in zip(values, rates, strict=True)]
    figure = Figure(figsize=(1.6 + 0.9 * len(rates), 3.6), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#4c72b0"] + ["#dd8452"] * len(summary.rows) + ["#c44e52"]
    axes.bar(names, values, yerr=[lows, highs], capsize=4, color=colors)
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{summary.benign.trials} utterances, goal: {summary.goal}", fontsize=10)
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="y", alpha=0.3)
    return save(figure, path)


def plot_queries(curves: Mapping[str, Curve], path: Path) -> Path:
    """Write a PNG of success rates against queries, one line an attack, by name; the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.step(curve.queries, [100 * rate for rate in curve.rates], where="post", label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("forward rows an utterance")
    axes.set_ylabel("success, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return save(figure, path)


def plot_det(curves: Mapping[str, DETCurve], path: Path) -> Path:
    """Write a PNG of error tradeoffs, one line a recognizer or an attack, by name; the path.

    Both axes are on the scale of normal deviates, on which Gaussian scores give a straight line.
    """
    from matplotlib.figure import Figure
    from scipy.stats import norm

    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    ticks = [0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 0.999]
    low, high = norm.ppf([ticks[0] / 2, 1 - ticks[0] / 2])
    for name, curve in curves.items():
        rates = (curve.false_alarms, curve.misses)
        across, up = (norm.ppf(rate.double().cpu().numpy()).clip(low, high) for rate in rates)
        axes.plot(across, up, label=name)
    axes.plot([low, high], [low, high], color="gray", linewidth=0.8, linestyle=":")
    for axis, name in ((axes.xaxis, "false acceptance, %"), (axes.yaxis, "false rejection, %")):
        axis.set_ticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
        axis.set_label_text(name)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return save(figure, path)


def save(figure: "Figure", path: Path) -> Path:
    """Write a PNG that appears under its name only when it is whole; the path."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return path
