"""LDA and PLDA behind the embeddings of any recognizer: `python -m sec4sr_pl.training.background.backend`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.enrollment import embed
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, normalize_length
from sec4sr_pl.training.background.discriminant import fit_lda, fit_plda


@torch.no_grad()
def fit_backend(
    recognizer: Recognizer,
    utterances: Utterances,
    output: Path,
    lda_size: int = 60,
    shrinkage: float = 0.0,
    plda_iterations: int = 10,
    averaged: Literal["before", "after"] = "after",
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
) -> Recognizer:
    """A recognizer's embeddings centered, reduced by LDA and scored by PLDA, written with nobody enrolled.

    Args:
        recognizer: in eval mode, on the device to compute on; all but its scorer is kept.
        utterances: of known speakers, some of whom have several.
        output: as in `train`.
        lda_size: as in `fit_lda`.
        shrinkage: as in `fit_lda`.
        plda_iterations: of expectation maximization.
        averaged: as in `PLDA`.
        batch_size: utterances embedded at a time.
        num_workers: processes that read ahead.
        seed: of the draws of randomized defenses.

    Returns:
        The recognizer on the CPU; it shares all but the scorer with the one given.

    Raises:
        ValueError: an utterance that is too short, or too few for the sizes of embeddings and LDA.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = [utterance.speaker for utterance in utterances.utterances]
    embeddings = embed(recognizer, utterances, batch_size, seed, num_workers, "embeddings").cpu().double()
    center = embeddings.mean(0)
    lda = fit_lda(embeddings - center, names, lda_size, shrinkage)
    reduced = (embeddings - center) @ lda[:, :-1].T + lda[:, -1]
    scorer = PLDA.of(center, lda, fit_plda(normalize_length(reduced), names, plda_iterations), averaged)
    defenses = list(recognizer.defenses)
    made = Recognizer(recognizer.features, recognizer.backbone, scorer, defenses).cpu().eval()  # type: ignore[arg-type]
    scorer.to_kaldi(*(output / name for name in ("mean.vec", "transform.txt", "plda.txt")))
    save_recognizer(made, output / "recognizer.ckpt")
    Console().print(
        f"Trained on {len(names)} utterances or segments of {len(set(names))} speakers: {output}. "
        f"Enroll with python -m sec4sr_pl.enrollment --checkpoint {output / 'recognizer.ckpt'}",
        soft_wrap=True,
    )
    return made


def train(
    checkpoint: Path,
    data: SpeakerData,
    output: Path,
    lda_size: int = 60,
    shrinkage: float = 0.0,
    plda_iterations: int = 10,
    averaged: Literal["before", "after"] = "after",
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
    trusted: Sequence[str] = ("sec4sr_pl",),
) -> Recognizer:
    """Train centering, LDA and PLDA for the embeddings of a trained recognizer; write it so, and as Kaldi texts.

    Nothing is kept of a run that was stopped. Files of an earlier run in the same folder are replaced, each as a whole.

    Args:
        checkpoint: the recognizer; of train.py, or one that another command wrote. Its scorer is left out.
        data: its training utterances are embedded, e.g. configs/data/background201.yaml, which cuts them into segments.
        output: folder of the models: recognizer.ckpt with nobody enrolled, for python -m sec4sr_pl.enrollment, and
            Kaldi's mean.vec, transform.txt and plda.txt.
        lda_size: dimensions after LDA: fewer than speakers, and at most those of an embedding.
        shrinkage: of the covariance within speakers in LDA, from 0 to 1: for few utterances, or for speakers on whom
            the recognizer was trained, whose embeddings vary too little.
        plda_iterations: of expectation maximization.
        averaged: how PLDA enrolls: before, as in Kaldi, or after, as in the SEC4SR paper.
        batch_size: utterances embedded at a time.
        num_workers: processes that read ahead.
        device: cpu, cuda, ...
        seed: of the draws of randomized defenses.
        trusted: packages whose classes the checkpoint may name.

    Raises:
        ValueError: anything above that can't be used.
    """
    return fit_backend(
        load_recognizer(checkpoint, trusted).to(device),
        data.dataset("train"),
        output,
        lda_size,
        shrinkage,
        plda_iterations,
        averaged,
        batch_size,
        num_workers,
        seed,
    )


def main(args: list[str] | None = None) -> Recognizer:
    """Run the command line; an error of its user ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    name = "python -m sec4sr_pl.training.background.backend"
    try:
        trained: Recognizer = auto_cli(train, args=args, as_positional=False, prog=name)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{name}: error: {' '.join(str(error).split())}")
    return trained


if __name__ == "__main__":
    keep_large_blocks()
    main()
