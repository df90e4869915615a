"""Success against queries of FAKEBOB and Square on cosine scores of GE2E, whose threshold they have to estimate first.

Imposters of the test part (their first 1.6 s, one window of GE2E) want to be accepted: in verification (SV) as a
claimed speaker, in open-set identification (OSI) as anybody. The threshold is estimated on utterances of other
imposters, by scores and decisions alone; the system's own decides what succeeds. Writes docs/figures/black_box.png.
Needs SEC4SR_DATA.
"""

import time
from pathlib import Path

import torch
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
UTTERANCES, PROBES, QUERIES = 16, 4, 2_500
EPSILON = 0.002


def speech(data: Spk10, part: str, count: int) -> Tensor:
    """(count, time) beginnings of imposters' utterances that are long enough."""
    utterances = data.dataset(part)
    rows = [row for row, label in enumerate(utterances.labels) if label == REJECT]
    long = [wave[:TIME] for wave, *_ in (utterances[row] for row in rows) if len(wave) >= TIME]
    return torch.stack(long[:count])


def systems(recognizer: Recognizer, task: Task) -> list[Recognizer]:
    """The recognizer of each imposter in turn: of one claimed speaker, or of all."""
    speakers = recognizer.scorer.speakers
    return [recognizer.only(speakers[row % len(speakers)]) if task == "SV" else recognizer for row in range(UTTERANCES)]


def attacked(attack: Attack, victims: list[Recognizer], waveforms: Tensor) -> AttackResult:
    """Each imposter against its own victim, judged by the victim's threshold."""
    results = []
    for row, victim in enumerate(victims):
        objective = Objective(float(victim.scorer.threshold))
        draws = torch.Generator().manual_seed(row)
        results.append(
            attack(victim, waveforms[row : row + 1], torch.tensor([REJECT]), objective=objective, generator=draws)
        )
    return AttackResult(*map(torch.cat, zip(*results, strict=True)))


def main() -> None:
    """Print a line for each estimate and attack, and draw the curves."""
    keep_large_blocks()
    data = Spk10()
    recognizer = Recognizer(Mel(), GE2E.pretrained(), Cosine()).eval()
    curves: dict[str, Curve] = {}
    tasks: tuple[Task, ...] = ("SV", "OSI")
    for task in tasks:
        start = time.perf_counter()
        enroll(recognizer, data, task)
        recognizer.requires_grad_(False)
        victims, true = systems(recognizer, task), float(recognizer.scorer.threshold)
        known = estimate_threshold(
            victims[0],
            victims[0].decide,
            speech(data, "calibration", PROBES),
            attack=FAKEBOB(2.0, steps=200, queries=10_000),
            generator=[torch.Generator().manual_seed(row) for row in range(PROBES)],
        )
        print(
            f"{task}: threshold {true:.4f}, estimated {known.threshold:.4f} from {PROBES} utterances "
            f"({', '.join(f'{value:.4f}' for value in known.thresholds.tolist())}) by "
            f"{int(known.queries.sum())} queries, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        waveforms = speech(data, "test", UTTERANCES)
        with torch.no_grad():
            accepted = [int(v.decide(v(x)) != REJECT) for v, x in zip(victims, waveforms.split(1), strict=True)]
        print(f"  {sum(accepted)} of {UTTERANCES} imposters are accepted as they are", flush=True)
        for name, attack in (
            ("FAKEBOB", FAKEBOB(EPSILON, steps=QUERIES // 50, queries=QUERIES)),
            ("Square", Square(EPSILON, steps=QUERIES)),
        ):
            start = time.perf_counter()
            result = attacked(AssumedThreshold(attack, known.threshold), victims, waveforms)
            curves[f"{name}, {task}"] = success_by_queries(result.achieved.tolist(), result.queries.tolist())
            spent = result.queries[result.achieved].float()
            median = f"{spent.median():.0f}" if len(spent) else "-"
            print(
                f"  {name:8} succeeds on {int(result.achieved.sum())} of {UTTERANCES}, median queries of a success "
                f"{median}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    plot_queries(curves, Path("docs/figures/black_box.png"))


if __name__ == "__main__":
    main()
