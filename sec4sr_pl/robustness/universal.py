"""Learn a universal perturbation: `python -m sec4sr_pl.robustness.universal --checkpoint ... --data Spk251 ...`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from sec4sr_pl import audio
from sec4sr_pl.attacks import PGD, Objective
from sec4sr_pl.attacks.universal import learn
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Batches
from sec4sr_pl.enrollment import find_device
from sec4sr_pl.files import check_output
from sec4sr_pl.types import SAMPLE_RATE

MAX_SECONDS = 3_600
"""Of a perturbation, which is laid over utterances again and again."""


def train(
    checkpoint: Path,
    data: SpeakerData,
    output: Path,
    attack: PGD | None = None,
    seconds: float = 1.0,
    epochs: int = 10,
    batch_size: int = 16,
    target: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Learn on the training utterances, and write a 16-bit wav file for `UniversalPerturbation`.

    Args:
        checkpoint: a file of train.py or of `sec4sr_pl.checkpoint`.
        data: e.g. Spk251.
        output: the wav file to write.
        attack: ball, step size, draws, loss and source; default: PGD with a step of a tenth of its ball.
        seconds: length of the perturbation.
        epochs: passes over the training utterances.
        batch_size: utterances of a step.
        target: speaker that every utterance shall be taken for; default: anybody but the true one.
        seed: of the order and of the attack's draws.
        device: that does the work, e.g. cuda.

    Raises:
        ValueError: a target that is not enrolled, or anything else that can't be used.
    """
    if epochs < 1 or batch_size < 1 or not 0.0 < seconds <= MAX_SECONDS:
        came = f"{epochs}, {batch_size} and {seconds}"
        raise ValueError(f"Expected epochs and batch_size >= 1 and up to {MAX_SECONDS:,} seconds, got {came}")
    check_output(output, checkpoint, *data.inputs)
    recognizer = load_recognizer(checkpoint).to(find_device(device))
    speakers = recognizer.scorer.speakers
    if target is not None and target not in speakers:
        raise ValueError(f"Expected a target among {len(speakers)} speakers, got {target!r}")
    data.connect(speakers)
    data.prepare_data()
    order = torch.Generator().manual_seed(seed)
    utterances = data.dataset("train")
    shuffled = (torch.randperm(len(utterances), generator=order).tolist() for _ in range(epochs))
    passes = [Batches(utterances, batch_size, positions) for positions in shuffled]

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for epoch in passes:
            for batch in DataLoader(epoch, None):
                labels = batch.speakers if target is None else torch.full_like(batch.speakers, speakers.index(target))
                yield batch.waveforms.to(device), labels.to(device), batch.lengths.to(device)

    attack = PGD(step_size=0.0002) if attack is None else attack
    objective = Objective(float(recognizer.scorer.threshold), targeted=target is not None)
    draws = torch.Generator().manual_seed(seed)
    recognizer.seed(seed)
    shown = track(batches(), "batches", total=sum(map(len, passes)))
    perturbation = learn(attack, recognizer, shown, round(seconds * SAMPLE_RATE), objective, draws).cpu()
    silence = torch.zeros_like(perturbation)
    if not audio.round_inside_ball(perturbation, silence, attack.epsilon).any():
        raise ValueError(
            f"The perturbation is silence in 16 bits: expected steps and a ball of more than 3e-5, got {attack.name}"
        )
    audio.write_adversarial(output, perturbation, silence, attack.epsilon)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(
        train,
        "python -m sec4sr_pl.robustness.universal",
        "Learn one perturbation for all utterances.",
        args,
        resumes=False,
    )


if __name__ == "__main__":
    main()
