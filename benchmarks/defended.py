"""A small version of the paper's Table IV: every defense against oblivious and adaptive attacks, natural AudioNet.

40 test utterances of at most 3 s. Oblivious examples are made on the undefended recognizer. The adaptive attack goes
through the defense: with 20 draws at each step where it is randomized, and as the worst of {identity, gain, NES of 20
samples}, each also from the oblivious example, where it has no gradient. Needs SEC4SR_DATA; what is done stays done in
runs/defended, so that a killed run goes on.

Usage: python benchmarks/defended.py [names of defenses]
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from setting import ARGUMENTS, OPTIONS, corpus, sized

from sec4sr_pl.attacks import FGSM, NES, PGD, Adaptive, Attack, CWinf
from sec4sr_pl.data import Spk251
from sec4sr_pl.defenses import (
    AMR,
    AACConstant,
    AACVariable,
    AverageSmoothing,
    BandPass,
    BitDepthReduction,
    Defense,
    Downsampling,
    FeCo,
    GaussianNoise,
    LowPass,
    MedianSmoothing,
    MP3Constant,
    MP3Variable,
    Opus,
    Quantization,
    Shuffle,
    Speex,
    WarpedFeCo,
)
from sec4sr_pl.evaluation import evaluate
from sec4sr_pl.robustness import Summary

CHECKPOINT = Path("checkpoints/audionet_mini_natural.ckpt")
FOLDER = Path(tempfile.mkdtemp() if OPTIONS.smallest else "runs/defended")
DRAWS, SAMPLES, LIMIT = sized((20, 20, 40), (2, 2, 1))


class Line(NamedTuple):
    """A line of the table."""

    name: str
    make: Callable[[], Defense] | None


LINES = [
    Line("none", None),
    Line("QT", Quantization),
    Line("BDR", BitDepthReduction),
    Line("AT", GaussianNoise),
    Line("AS", AverageSmoothing),
    Line("MS", MedianSmoothing),
    Line("DS", Downsampling),
    Line("LPF", LowPass),
    Line("BPF", BandPass),
    Line("OPUS", Opus),
    Line("SPEEX", Speex),
    Line("AMR", AMR),
    Line("AAC-V", AACVariable),
    Line("AAC-C", AACConstant),
    Line("MP3-V", MP3Variable),
    Line("MP3-C", MP3Constant),
    Line("FeCo-o(k)", FeCo),
    Line("FeCo-o(k), cosine", lambda: FeCo(distance="cos")),
    Line("FeCo-o(wk)", WarpedFeCo),
    Line("FeCo-o(wk), random start", lambda: WarpedFeCo(init="random")),
    Line("FeCo-o(k), uniform start", lambda: FeCo(start="uniform")),
    Line("FeCo-o(k), order of time", lambda: FeCo(order="time")),
    Line("shuffle alone", Shuffle),
]


def adaptive(defense: Defense | None) -> list[Attack]:
    """FGSM, PGD-10 and CWinf-10 as they must be against a defense."""
    if defense is None or (defense.differentiable and not defense.randomized):
        return [FGSM(), PGD(), CWinf()]
    if defense.randomized:
        return [FGSM(draws=DRAWS), PGD(draws=DRAWS), CWinf(draws=DRAWS)]
    return [Adaptive(attack, nes=NES(SAMPLES)) for attack in (FGSM(), PGD(), CWinf())]


def members(name: str, defense: Defense | None) -> str:
    """PGD-10 by each gradient and by queries alone, as it is without the others; the adaptive attack combines them."""
    if defense is None or defense.differentiable:
        return "-"
    found = []
    for gradient in (*defense.gradients, "NES"):
        source = NES(SAMPLES) if gradient == "NES" else None
        defense.gradient = gradient if source is None else "identity"
        found += accuracies(attacked(name, defense, [PGD(source=source)], gradient))
    return ", ".join(found)


def attacked(name: str, defense: Defense | None, attacks: Sequence[Attack], way: str) -> Summary:
    """One campaign: `oblivious`, or by what the attacks know."""
    output = FOLDER / name.replace(", ", "_").replace(" ", "_") / way
    summary = evaluate(
        CHECKPOINT,
        Spk251(corpus()),
        attacks,
        output,
        defenses=[] if defense is None else [defense],
        adaptive=way != "oblivious",
        limit=LIMIT,
        max_seconds=sized(3.0, 0.5),
        perceptual=False,
        accelerator="cpu",
    )
    assert summary is not None
    return summary


def accuracies(summary: Summary) -> list[str]:
    """In percent; of a randomized recognizer the mean over fresh draws."""
    found = [row.accuracy.value if row.accuracy_over_draws is None else row.accuracy_over_draws for row in summary.rows]
    return [f"{100 * value:.1f}" for value in found if value is not None]


def main(names: Sequence[str]) -> None:
    """Print the table as Markdown, each line as soon as it is known."""
    names = names or sized([], ["none", "AT", "OPUS"])  # at the smallest size a randomized one and one of no gradient
    lines = [line for line in LINES if not names or line.name in names]
    titles = ["defense", "benign", *(f"{attack}, oblivious" for attack in ("FGSM", "PGD-10", "CWinf-10"))]
    titles += [
        *(f"{attack}, adaptive" for attack in ("FGSM", "PGD-10", "CWinf-10")),
        "PGD-10 by identity, (gain,) NES alone",
    ]
    for cells in (titles, ["---"] * len(titles)):
        print(f"| {' | '.join(cells)} |", flush=True)
    for name, make in lines:
        try:
            defense = None if make is None else make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            continue
        blind = attacked(name, defense, [FGSM(), PGD(), CWinf()], "oblivious")
        known = attacked(name, defense, adaptive(defense), "adaptive")
        benign = blind.benign.value if blind.benign_over_draws is None else blind.benign_over_draws
        assert benign is not None
        cells = [name, f"{100 * benign:.1f}", *accuracies(blind), *accuracies(known), members(name, defense)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(ARGUMENTS)
