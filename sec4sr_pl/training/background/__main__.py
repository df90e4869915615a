"""An i-vector-PLDA recognizer from nothing: `python -m sec4sr_pl.training.background --data ... --output ...`."""

from pathlib import Path
from typing import Literal

import torch
from rich.progress import track

from sec4sr_pl import kaldi
from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.backbones import IVector
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.enrollment import find_device
from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.files import check_writable
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.training.background.backend import MODELS, check_sizes, fit_backend, write
from sec4sr_pl.training.background.corpus import Corpus
from sec4sr_pl.training.background.extractor import fit_extractor
from sec4sr_pl.training.background.mixture import fit_gmm

MOST = 10_000
"""Dimensions of an i-vector: those of others have 400 or 600."""


@torch.no_grad()
def train(
    data: SpeakerData,
    output: Path,
    components: int = 64,
    embedding_size: int = 100,
    lda_size: int = 60,
    gmm_iterations: int = 20,
    extractor_iterations: int = 10,
    plda_iterations: int = 10,
    vad: bool = False,
    averaged: Literal["before", "after"] = "after",
    batch_size: int = 16,
    num_workers: int = 0,
    keep: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> Recognizer:
    """Train a GMM, an i-vector extractor, LDA and PLDA, and write them as Kaldi texts and as a recognizer.

    A run that was stopped goes on where it was: give it the same arguments again. One of other utterances, another
    front end or another seed is refused in the same folder.

    Args:
        data: its training utterances are heard, e.g. configs/data/background201_whole.yaml, which cuts utterances into
            segments; its speakers should be in no test.
        output: folder of the models: recognizer.ckpt with nobody enrolled, for python -m sec4sr_pl.enrollment, and
            Kaldi's final_ubm.txt, final_ie.txt, mean.vec, transform.txt and plda.txt.
        components: of the GMM.
        embedding_size: dimensions of an i-vector.
        lda_size: dimensions after LDA.
        gmm_iterations: of expectation maximization.
        extractor_iterations: of expectation maximization.
        plda_iterations: of expectation maximization.
        vad: leave out frames without speech, in training and in the recognizer.
        averaged: how PLDA enrolls: before, as in Kaldi, or after, as in the SEC4SR paper.
        batch_size: utterances whose frames are computed together.
        num_workers: processes that read ahead.
        keep: hold all frames in memory between passes: 100 MB an hour of speech.
        device: cpu, cuda, ...
        seed: of the starts.

    Raises:
        ValueError: anything above that can't be used.
    """
    for name in (*MODELS, "final_ubm.txt", "final_ie.txt", "state/gmm.pt", "state/extractor.pt"):
        check_writable(output / name)
    features = MFCC(vad=EnergyVAD() if vad else None)
    data.prepare_data()
    utterances = data.dataset("train")
    names = [utterance.speaker for utterance in utterances.utterances]
    if not 1 <= embedding_size <= MOST or extractor_iterations < 1:  # the rest is checked in time
        raise ValueError(
            f"Expected from 1 to {MOST:,} dimensions of an i-vector and at least 1 iteration, got {embedding_size} and "
            f"{extractor_iterations}"
        )
    check_sizes(names, embedding_size, lda_size, plda_iterations)
    corpus = Corpus(utterances, features, batch_size, find_device(device), num_workers, keep)
    state = output / "state"
    gmm = fit_gmm(corpus, components, gmm_iterations, seed=seed, path=state / "gmm.pt", identity=corpus.identity)
    kept = state / "extractor.pt"
    extractor = fit_extractor(gmm, corpus, embedding_size, extractor_iterations, seed, kept, corpus.identity)
    backbone = IVector.of(gmm, extractor)
    embeddings = torch.cat([backbone(*batch) for batch in track(corpus, "i-vectors")])
    scorer = fit_backend(embeddings, names, lda_size, plda_iterations, averaged)
    kaldi.write_gmm(output / "final_ubm.txt", gmm)
    kaldi.write_extractor(output / "final_ie.txt", extractor)
    recognizer = Recognizer(features, backbone, scorer).cpu().eval()
    write(recognizer, output)
    return recognizer


def main(args: list[str] | None = None) -> Recognizer:
    """Run the command line; an error of its user ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    return command(
        train, "python -m sec4sr_pl.training.background", "Train an i-vector-PLDA recognizer from nothing.", args
    )


if __name__ == "__main__":
    keep_large_blocks()
    main()
