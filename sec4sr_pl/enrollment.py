"""Enroll speakers and set the threshold: `python -m sec4sr_pl.enrollment --config configs/enroll/ge2e.yaml`."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sec4sr_pl import metrics
from sec4sr_pl.arithmetic import exact_arithmetic
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Batches, Utterances
from sec4sr_pl.data.loader import Loader
from sec4sr_pl.data.manifest import DataError, check_lengths, shortened
from sec4sr_pl.data.trials import Trials
from sec4sr_pl.defenses import Defense
from sec4sr_pl.draws import key
from sec4sr_pl.files import check_output
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import EnrolledScorer
from sec4sr_pl.types import REJECT

Task = Literal["CSI", "SV", "OSI"]


class Calibration(NamedTuple):
    """How a threshold was found."""

    threshold: float
    targets: int
    """Scores that should be above it."""
    nontargets: int
    """Scores that should be below."""
    equal_error_rate: float
    """On these scores, as fraction."""


def find_device(name: str) -> torch.device:
    """The device of this name, whose arithmetic is exact from now on.

    Raises:
        ValueError: there is none here.
    """
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"Expected a device that is here, such as cpu, got {name!r}: {reason}") from error
    exact_arithmetic(device)
    return device


@torch.no_grad()
def embed(
    recognizer: Recognizer,
    utterances: Utterances,
    batch_size: int = 16,
    seed: int = 0,
    num_workers: int = 0,
    label: str | None = None,
) -> Tensor:
    """(utterances, embedding) through the recognizer's defenses, whose draws come from (seed, names of a batch).

    Args:
        recognizer: on any device, where the embeddings stay.
        utterances: in the order of the embeddings.
        batch_size: utterances embedded at a time; fewer where one is long.
        seed: of the draws of randomized defenses.
        num_workers: processes that read ahead.
        label: stands beside a progress bar, on the first process; None: no bar.

    Raises:
        ValueError: an utterance that is too short, before any is read.

    Warns:
        UserWarning: an utterance of zeros.
    """
    check_lengths(utterances.utterances, recognizer.minimum_samples)
    like = recognizer.scorer.threshold
    own = torch.Generator()  # a loader draws a number that nobody needs: not from a training's generator
    loader = Loader(Batches(utterances, batch_size), num_workers=num_workers, generator=own)
    embeddings = []
    hidden = label is None or getattr(rank_zero_only, "rank", 0) != 0
    for batch in track(loader, label or "", disable=hidden):
        if silent := [name for name, row in zip(batch.names, batch.waveforms, strict=True) if not row.any()]:
            warnings.warn(f"Nothing is to be heard in {', '.join(silent)}: all samples are 0", stacklevel=2)
        recognizer.seed(key(seed, *batch.names, "enrollment"))
        embeddings.append(recognizer.embed(batch.waveforms.to(like), batch.lengths.to(like.device)))
    return torch.cat(embeddings)


def check_several(speakers: Iterable[str]) -> None:
    """Refuse to set a threshold on models of one utterance, of which none can be held out.

    Args:
        speakers: of each enrollment utterance.

    Raises:
        ValueError: a speaker with one utterance.
    """
    if single := [name for name, count in Counter(speakers).items() if count == 1]:
        raise ValueError(
            "Expected two or more enrollment utterances a speaker, to set the threshold on, got one of "
            f"{len(single)} ({', '.join(single[:5])}{', ...' if len(single) > 5 else ''}): add another, or set the "
            "threshold on a list of other speakers' trials (--task SV --data.trials LIST), or do without one (--task "
            "CSI, a closed set)"
        )


@torch.no_grad()
def held_out_scores(
    scorer: EnrolledScorer, embeddings: Tensor, speakers: Sequence[str], tested: Tensor | None = None
) -> Tensor:
    """Scores of enrollment utterances against models that they have no part in, (utterances, speakers).

    In turn k the k-th utterance of each speaker who has so many is held out. Models of the others are of all theirs.

    Args:
        scorer: stays as it is.
        embeddings: (utterances, embedding), of which the models are made.
        speakers: of each utterance.
        tested: embeddings of the same utterances, e.g. shortened, to be scored; None: the same.

    Raises:
        ValueError: a speaker with one utterance.
    """
    check_several(speakers)
    counts: Counter[str] = Counter()
    turns = []
    for name in speakers:
        turns.append(counts[name])
        counts[name] += 1
    scores, others = embeddings.new_empty(len(speakers), len(counts)), copy.deepcopy(scorer)
    for turn in range(max(turns) + 1):
        out, rest = ([row for row, own in enumerate(turns) if (own == turn) is held] for held in (True, False))
        others.enroll(embeddings[rest], [speakers[row] for row in rest])
        scores[out] = others((embeddings if tested is None else tested)[out])
    return scores


def calibrate(scores: Tensor, labels: Tensor, task: Task, target_prior: float | None = None) -> Calibration:
    """The threshold of a task with one.

    Args:
        scores: (utterances, speakers) of utterances that are no part of a test.
        labels: (utterances,) true speakers, or `REJECT`.
        task: SV is for a claim to be a speaker, OSI for the best of all speakers.
        target_prior: probability of a target, for the threshold of the lowest detection cost; None: at equal errors.

    Raises:
        ValueError: no scores of one kind.
    """
    trials = metrics.verification_scores if task == "SV" else metrics.identification_scores
    targets, nontargets = trials(scores, labels)
    if target_prior is None:
        threshold = metrics.equal_error_threshold(targets, nontargets)
    else:
        threshold = metrics.min_dcf_threshold(targets, nontargets, target_prior)
    rate = metrics.equal_error_rate(targets, nontargets)
    return Calibration(float(threshold), len(targets), len(nontargets), float(rate))


def enroll_first(recognizer: Recognizer, trials: Trials, resample: bool, batch_size: int = 16, seed: int = 0) -> None:
    """Enroll the first utterance of each trial as a speaker of its own, under its name; threshold and its origin stay.

    Raises:
        ValueError: a scorer that can't be enrolled, or utterances that can't be used.
    """
    scorer, utterances = enrollable(recognizer), trials.enrolled()
    threshold, calibrated_on = scorer.threshold.clone(), scorer.calibrated_on
    data = Utterances(utterances, [REJECT] * len(utterances), resample)
    embeddings = embed(recognizer, data, batch_size, seed, label="enrollment")
    scorer.enroll(embeddings, [utterance.name for utterance in utterances])
    scorer.threshold.copy_(threshold)
    scorer.calibrated_on = calibrated_on


@torch.no_grad()
def trial_scores(
    recognizer: Recognizer,
    trials: Trials,
    resample: bool,
    batch_size: int = 16,
    seed: int = 0,
    max_seconds: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The score of each trial, whose first utterances are enrolled, (trials, 1), and its label, 0 or `REJECT`."""
    scorer = enrollable(recognizer)
    tests, rows = torch.unique(trials.pairs[:, 1], return_inverse=True)
    utterances = shortened((trials.utterances[index] for index in tests.tolist()), max_seconds)
    data = Utterances(utterances, [REJECT] * len(tests), resample)
    embeddings = embed(recognizer, data, batch_size, seed, label="calibration")
    place = {name: index for index, name in enumerate(scorer.speakers)}
    columns = torch.tensor([place[trials.utterances[index].name] for index in trials.pairs[:, 0].tolist()])
    parts = zip(*(torch.split(index.to(embeddings.device), 1024) for index in (rows, columns)), strict=True)
    scores = [scorer.claimed(embeddings[row], column).cpu() for row, column in parts]  # all embeddings would be many
    return torch.cat(scores).unsqueeze(1), torch.where(trials.target, 0, REJECT)


def enrollable(recognizer: Recognizer) -> EnrolledScorer:
    """The scorer of a recognizer, which is put into eval mode.

    Raises:
        ValueError: a scorer that can't be enrolled, or models that nobody trained.
    """
    scorer = recognizer.eval().scorer
    if not isinstance(scorer, EnrolledScorer):
        raise ValueError(
            f"{type(scorer).__name__} has no enrollment: expected a scorer such as Cosine, e.g. by --scorer Cosine of "
            "python -m sec4sr_pl.enrollment"
        )
    scorer.check_trained()
    return scorer


def strangers(cohort: SpeakerData, data: SpeakerData, least: int = 2) -> Utterances:
    """The training utterances of a cohort, but for those of speakers who are enrolled, calibrate or are tested.

    Raises:
        ValueError: fewer than the least number of them.
    """
    cohort.prepare_data()
    there = [split for split in data.held_out if (data.root / split).is_dir()]
    known = {utterance.speaker for split in there for utterance in data.scan(split)}
    utterances = [utterance for utterance in cohort.utterances("train") if utterance.speaker not in known]
    if len(utterances) < least:
        raise ValueError(f"Expected a cohort of {least} or more utterances of strangers, got {len(utterances)}")
    return Utterances(utterances, [REJECT] * len(utterances), cohort.resample)


def parts(data: SpeakerData, task: Task) -> list[Utterances]:
    """The utterances that are enrolled and, for a threshold, those of imposters.

    Raises:
        ValueError: parts that can't be used, or a speaker of whom one utterance shall be enrolled and held out.
    """
    data.connect(sorted({utterance.speaker for utterance in data.utterances("enroll")}))
    enrollment = data.dataset("enroll")
    if task == "CSI":
        return [enrollment]
    check_several(utterance.speaker for utterance in enrollment.utterances)
    return [enrollment, data.dataset("calibration")]


def judges(data: SpeakerData) -> set[str]:
    """Speakers who calibrate or are tested; data may have neither part."""
    speakers = set()
    for part in ("calibration", "test"):
        with suppress(DataError):  # what enrollment needs of them, it will miss itself
            speakers |= {utterance.speaker for utterance in data.utterances(part)}
    return speakers


def warn_of_training(trained_on: Sequence[str], speakers: set[str]) -> None:
    """Warn of a recognizer that was trained on speakers who calibrate or are tested."""
    if heard := sorted(speakers.intersection(trained_on)):
        warnings.warn(
            f"This recognizer was trained on {len(heard)} of the speakers who calibrate or are tested: "
            f"{', '.join(heard[:5])}{', ...' if len(heard) > 5 else ''}. Its figures will be too good: train it on "
            "others, for Spk10 on those of background201.txt",
            stacklevel=3,
        )


def enroll(
    recognizer: Recognizer,
    data: SpeakerData,
    task: Task = "OSI",
    target_prior: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    cohort: SpeakerData | None = None,
    max_seconds: float | None = None,
) -> Calibration | None:
    """Enroll the speakers of the data's part `enroll` in a recognizer, and set its threshold, through its defenses.

    The threshold comes from the enrollment utterances, each scored against models without it, and from the imposters
    of the part `calibration`; the test set has no say. A closed set (CSI) has none. Verification of data with a list of
    trials goes by it: the first utterance of each is a speaker, and the threshold comes from the trials' scores.

    Args:
        recognizer: with an `EnrolledScorer`; it is changed.
        data: with parts `enroll` and `calibration`, e.g. `Spk10`, or with trials.
        task: as in `calibrate`, or CSI.
        target_prior: as in `calibrate`.
        batch_size: utterances embedded at a time.
        seed: of the draws of randomized defenses.
        cohort: its training utterances normalize the scores of a scorer that is `Normalized`.
        max_seconds: of each utterance whose scores set the threshold; models are of whole utterances.

    Raises:
        ValueError: a scorer that can't be enrolled, or utterances that can't be used; where the list of utterances
            tells, before any is read.

    Warns:
        UserWarning: a speaker who calibrates or is tested is among those on whom the recognizer was trained.
    """
    if batch_size < 1 or not (target_prior is None or 0.0 < target_prior < 1.0):
        raise ValueError(f"Expected batch_size >= 1 and target_prior in (0, 1), got {batch_size} and {target_prior}")
    scorer = enrollable(recognizer)
    if (cohort is None) == isinstance(scorer, Normalized):
        came = f"{type(scorer).__name__} and {'none' if cohort is None else type(cohort).__name__}"
        raise ValueError(f"Expected a cohort for the scorer Normalized and for no other, got {came}")
    data.prepare_data()
    by_trials = task == "SV" and data.trial_list is not None
    if scorer.trained_on and not by_trials:
        warn_of_training(scorer.trained_on, judges(data))
    trials = data.trials().check(data.trial_list) if by_trials else None
    heard = [] if trials is not None else parts(data, task)
    every = [utterance for part in heard for utterance in part.utterances] if trials is None else trials.utterances
    check_lengths(shortened(every, None if task == "CSI" else max_seconds), recognizer.minimum_samples)
    if isinstance(scorer, Normalized) and cohort is not None:
        others = strangers(cohort, data, scorer.least)
        embeddings = embed(recognizer, others, batch_size, seed, label="cohort")
        scorer.take_cohort(embeddings, [utterance.speaker for utterance in others.utterances])
    if trials is not None:
        warn_of_training(scorer.trained_on, trials.speakers)
        enroll_first(recognizer, trials, data.resample, batch_size, seed)
        made = trial_scores(recognizer, trials, data.resample, batch_size, seed, max_seconds)
        found = calibrate(*made, task, target_prior)
        scorer.threshold.fill_(found.threshold)
        scorer.calibrated_on = sorted(trials.speakers)
        return found
    enrollment = heard[0]
    embeddings = embed(recognizer, enrollment, batch_size, seed, label="enrollment")
    speakers = [utterance.speaker for utterance in enrollment.utterances]
    scorer.enroll(embeddings, speakers)
    if task == "CSI":
        return None
    labels, calibration = [], []
    for part in heard:
        short = Utterances(shortened(part.utterances, max_seconds), part.labels, part.resample)
        calibration.append(embed(recognizer, short, batch_size, seed, label="calibration"))
        labels += part.labels
    scores = [held_out_scores(scorer, embeddings, speakers, calibration[0]), scorer(calibration[1])]
    found = calibrate(torch.cat(scores).cpu(), torch.tensor(labels), task, target_prior)
    scorer.threshold.fill_(found.threshold)
    scorer.calibrated_on = sorted({utterance.speaker for utterance in heard[1].utterances})
    return found


def make(
    data: SpeakerData,
    output: Path,
    recognizer: Recognizer | None = None,
    checkpoint: Path | None = None,
    scorer: EnrolledScorer | None = None,
    defenses: list[Defense] | None = None,
    cohort: SpeakerData | None = None,
    task: Task = "OSI",
    target_prior: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    max_seconds: float | None = None,
    device: str = "cpu",
) -> Recognizer:
    """Make a recognizer that is ready for evaluate.py: speakers enrolled, threshold set, written to a checkpoint.

    Args:
        data: with parts `enroll` and `calibration`, e.g. Spk10; or for SV, with a list of trials that are no test, e.g.
            VoxCeleb with --data.trials; the files are found at SEC4SR_DATA, else in data/.
        output: the checkpoint to write.
        recognizer: front end, backbone and scorer, e.g. of a file in configs/enroll.
        checkpoint: instead of it, a recognizer that was trained or enrolled before.
        scorer: instead of its own, e.g. Cosine in place of a classifier head.
        defenses: instead of its own; speakers are enrolled and the threshold is set through them.
        cohort: data whose training utterances normalize the scores, e.g. Spk251, for a scorer such as
            {class_path: Normalized, init_args: {scorer: Cosine, top: 100}}; speakers who are
            enrolled, calibrate or are tested are left out.
        task: OSI (open-set identification), SV (verification) or CSI (closed set, without a threshold).
        target_prior: set the threshold at the lowest detection cost for this probability of a target; default: where
            both errors are equal.
        batch_size: utterances embedded at a time.
        seed: of the draws of randomized defenses.
        max_seconds: of each utterance whose scores set the threshold, where tests are as short (`evaluate.py
            --max_seconds`); default: all of it. Models are made of whole utterances.
        device: cpu, cuda, ...

    Raises:
        ValueError: anything above that can't be used.
    """
    if (recognizer is None) == (checkpoint is None):
        raise ValueError("Expected either a recognizer or a checkpoint")
    check_output(output, checkpoint, *data.inputs)
    place = find_device(device)
    made = load_recognizer(checkpoint) if recognizer is None else recognizer  # type: ignore[arg-type]
    if scorer is not None:
        scorer.trained_on = sorted({*made.scorer.trained_on, *scorer.trained_on})
    made = Recognizer(
        made.features,
        made.backbone,
        made.scorer if scorer is None else scorer,
        list(made.defenses) if defenses is None else defenses,  # type: ignore[arg-type]
    ).to(place)
    calibration = enroll(made, data, task, target_prior, batch_size, seed, cohort, max_seconds)
    save_recognizer(made, output)
    text = f"Enrolled {len(made.scorer.speakers)} speakers in {output}."
    if calibration is not None:
        text += (
            f" Threshold {calibration.threshold:.6g}: {100 * calibration.equal_error_rate:.1f} % equal error rate on "
            f"{calibration.targets} scores of speakers and {calibration.nontargets} of others."
        )
    Console().print(text, soft_wrap=True)
    return made


def main(args: list[str] | None = None) -> Recognizer:
    """Run the command line; an error of its user ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    return command(
        make,
        "python -m sec4sr_pl.enrollment",
        "Enroll speakers, set the threshold.",
        args,
        "configs/enroll",
        resumes=False,
    )


if __name__ == "__main__":
    main()
