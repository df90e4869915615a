"""The command line of evaluation: attack a checkpoint's recognizer, and print the table and where it lies."""

import os
import warnings
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
from sec4sr_pl.arithmetic import exact_arithmetic
from sec4sr_pl.attacks import Attack
from sec4sr_pl.checkpoint import checksum, load_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.data.manifest import Utterance, check_lengths, label, shortened
from sec4sr_pl.data.trials import claim
from sec4sr_pl.defenses import Defense
from sec4sr_pl.enrollment import enroll_first, warn_of_training
from sec4sr_pl.files import check_writable, sweep
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.processes import one_fate
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, Summary, summarize
from sec4sr_pl.robustness.campaign import check_settings
from sec4sr_pl.robustness.plot import plot, plot_queries
from sec4sr_pl.robustness.queries import query_curves
from sec4sr_pl.robustness.tables import write_summary
from sec4sr_pl.robustness.targets import Goal
from sec4sr_pl.robustness.terminal import show
from sec4sr_pl.scoring import EnrolledScorer, Scorer
from sec4sr_pl.types import REJECT

MOST_THREADS = 1_024
"""Beyond thousands the system ends the process without a word."""
WRITTEN = (
    *("campaign.json", "records/.trial", "audio/.trial", "queries.png"),
    *(f"summary.{suffix}" for suffix in ("json", "csv", "md", "png")),
)
"""Under the output folder: what is found out before the work, not after it."""
LEFT = 60.0
"""Seconds after which a file that is not whole is nobody's: each takes a campaign a moment to write."""


def evaluate(
    checkpoint: Path,
    data: SpeakerData,
    attacks: Sequence[Attack],
    output: Path,
    part: Literal["test", "development", "trials"] = "test",
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
    target_prior: float = 0.01,
    nonfinite_succeeds: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    threads: int = 1,
) -> Summary | None:
    """Attack the recognizer of a checkpoint on a data set.

    The table is the same, byte for byte, for any number of devices and after any kill: run the same command again and
    it does what is left.

    Args:
        checkpoint: a file of train.py or of `sec4sr_pl.checkpoint`, e.g. checkpoints/audionet_mini_adversarial.ckpt.
        data: e.g. Spk251; the files are found at SEC4SR_DATA, else in data/, or at data.root.
        attacks: e.g. '[FGSM, PGD, {class_path: PGD, init_args: {steps: 100}}]'.
        output: folder of the records, the adversarial audio and the summary.
        part: which utterances; trials: verification, each claims to be who spoke another, as the list of the data says.
        defenses: instead of the checkpoint's own; [] for none. Not where speakers are enrolled through them.
        adaptive: attack through the defenses; false crafts on the undefended recognizer (oblivious).
        claims: verification: each utterance claims to be each enrolled speaker; default: identification.
        goal: untargeted, or a target for each utterance: random, hardest or simplest.
        limit: utterances, spread evenly over the manifest, or trials, over their list; default: all.
        max_seconds: use only so much of each utterance; default: all of it.
        batch_size: utterances of a work unit; fewer where one is long.
        seed: of all draws.
        draws: further fresh draws of a randomized recognizer on each utterance.
        perceptual: measure PESQ and STOI.
        target_prior: verification: probability of a true claim, for minDCF.
        nonfinite_succeeds: count scores of NaN or infinity as errors of the recognizer and as successes of the attack;
            default: stop and name the utterances.
        accelerator: cpu, cuda, ... or auto.
        devices: processes on each machine, one a device.
        num_nodes: number of machines.
        threads: of each process on a CPU; a part of the arithmetic, so compare tables of one value only.

    Returns:
        The summary on the first process, None on the others.

    Raises:
        ValueError: anything above that can't be used, before other processes are started.

    Warns:
        UserWarning: no enrolled speaker is among those who are tested.
    """
    if not 1 <= threads <= MOST_THREADS or not 0.0 < target_prior < 1.0:
        raise ValueError(
            f"Expected threads from 1 to {MOST_THREADS:,} and target_prior in (0, 1), got {threads} and {target_prior}"
        )
    check_settings(attacks, batch_size, draws)
    for name in WRITTEN:
        check_writable(Path(output, name))
    fabric = processes(accelerator, devices, num_nodes)
    recognizer = load_recognizer(checkpoint)
    if not recognizer.scorer.speakers:
        raise ValueError(
            f"Nobody is enrolled in {checkpoint}: make a recognizer that is ready with "
            f"python -m sec4sr_pl.enrollment --checkpoint {checkpoint}"
        )
    if defenses is not None:
        if isinstance(recognizer.scorer, EnrolledScorer):
            raise ValueError(
                "Speakers are enrolled and the threshold is set through the defenses: make another checkpoint with "
                f"python -m sec4sr_pl.enrollment --checkpoint {checkpoint} --defenses ..."
            )
        recognizer = recognizer.with_defenses(defenses)
    claims = claims or part == "trials"
    if claims and recognizer.scorer.threshold == -torch.inf:
        raise ValueError("A claim is decided by a threshold, and this recognizer has none: enroll it with --task SV")
    exact_arithmetic(fabric.device, threads)
    recognizer.to(fabric.device)
    data.prepare_data()
    if part == "trials":
        utterances, labels = tried(recognizer, data, limit, batch_size, seed, max_seconds)
    else:
        utterances, labels = heard(recognizer.scorer, data, part, limit, max_seconds)
        if claims:
            utterances, labels = everybody(utterances, labels, recognizer.scorer.speakers)
    campaign = Campaign(
        recognizer,
        Utterances(utterances, labels, data.resample),
        attacks,
        output,
        goal,
        adaptive,
        batch_size,
        seed,
        draws,
        perceptual,
        identity={"checkpoint": checksum(checkpoint), "threads": threads, "device": fabric.device.type},
        claims=claims,
        nonfinite_succeeds=nonfinite_succeeds,
    )
    campaign.open()
    fabric.launch()
    with one_fate(fabric.strategy):
        work(campaign, fabric)
    return report(campaign, target_prior) if fabric.is_global_zero else None


def heard(
    scorer: Scorer, data: SpeakerData, part: str, limit: int | None, max_seconds: float | None
) -> tuple[list[Utterance], list[int]]:
    """The utterances of a part of the data, and which of the recognizer's speakers is heard in each.

    Raises:
        ValueError: speakers whose scores set the threshold.

    Warns:
        UserWarning: no enrolled speaker is among them, or one of the cohort.
    """
    data.connect(scorer.speakers)
    utterances = selected(data.utterances(part), limit, max_seconds)
    closed = bool(scorer.threshold == -torch.inf)
    labels = label(utterances, scorer.speakers, closed and not data.open_set)
    if utterances and max(labels) == REJECT:
        warnings.warn(
            f"None of the {len(scorer.speakers)} enrolled speakers is heard in the part {part}: all are imposters, and "
            "the figures tell of their rejection alone. Evaluate it on data with its speakers",
            stacklevel=2,
        )
    check_strangers(scorer, {utterance.speaker for utterance in utterances}, f"the part {part}")
    return utterances, labels


def tried(
    recognizer: Recognizer,
    data: SpeakerData,
    limit: int | None,
    batch_size: int,
    seed: int,
    max_seconds: float | None,
) -> tuple[list[Utterance], list[int]]:
    """The utterances and labels of the data's trials, whose first utterances are enrolled in the recognizer.

    Raises:
        ValueError: trials, or speakers of them, that set its threshold, or utterances that are too short.

    Warns:
        UserWarning: one of their speakers is among those on whom the recognizer was trained, or in its cohort.
    """
    trials = data.trials().check(data.trial_list)
    before = set(recognizer.scorer.speakers)  # a checkpoint may be older than `calibrated_on`
    if known := [utterance.name for utterance in trials.enrolled() if utterance.name in before]:
        raise ValueError(
            f"{len(known)} enrolled utterances of {data.trial_list} also set the threshold, first '{known[0]}': enroll "
            "the checkpoint with a list of other speakers"
        )
    check_strangers(recognizer.scorer, trials.speakers, str(data.trial_list))
    warn_of_training(recognizer.scorer.trained_on, trials.speakers)
    if limit is not None:
        trials = trials.spread(limit)
    check_lengths(shortened(trials.utterances, max_seconds), recognizer.minimum_samples)
    enroll_first(recognizer, trials, data.resample, batch_size, seed)
    utterances, labels = trials.claims(recognizer.scorer.speakers)
    return shortened(utterances, max_seconds), labels


def check_strangers(scorer: Scorer, speakers: set[str], source: str) -> None:
    """Refuse to test people whose scores set the threshold.

    Raises:
        ValueError: a speaker in `calibrated_on`.

    Warns:
        UserWarning: a speaker of the cohort that normalizes the scores.
    """
    if known := sorted(speakers.intersection(scorer.calibrated_on)):
        raise ValueError(
            f"{len(known)} of the speakers of {source} also set the threshold, first '{known[0]}': enroll the "
            "checkpoint again with python -m sec4sr_pl.enrollment, on data that calibrate on others"
        )
    cohort = scorer.cohort_speakers if isinstance(scorer, Normalized) else ()
    if near := sorted(speakers.intersection(cohort)):
        warnings.warn(
            f"{len(near)} of the speakers of {source} are in the cohort that normalizes the scores, first "
            f"'{near[0]}': the figures may be too good",
            stacklevel=2,
        )


def everybody(
    utterances: Sequence[Utterance], labels: Sequence[int], speakers: Sequence[str]
) -> tuple[list[Utterance], list[int]]:
    """Each utterance as often as there are speakers, with the claim to be each, and labels of these claims."""
    made = [
        claim(utterance, speaker, column, own == column)
        for utterance, own in zip(utterances, labels, strict=True)
        for column, speaker in enumerate(speakers)
    ]
    return [utterance for utterance, _ in made], [label for _, label in made]


def selected(utterances: list[Utterance], limit: int | None, max_seconds: float | None) -> list[Utterance]:
    """As many utterances, spread evenly, and as much of each."""
    if limit is not None and limit < len(utterances):
        utterances = [utterances[i * len(utterances) // limit] for i in range(limit)]
    return shortened(utterances, max_seconds)


def report(campaign: Campaign, target_prior: float) -> Summary:
    """Write tables and pictures of a finished campaign, and show them."""
    summary = summarize(campaign, target_prior)
    output = campaign.output
    for folder, _, _ in os.walk(output):  # a job that was killed and goes on at once is done before they are stale
        sweep(Path(folder), LEFT)
    paths = [*write_summary(summary, output), plot(summary, output / "summary.png")]
    if curves := query_curves(campaign):
        paths.append(plot_queries(curves, output / "queries.png"))
    show(summary, paths, Console())
    return summary


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


def work(campaign: Campaign, fabric: Fabric) -> None:
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
        own = sum(len(batch) * (len(campaign.attacks) + 1) for batch in campaign.batches[rank::world])
        own += len(campaign.sample) if rank == 0 else 0
        task = progress.add_task("attacked utterances", total=own)
        try:
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
        evaluate,
        "evaluate.py",
        "Attack the recognizer of a checkpoint on a data set.",
        args,
        "configs/evaluate",
    )


if __name__ == "__main__":
    main()
