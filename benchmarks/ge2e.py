"""The pretrained GE2E in every task on Spk10: python benchmarks/ge2e.py [folder of the data]; a minute on a core."""

from pathlib import Path

import torch
from setting import ARGUMENTS, corpus

from sec4sr_pl.backbones import GE2E
from sec4sr_pl.data import Spk10
from sec4sr_pl.enrollment import Task, embed, enroll
from sec4sr_pl.features import Mel
from sec4sr_pl.metrics import (
    equal_error_rate,
    identification_scores,
    min_dcf,
    open_set_errors,
    verification_scores,
    wilson_interval,
)
from sec4sr_pl.recognizer import Recognizer, best_above
from sec4sr_pl.scoring import Cosine
from sec4sr_pl.types import REJECT


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def main() -> None:
    torch.set_num_threads(1)
    data = Spk10(Path(ARGUMENTS[0]) if ARGUMENTS else corpus())
    recognizer = Recognizer(Mel(), GE2E.pretrained(), Cosine()).eval()
    thresholds = {}
    tasks: tuple[Task, ...] = ("SV", "OSI")
    for task in tasks:
        found = enroll(recognizer, data, task)
        thresholds[task] = torch.tensor(found.threshold)
        print(
            f"{task}: threshold {found.threshold:.4f}, {percent(found.equal_error_rate)} equal error rate on "
            f"{found.targets} + {found.nontargets} calibration scores"
        )
    test = data.dataset("test")
    scores, labels = recognizer.scorer(embed(recognizer, test)), torch.tensor(test.labels)
    enrolled = labels != REJECT
    right = int((scores.argmax(1) == labels)[enrolled].sum())
    low, high = wilson_interval(right, int(enrolled.sum()))
    print(f"\n{enrolled.sum()} utterances of {scores.shape[1]} enrolled speakers, {(~enrolled).sum()} of imposters")
    print(f"CSI-E accuracy {percent(right / int(enrolled.sum()))} [{percent(low)}, {percent(high)}]")
    for name, rows in (("SV, the enrolled alone", enrolled), ("SV, with imposters", torch.ones_like(enrolled))):
        targets, nontargets = verification_scores(scores[rows], labels[rows])
        misses, alarms = (targets <= thresholds["SV"]).float().mean(), (nontargets > thresholds["SV"]).float().mean()
        print(
            f"{name}: {len(targets)} + {len(nontargets)} trials, EER {percent(equal_error_rate(targets, nontargets))}, "
            f"minDCF(0.01) {min_dcf(targets, nontargets):.3f}, at the threshold FAR {percent(alarms)}, "
            f"FRR {percent(misses)}"
        )
    errors = open_set_errors(best_above(scores, thresholds["OSI"]), labels)
    rate = equal_error_rate(*identification_scores(scores, labels))
    print(
        f"OSI: EER {percent(rate)}, at the threshold FAR {percent(errors.false_acceptance)}, "
        f"FRR {percent(errors.false_rejection)}, IER {percent(errors.identification_error)}"
    )


if __name__ == "__main__":
    main()
