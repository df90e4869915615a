"""A small PLDA system from nothing, on Spk10: python benchmarks/plda.py FOLDER [folder of the data].

FOLDER holds an i-vector or an x-vector system, trained on the background speakers alone, in minutes on a core, by

    python -m sec4sr_pl.training.background --data configs/data/background201_whole.yaml --output FOLDER

or by

    python train.py fit --config configs/train/xvector_mini.yaml
    python -m sec4sr_pl.training.background.backend --checkpoint runs/xvector_mini/last.ckpt \
        --data configs/data/background201.yaml --lda_size 20 --shrinkage 0.3 --output FOLDER

Enrollment and test share a session, and each background speaker has one utterance: quote the figures as those of
librispeech-mini.
"""

from pathlib import Path
from typing import Literal

import torch
from setting import ARGUMENTS, corpus
from torch import Tensor

from sec4sr_pl.backbones import IVector
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Spk10
from sec4sr_pl.enrollment import embed, enroll
from sec4sr_pl.metrics import equal_error_rate, verification_scores, wilson_interval
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA
from sec4sr_pl.types import REJECT


def read_back(trained: Recognizer, folder: Path) -> Recognizer:
    """The same system with all that there is as Kaldi's text."""
    backbone = trained.backbone
    if isinstance(backbone, IVector):
        backbone = IVector.from_kaldi(folder / "final_ubm.txt", folder / "final_ie.txt")
    scorer = PLDA.from_kaldi(*(folder / name for name in ("mean.vec", "transform.txt", "plda.txt")))
    return Recognizer(trained.features, backbone, scorer).eval()


@torch.no_grad()
def scores_of(system: Recognizer, data: Spk10, averaged: Literal["before", "after"]) -> Tensor:
    """(utterances, speakers) of the test part."""
    assert isinstance(system.scorer, PLDA)
    system.scorer.averaged = averaged
    enroll(system, data, "CSI")
    scores: Tensor = system.scorer(embed(system, data.dataset("test")))
    return scores


def main() -> None:
    if not ARGUMENTS:
        raise SystemExit(
            "Expected the folder of a trained system: python benchmarks/plda.py FOLDER [folder of the data]"
        )
    torch.set_num_threads(1)
    folder, data = Path(ARGUMENTS[0]), Spk10(Path(ARGUMENTS[1]) if ARGUMENTS[1:] else corpus())
    trained = load_recognizer(folder / "recognizer.ckpt")
    texts, labels = read_back(trained, folder), torch.tensor(data.dataset("test").labels)
    enrolled = labels != REJECT
    modes: tuple[Literal["before", "after"], ...] = ("after", "before")
    for averaged in modes:
        scores, again = (scores_of(system, data, averaged) for system in (trained, texts))
        right = int((scores.argmax(1) == labels)[enrolled].sum())
        low, high = wilson_interval(right, int(enrolled.sum()))
        alone, everyone = (
            equal_error_rate(*verification_scores(scores[rows], labels[rows]))
            for rows in (enrolled, torch.ones_like(enrolled))
        )
        print(
            f"averaged {averaged}: CSI-E accuracy {right / int(enrolled.sum()):.1%} [{low:.1%}, {high:.1%}], "
            f"EER {alone:.1%} on the enrolled alone, {everyone:.1%} with imposters; "
            f"scores of Kaldi's texts differ by {(scores - again).norm() / scores.norm():.1e}"
        )


if __name__ == "__main__":
    main()
