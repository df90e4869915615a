"""Whether the sentinel flags recognizers that mask gradients (tests/zoo.py), and no healthy one.

The limits were set having seen the zoo; those that are held out were written by somebody who had not seen the limits.

Each system, under PGD-10 alone and under AutoAttack alone, on three samples of 20 test utterances of 1 s that the
natural AudioNet knows (those of its largest margins, and two spread over the rest), for ten seeds; then the shipped
defenses, likewise. The truth is what withstands 100 steps of PGD on the undefended network, heard by the system. Needs
SEC4SR_DATA. What is done stays done in runs/masking<attack>.jsonl, so that a killed run goes on.

Usage: python benchmarks/masking.py [attack [zoo|held-out|shipped|a part of the systems' names]]
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import ARGUMENTS, OPTIONS, corpus, made, rounds, sized
from torch import Tensor
from tqdm import tqdm

from sec4sr_pl import defenses
from sec4sr_pl.attacks import PGD, Attack, AttackResult, AutoAttack, Objective
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Spk251
from sec4sr_pl.data.base import Utterances, collate
from sec4sr_pl.data.manifest import label, shortened
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, summarize

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from zoo import ALL, HELD_OUT, masked, places

FOLDER = Path(tempfile.mkdtemp() if OPTIONS.smallest else "runs")
CHECKPOINT = Path("checkpoints/audionet_mini_natural.ckpt")
SAMPLE, SECONDS, STEPS = sized((20, 1.0, 100), (6, 0.8, 5))
SEEDS = rounds(10)
ATTACKS: dict[str, Callable[[], Attack]] = {
    "PGD": PGD,
    "AutoAttack": lambda: AutoAttack(steps=3, queries=10),  # small: the checks do not depend on its steps
}
DECLARED = {"no-eot", "no-gradient"}
"""Flags that repeat what a system says of itself."""
SHIPPED = (
    *("AverageSmoothing", "MedianSmoothing", "Downsampling", "LowPass", "BandPass", "GaussianNoise"),
    *("FeCo", "WarpedFeCo", "Shuffle", "Quantization", "BitDepthReduction"),
    *("Opus", "MP3Constant", "MP3Variable", "AACConstant", "AACVariable", "Speex", "AMR"),
)


def samples(recognizer: Recognizer) -> list[Utterances]:
    """Three times 20 utterances that are recognized: of the largest margins, and spread over the others."""
    data = Spk251(corpus())
    data.connect(recognizer.scorer.speakers)
    utterances = shortened(data.utterances("test"), SECONDS)
    labels = label(utterances, recognizer.scorer.speakers, True)
    everything = Utterances(utterances, labels)
    margins = {}
    for index in range(len(utterances)):
        batch = collate([everything[index]])
        with torch.no_grad():
            margin = Objective().loss(recognizer(batch.waveforms, batch.lengths), batch.speakers)
        margins[index] = float(margin)
    known = sorted((index for index, margin in margins.items() if margin > 0.0), key=lambda index: -margins[index])
    rest = sorted(known[SAMPLE:])
    chosen = [known[:SAMPLE], rest[::2], rest[1::2]]
    parts = [[part[i * len(part) // SAMPLE] for i in range(SAMPLE)] if len(part) > SAMPLE else part for part in chosen]
    return [Utterances([utterances[i] for i in part], [labels[i] for i in part]) for part in parts if part]


def systems(plain: Recognizer) -> Iterator[tuple[str, str, str, Callable[[], Recognizer | None]]]:
    """Group, name, place and maker of each."""
    yield "shipped", "none", "-", lambda: plain
    for name in ALL:
        group = "held-out" if name in HELD_OUT else "zoo"
        for place in places(name):
            yield group, name, place, lambda name=name, place=place: masked(plain, name, place)  # type: ignore[misc]
    for name in SHIPPED:

        def build(name: str = name) -> Recognizer | None:
            defense = made(getattr(defenses, name))
            return None if defense is None else plain.with_defenses([defense])

        yield "shipped", name, "shipped", build


def truth(system: Recognizer, crafted: AttackResult, labels: Tensor) -> int:
    """How many stand, heard by the system, of what was crafted on the undefended network."""
    system.seed(0)
    with torch.no_grad():
        return int((system(crafted.waveforms, crafted.lengths).argmax(1) == labels).sum())


def measured(system: Recognizer, data: Utterances, attack: Attack, seed: int) -> dict[str, Any]:
    """What a campaign finds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(system, data, [attack], Path(folder), batch_size=32, seed=seed, draws=2, perceptual=False)
        campaign.run()
        summary = summarize(campaign)
    standing = summary.rows[0].accuracy.successes
    return {"standing": standing, "flags": sorted({flag.id for flag in summary.sentinel.flags})}


def main(attack: str = "", part: str = "") -> None:
    """Print a line for each system and list of attacks."""
    torch.set_num_threads(1)
    plain = load_recognizer(CHECKPOINT).requires_grad_(False)
    parts = samples(plain)
    batches = [collate(list(part)) for part in parts]
    crafted = [PGD(steps=STEPS)(plain, batch.waveforms, batch.speakers, batch.lengths) for batch in batches]
    path = FOLDER / f"masking{attack}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    done = {tuple(line["key"]): line for line in map(json.loads, path.read_text().splitlines())}
    print("| system | in | attack | standing of 20 | truth | flagged | flags |\n|---|---|---|---|---|---|---|")
    for group, name, place, make in systems(plain):
        if (part != group and part not in name) or (system := make()) is None:
            continue
        for listed in [key for key in ATTACKS if attack in key]:
            found = []
            for sample, seed in tqdm([(s, seed) for s in range(len(parts)) for seed in range(SEEDS)], leave=False):
                key = (name, place, listed, sample, seed)
                if key not in done:
                    line = {"key": key, "truth": truth(system, crafted[sample], batches[sample].speakers)}
                    done[key] = line | measured(system, parts[sample], ATTACKS[listed](), seed)
                    with path.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                found.append(done[key])
            flagged = sum(bool(set(line["flags"]) - DECLARED) for line in found)
            flags = Counter(flag for line in found for flag in line["flags"])
            row = [name, place, listed]
            row += [
                f"{min(values)} to {max(values)}"
                for values in ([line[k] for line in found] for k in ("standing", "truth"))
            ]
            row += [f"{flagged} of {len(found)}", ", ".join(f"{flag} {count}" for flag, count in flags.most_common())]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(*ARGUMENTS)
