"""LDA and PLDA behind the embeddings of any recognizer: `python -m sec4sr_pl.training.background.backend`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.enrollment import embed, find_device
from sec4sr_pl.files import check_output
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, normalize_length
from sec4sr_pl.training.background.discriminant import fit_lda, fit_plda


def fit_backend(
    embeddings: Tensor,
    speakers: Sequence[str],
    lda_size: int = 60,
    plda_iterations: int = 10,
    averaged: Literal["before", "after"] = "after",
    shrinkage: float = 0.0,
) -> PLDA:
    """A scorer with nobody enrolled: embeddings are centered, reduced by LDA, scaled to one length, scored by PLDA.

    Args:
        embeddings: (utterances, embedding_size).
        speakers: the name of each utterance's speaker.
        lda_size: as in `fit_lda`.
        plda_iterations: as in `fit_plda`.
        averaged: as in `PLDA`.
        shrinkage: as in `fit_lda`.

    Raises:
        ValueError: as `fit_lda` and `fit_plda`.
    """
    embeddings = embeddings.cpu().double()
    center = embeddings.mean(0)
    lda = fit_lda(embeddings - center, speakers, lda_size, shrinkage)
    reduced = (embeddings - center) @ lda[:, :-1].T + lda[:, -1]
    scorer = PLDA.of(center, lda, fit_plda(normalize_length(reduced), speakers, plda_iterations), averaged)
    scorer.trained_on = sorted(set(speakers))
    return scorer


def check_sizes(
    speakers: Sequence[str], embedding_size: int, lda_size: int, plda_iterations: int, shrinkage: float = 0.0
) -> None:
    """Refuse what `fit_backend` can't do, before the embeddings are there: tried on random ones.

    Raises:
        ValueError: as `fit_backend`.
    """
    random = torch.randn(len(speakers), embedding_size, generator=torch.Generator().manual_seed(0))
    fit_backend(random, speakers, lda_size, min(plda_iterations, 0), shrinkage=shrinkage)  # a negative count is refused


MODELS = ("recognizer.ckpt", "mean.vec", "transform.txt", "plda.txt")


def write(recognizer: Recognizer, output: Path) -> None:
    """Write a recognizer with PLDA to a folder, and PLDA as Kaldi texts; files of these names are replaced."""
    checkpoint, *texts = (output / name for name in MODELS)
    save_recognizer(recognizer, checkpoint)
    recognizer.scorer.to_kaldi(*texts)  # type: ignore[operator]
    Console().print(
        f"Trained: {output}. Enroll with python -m sec4sr_pl.enrollment --checkpoint {checkpoint}",
        soft_wrap=True,
    )


def train(
    checkpoint: Path,
    data: SpeakerData,
    output: Path,
    lda_size: int = 60,
    plda_iterations: int = 10,
    averaged: Literal["before", "after"] = "after",
    shrinkage: float = 0.0,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> Recognizer:
    """Train centering, LDA and PLDA for the embeddings of a trained recognizer; write it so, and as Kaldi texts.

    Nothing is kept of a run that was stopped. Files of an earlier run in the same folder are replaced, each as a whole.

    Args:
        checkpoint: the recognizer; of train.py, or one that another command wrote. Its scorer is left out.
        data: its training utterances are embedded, e.g. configs/data/background201.yaml, which cuts them into segments.
        output: folder of the models: recognizer.ckpt with nobody enrolled, for python -m sec4sr_pl.enrollment, and
            Kaldi's mean.vec, transform.txt and plda.txt.
        lda_size: dimensions after LDA: fewer than speakers, and at most those of an embedding.
        plda_iterations: of expectation maximization.
        averaged: how PLDA enrolls: before, as in Kaldi, or after, as in the SEC4SR paper.
        shrinkage: of the covariance within speakers in LDA, from 0 to 1: for few utterances, or for speakers on whom
            the recognizer was trained, whose embeddings vary too little.
        batch_size: utterances embedded at a time.
        num_workers: processes that read ahead.
        device: cpu, cuda, ...
        seed: of the draws of randomized defenses.

    Raises:
        ValueError: anything above that can't be used.
    """
    for name in MODELS:
        check_output(output / name, checkpoint)
    data.prepare_data()
    recognizer, utterances = load_recognizer(checkpoint).to(find_device(device)), data.dataset("train")
    speakers = [utterance.speaker for utterance in utterances.utterances]
    check_sizes(speakers, recognizer.backbone.embedding_size, lda_size, plda_iterations, shrinkage)  # type: ignore[arg-type]
    embeddings = embed(recognizer, utterances, batch_size, seed, num_workers, "embeddings")
    scorer = fit_backend(embeddings, speakers, lda_size, plda_iterations, averaged, shrinkage)
    scorer.trained_on = sorted({*scorer.trained_on, *recognizer.scorer.trained_on})
    made = Recognizer(recognizer.features, recognizer.backbone, scorer, list(recognizer.defenses))  # type: ignore[arg-type]
    write(made.cpu().eval(), output)
    return made


def main(args: list[str] | None = None) -> Recognizer:
    """Run the command line; an error of its user ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    return command(
        train,
        "python -m sec4sr_pl.training.background.backend",
        "Train LDA and PLDA behind the embeddings of a recognizer.",
        args,
        resumes=False,
    )


if __name__ == "__main__":
    keep_large_blocks()
    main()
