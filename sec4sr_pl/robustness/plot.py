"""The summary as a picture: accuracy under each attack, with intervals."""

import os
from pathlib import Path

from sec4sr_pl.robustness.tables import Summary


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
    return path
