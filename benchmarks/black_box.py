"""Success against queries of FAKEBOB and Square on cosine scores of GE2E, whose threshold they have to estimate first.

On the first 1.6 s of utterances, one window of GE2E. Imposters want to be accepted, in verification (SV) as a claimed
speaker and in open-set identification (OSI) as anybody; enrolled speakers want to be rejected, or in OSI taken for
another. The threshold is estimated on the best-scoring utterances of other imposters, by scores and decisions; the
system's own decides what succeeds. Writes docs/figures/black_box.png. Needs SEC4SR_DATA.
"""

import time

import torch
from setting import corpus, figure, sized
from torch import Tensor

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import FAKEBOB, AssumedThreshold, Attack, AttackResult, Objective, Square, estimate_threshold
from sec4sr_pl.backbones import GE2E
from sec4sr_pl.data import Spk10
from sec4sr_pl.enrollment import Task, enroll
from sec4sr_pl.features import Mel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness.plot import plot_queries
from sec4sr_pl.robustness.queries import Curve, success_by_queries
from sec4sr_pl.scoring import Cosine
from sec4sr_pl.types import REJECT, SAMPLE_RATE

TIME = round(1.6 * SAMPLE_RATE)
UTTERANCES, PROBES, QUERIES = sized((8, 4, 2_500), (2, 1, 100))
EPSILON = {"accepted": 0.01, "rejected": 0.002}


def speech(data: Spk10, part: str, imposters: bool) -> tuple[Tensor, Tensor]:
    """(utterances, time) beginnings of the long enough ones, of imposters or of the enrolled, and their labels."""
    utterances = data.dataset(part)
    rows = [row for row, label in enumerate(utterances.labels) if (label == REJECT) is imposters]
    found = [(utterances[row][0][:TIME], utterances.labels[row]) for row in rows]
    long = [(wave, label) for wave, label in found if len(wave) == TIME]
    return torch.stack([wave for wave, _ in long]), torch.tensor([label for _, label in long])


def some(waveforms: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eight, spread evenly."""
    chosen = torch.arange(UTTERANCES) * len(labels) // UTTERANCES
    return waveforms[chosen], labels[chosen]


def estimated(victim: Recognizer, data: Spk10) -> float:
    """The threshold as an attacker sees it, who begins with what scores best."""
    waveforms, _ = speech(data, "calibration", imposters=True)
    chosen = victim(waveforms).amax(1).topk(PROBES).indices
    found = estimate_threshold(
        victim,
        victim.decide,
        waveforms[chosen],
        attack=FAKEBOB(2.0, steps=sized(200, 20), samples=sized(50, 10), queries=10_000),
        generator=[torch.Generator().manual_seed(row) for row in range(PROBES)],
    )
    single = ", ".join(f"{value:.4f}" for value in found.thresholds.tolist())
    true = float(victim.scorer.threshold)
    print(
        f"threshold {true:.4f}, estimated {found.threshold:.4f}: error {found.threshold - true:+.4f}; of {PROBES} "
        f"utterances: {single}; {int(found.queries.sum())} queries",
        flush=True,
    )
    return sized(found.threshold, true)  # of so few queries it may be none


def attacked(attack: Attack, system: Recognizer, task: Task, waveforms: Tensor, labels: Tensor) -> AttackResult:
    """Each utterance by itself; in verification against a recognizer of the claimed speaker alone."""
    results = []
    for row, label in enumerate(labels.tolist()):
        victim, goal = system, label
        if task == "SV":  # imposters claim to be one speaker after the other
            speakers = system.scorer.speakers
            victim = system.only(speakers[row % len(speakers) if label == REJECT else label])
            goal = REJECT if label == REJECT else 0
        objective, draws = Objective(float(victim.scorer.threshold)), torch.Generator().manual_seed(row)
        found = attack(victim, waveforms[row : row + 1], torch.tensor([goal]), objective=objective, generator=draws)
        results.append(found)
    return AttackResult(*map(torch.cat, zip(*results, strict=True)))


def main() -> None:
    """Print a line for each estimate and attack, and draw the curves."""
    keep_large_blocks()
    data, curves = Spk10(corpus()), dict[str, Curve]()
    recognizer = Recognizer(Mel(), GE2E.pretrained(), Cosine()).eval().requires_grad_(False)
    tasks: tuple[Task, ...] = ("SV", "OSI")
    for task in tasks:
        enroll(recognizer, data, task)
        print(f"{task}: ", end="")
        victim = recognizer.only(recognizer.scorer.speakers[0]) if task == "SV" else recognizer
        threshold = estimated(victim, data)
        for way, epsilon in EPSILON.items():
            waveforms, labels = some(*speech(data, "test", imposters=way == "accepted"))
            for name, attack in (
                ("FAKEBOB", FAKEBOB(epsilon, steps=QUERIES // 50, queries=QUERIES)),
                ("Square", Square(epsilon, steps=QUERIES)),
            ):
                start = time.perf_counter()
                result = attacked(AssumedThreshold(attack, threshold), recognizer, task, waveforms, labels)
                label = f"{name}, {task}, {way}, epsilon {epsilon:g}"
                curves[label] = success_by_queries(result.achieved.tolist(), result.queries.tolist())
                spent = sorted(result.queries[result.achieved].tolist())
                print(
                    f"  {label:40} {len(spent)} of {UTTERANCES}, queries of the successes {spent}, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    plot_queries(curves, figure("black_box.png"))


if __name__ == "__main__":
    main()
