"""A small i-vector-PLDA system from nothing, on Spk10: python benchmarks/ivector_plda.py FOLDER [folder of the data].

64 components and 100 dimensions, trained on the background speakers alone, in FOLDER; a second run goes on there.
Minutes on a core. Enrollment and test share a session, and each background speaker has one utterance: quote the figures
as those of librispeech-mini.
"""

import sys
from pathlib import Path

import torch

from sec4sr_pl.backbones import IVector
from sec4sr_pl.data import Spk10
from sec4sr_pl.enrollment import embed
from sec4sr_pl.features import MFCC
from sec4sr_pl.metrics import equal_error_rate, verification_scores, wilson_interval
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA
from sec4sr_pl.training.background.__main__ import train
from sec4sr_pl.types import REJECT


def main() -> None:
    torch.set_num_threads(1)
    folder, data = Path(sys.argv[1]), Spk10(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    trained = train(folder, data.root, speakers=data.root / "background201.txt")
    backbone = IVector.from_kaldi(folder / "final_ubm.txt", folder / "final_ie.txt")
    enrollment, test = data.dataset("enroll"), data.dataset("test")
    names = [utterance.speaker for utterance in enrollment.utterances]
    labels = torch.tensor(test.labels)
    enrolled = labels != REJECT
    systems = {"as trained": trained, "from Kaldi's texts": Recognizer(MFCC(), backbone, trained.scorer).eval()}
    vectors = {name: (embed(system, enrollment), embed(system, test)) for name, system in systems.items()}
    models = [folder / name for name in ("mean.vec", "transform.txt", "plda.txt")]
    for averaged in ("after", "before"):
        scores = []
        for name, scorer in {"as trained": trained.scorer, "from Kaldi's texts": PLDA.from_kaldi(*models)}.items():
            scorer.averaged = averaged
            scorer.enroll(vectors[name][0], names)
            scores.append(scorer(vectors[name][1]))
        right = int((scores[0].argmax(1) == labels)[enrolled].sum())
        low, high = wilson_interval(right, int(enrolled.sum()))
        alone, everyone = (
            equal_error_rate(*verification_scores(scores[0][rows], labels[rows]))
            for rows in (enrolled, torch.ones_like(enrolled))
        )
        error = (scores[0] - scores[1]).norm() / scores[0].norm()
        print(
            f"averaged {averaged}: CSI-E accuracy {right / int(enrolled.sum()):.1%} [{low:.1%}, {high:.1%}], "
            f"EER {alone:.1%} on the enrolled alone, {everyone:.1%} with imposters; "
            f"scores of Kaldi's texts differ by {error:.1e}"
        )


if __name__ == "__main__":
    main()
