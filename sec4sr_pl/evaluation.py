"""The command line of evaluation: attack a checkpoint's recognizer, and print the table and where it lies."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import Attack
from sec4sr_pl.checkpoint import checksum, load_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.data.manifest import Utterance, label
from sec4sr_pl.defenses import Defense
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, Summary, summarize
from sec4sr_pl.robustness.plot import plot, plot_queries
from sec4sr_pl.robustness.queries import query_curves
from sec4sr_pl.robustness.tables import write_summary
from sec4sr_pl.robustness.targets import Goal
from sec4sr_pl.robustness.terminal import show
from sec4sr_pl.scoring import EnrolledScorer
from sec4sr_pl.types import SAMPLE_RATE


def evaluate(
    checkpoint: Path,
    data: SpeakerData,
    attacks: Sequence[Attack],
    output: Path,
    part: Literal["test", "development"] = "test",
    defenses: list[Defense] | None = None,
    adaptive: bool = True,
    claims: bool = False,
    goal: Goal = "untargeted",
    limit: int | None = None,
    max_seconds: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    draws: int = 10,
    perceptual: bool = True,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    threads: int = 1,
    trusted: Sequence[str] = ("sec4sr_pl",),
) -> Summary | None:
    """Attack the recognizer of a checkpoint on a data set.

    The table is the same, byte for byte, for any number of devices and after any kill: run the same command again and
    it does what is left.

    Args:
        checkpoint: a file of train.py or of `sec4sr_pl.checkpoint`, e.g. checkpoints/audionet_mini_adversarial.ckpt.
        data: e.g. Spk251; the files are found at SEC4SR_DATA, else in data/, or at data.root.
        attacks: e.g. '[FGSM, PGD, {class_path: PGD, init_args: {steps: 100}}]'.
        output: folder of the records, the adversarial audio and the summary.
        part: which utterances.
        defenses: instead of the checkpoint's own; [] for none. Not where speakers are enrolled through them.
        adaptive: attack through the defenses; false crafts on the undefended recognizer (oblivious).
        claims: verification: each utterance claims to be each enrolled speaker, a campaign a claim in output/<speaker>,
            counted together; default: identification.
        goal: untargeted, or a target for each utterance: random, hardest or simplest.
        limit: utterances, spread evenly over the manifest; default: all.
        max_seconds: use only so much of each utterance; default: all of it.
        batch_size: utterances of a work unit.
        seed: of all draws.
        draws: further fresh draws of a randomized recognizer on each utterance.
        perceptual: measure PESQ and STOI.
        accelerator: cpu, cuda, ... or auto.
        devices: processes on each machine, one a device.
        num_nodes: number of machines.
        threads: of each process on a CPU; a part of the arithmetic, so compare tables of one value only.
        trusted: packages whose classes the checkpoint may name.

    Returns:
        The summary on the first process, None on the others.

    Raises:
        ValueError: anything above that can't be used, before other processes are started.
    """
    if threads < 1:
        raise ValueError(f"Expected threads >= 1, got {threads}")
    fabric = processes(accelerator, devices, num_nodes)
    recognizer = load_recognizer(checkpoint, trusted)
    if defenses is not None:
        if isinstance(recognizer.scorer, EnrolledScorer):
            raise ValueError(
                "Speakers are enrolled and the threshold is set through the defenses: make another checkpoint with "
                f"python -m sec4sr_pl.enrollment --checkpoint {checkpoint} --defenses ..."
            )
        recognizer = recognizer.with_defenses(defenses)
    speakers = recognizer.scorer.speakers
    data.connect(speakers)
    data.prepare_data()
    utterances = selected(data.utterances(part), limit, max_seconds)

    def campaign(system: Recognizer, output: Path, closed: bool) -> Campaign:
        return Campaign(
            system.to(fabric.device),
            Utterances(utterances, label(utterances, system.scorer.speakers, closed), data.resample),
            attacks,
            output,
            goal,
            adaptive,
            batch_size,
            seed,
            draws,
            perceptual,
            identity={"checkpoint": checksum(checkpoint), "threads": threads, "device": fabric.device.type},
        )

    if claims and recognizer.scorer.threshold == -torch.inf:
        raise ValueError("A claim is decided by a threshold, and this recognizer has none: enroll it with --task SV")
    if claims:
        campaigns = [campaign(recognizer.only(speaker), output / speaker, False) for speaker in speakers]
    else:
        closed = bool(recognizer.scorer.threshold == -torch.inf)
        campaigns = [campaign(recognizer, output, closed and not data.open_set)]
    for each in campaigns:
        each.open()
    fabric.launch()
    exact_arithmetic(fabric.device, threads)
    work(campaigns, fabric)
    if not fabric.is_global_zero:
        return None
    return report(campaigns, output)


def selected(utterances: list[Utterance], limit: int | None, max_seconds: float | None) -> list[Utterance]:
    """As many utterances, spread evenly, and as much of each."""
    if limit is not None and limit < len(utterances):
        utterances = [utterances[i * len(utterances) // limit] for i in range(limit)]
    if max_seconds is not None:
        samples = round(max_seconds * SAMPLE_RATE)
        utterances = [u._replace(frames=min(u.frames, samples)) for u in utterances]
    return utterances


def report(campaigns: Sequence[Campaign], output: Path) -> Summary:
    """Write tables and pictures of finished campaigns, and show them."""
    summary = summarize(*campaigns)
    paths = [*write_summary(summary, output), plot(summary, output / "summary.png")]
    if curves := query_curves(*campaigns):
        paths.append(plot_queries(curves, output / "queries.png"))
    show(summary, paths, Console())
    return summary


def exact_arithmetic(device: torch.device, threads: int) -> None:
    """The same floating-point results at every call, as far as the device can."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix is multiplied
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)


def processes(accelerator: str, devices: int, num_nodes: int) -> Fabric:
    """The processes that share the work, not started yet.

    Raises:
        ValueError: an accelerator or a number of devices that this machine does not have.
    """
    # whoever is done waits for the slowest: long under a costly attack, or after a kill that left the work uneven
    strategy = DDPStrategy(timeout=timedelta(days=7)) if devices * num_nodes > 1 else "auto"
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
    except (MisconfigurationException, RuntimeError, TypeError) as error:
        raise ValueError(f"Expected an accelerator and devices of this machine, got {accelerator}: {error}") from error


def work(campaigns: Sequence[Campaign], fabric: Fabric) -> None:
    """Do this process's part, showing its progress on the first one, and wait for the others."""
    console = Console(stderr=True, quiet=not fabric.is_global_zero)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rank, world = fabric.global_rank, fabric.world_size
    with Progress(*columns, console=console) as progress:
        own = sum(len(batch) * (len(each.attacks) + 1) for each in campaigns for batch in each.batches[rank::world])
        task = progress.add_task("attacked utterances", total=own)
        try:
            for campaign in campaigns:
                campaign.run(rank, world, lambda done: progress.advance(task, done))
        except (ValueError, OSError) as error:
            if world > 1:
                text = f"Process {rank} stopped, the others finish their part: {error}"
                Console(stderr=True).print(text, markup=False, soft_wrap=True)
                fabric.barrier()
            raise
    fabric.barrier()


def main(args: list[str] | None = None) -> Summary | None:
    """Run the command line; an error of its user ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    keep_large_blocks()
    return command(
        evaluate, "evaluate.py", "Attack the recognizer of a checkpoint on a data set.", "configs/evaluate", args
    )
