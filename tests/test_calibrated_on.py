"""A checkpoint knows whose scores set its threshold, and nobody of them is tested."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_normalization import background as background  # fixtures
from test_spk10 import enrolled as enrolled
from test_spk10 import recognizer as recognizer
from test_spk10 import root as root
from test_spk10 import voices as voices
from test_spk10 import write
from test_trials import calibrated as calibrated
from test_trials import halves as halves

from sec4sr_pl.checkpoint import describe, load_recognizer, rebuild, save_recognizer
from sec4sr_pl.data import SpeakerData, Spk10, VoxCeleb
from sec4sr_pl.data.trial_lines import read_list
from sec4sr_pl.enrollment import Task, enroll, enroll_first
from sec4sr_pl.evaluation import evaluate
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine, EnrolledScorer


@pytest.mark.parametrize(
    "scorer",
    [
        Cosine(calibrated_on=["8", "103"]),
        PLDA(trained_on=["x"], calibrated_on=["8", "103"]),
        Normalized(Cosine(calibrated_on=["8", "103"]), cohort_speakers=["zoe"]),
    ],
    ids=lambda scorer: type(scorer).__name__,
)
def test_the_names_travel_and_old_checkpoints_have_none(scorer: EnrolledScorer) -> None:
    description = describe(scorer)
    again = rebuild(description)
    assert again.calibrated_on == ["8", "103"] and [*again.trained_on] == [*scorer.trained_on]
    inner = description["init_args"]
    if isinstance(scorer, Normalized):
        assert again.cohort_speakers == ["zoe"]
        assert inner.pop("cohort_speakers") == ["zoe"]
        inner = inner["scorer"]["init_args"]
    assert inner.pop("calibrated_on") == ["8", "103"]
    old = rebuild(description)
    assert [*old.calibrated_on] == [*getattr(old, "cohort_speakers", ())] == []


@pytest.mark.parametrize(("task", "names"), [("OSI", ["103", "8"]), ("SV", ["103", "8"]), ("CSI", [])])
def test_imposters_who_calibrate_are_remembered_as_long_as_the_threshold(
    task: Task, names: list[str], enrolled: Callable[[Task], Path]
) -> None:
    """8 and 103 calibrate."""
    scorer = load_recognizer(enrolled(task)).scorer
    assert isinstance(scorer, EnrolledScorer) and [*scorer.calibrated_on] == names
    scorer.enroll(torch.randn(2, scorer.embedding_size), ["x", "y"])
    assert scorer.threshold == -torch.inf and not scorer.calibrated_on


def test_an_imposter_who_calibrated_is_no_test_though_another_shifts_the_halves(
    enrolled: Callable[[Task], Path], voices: Path
) -> None:
    checkpoint = enrolled("OSI")
    evaluate(checkpoint, Spk10(voices), [], voices / "out", accelerator="cpu", perceptual=False)
    write(voices, "Spk10_imposter", {"7": 1})  # comes first: 8 and 103 are tested now
    with pytest.raises(ValueError, match=r"^2 of the speakers of the part test also set the threshold, first '103'"):
        evaluate(checkpoint, Spk10(voices), [], voices / "other", accelerator="cpu")


@pytest.mark.parametrize("swapped", [True, False])
def test_speakers_of_the_trials_that_set_the_threshold_are_no_test_by_other_files(
    swapped: bool, recognizer: Recognizer, halves: Path
) -> None:
    """The first utterance of each speaker against the second; then the columns swapped, or second against second."""
    lines = [line for line in read_list(halves / "calibration.txt") if line[1].endswith("1.wav")]
    lines = [line for line in lines if line[2].endswith("2.wav")]
    others = [(label, test, enroll) for label, enroll, test in lines]
    if not swapped:
        seconds = sorted({test for _, _, test in lines})
        others = [(one[:7] == two[:7], one, two) for one in seconds for two in seconds]
    for name, trials in (("calibration", lines), ("other", others)):
        (halves / f"{name}.txt").write_text("".join(f"{int(label)} {one} {two}\n" for label, one, two in trials))
    calibration, other = (VoxCeleb(halves, trials=Path(f"{name}.txt")) for name in ("calibration", "other"))
    assert {u.name for u in calibration.trials().enrolled()}.isdisjoint(u.name for u in other.trials().enrolled())
    enroll(recognizer, calibration, "SV")
    speakers = sorted({file[:7] for _, *pair in lines for file in pair})
    assert recognizer.scorer.calibrated_on == speakers
    save_recognizer(recognizer, halves / "sv.ckpt")
    with pytest.raises(ValueError, match=rf"^4 of .*other.txt also set the threshold, first '{speakers[0]}'"):
        evaluate(halves / "sv.ckpt", other, [], halves / "out", "trials", accelerator="cpu")


def test_a_test_keeps_what_the_threshold_was_set_on(calibrated: Path, halves: Path) -> None:
    recognizer = load_recognizer(calibrated)
    before = recognizer.scorer.calibrated_on
    enroll_first(recognizer, VoxCeleb(halves, trials=Path("test.txt")).trials(), False)
    assert before and recognizer.scorer.calibrated_on == before


def test_speakers_of_the_cohort_are_remembered_and_told_of_where_they_are_tested(
    recognizer: Recognizer, background: SpeakerData, voices: Path
) -> None:
    """The cohort is without those whom this test knows; the imposters of a later one may be in it."""
    normalized = Recognizer(recognizer.features, recognizer.backbone, Normalized(Cosine(), "s", 5)).eval()
    enroll(normalized, Spk10(voices), cohort=background)
    save_recognizer(normalized, voices / "ready.ckpt")
    scorer = load_recognizer(voices / "ready.ckpt").scorer
    assert isinstance(scorer, Normalized) and scorer.calibrated_on == ["103", "8"]
    assert scorer.cohort_speakers == [f"stranger{index}" for index in range(6)]
    (voices / "background" / "stranger3").rename(voices / "Spk10_imposter" / "stranger3")  # the longest name: tested
    shutil.rmtree(voices / "Spk10_imposter" / "1034")
    data, settings = Spk10(voices), {"accelerator": "cpu", "perceptual": False}
    with pytest.warns(UserWarning, match=r"^1 of the speakers of the part test are in the cohort .* first 'stranger3'"):
        evaluate(voices / "ready.ckpt", data, [], voices / "out", **settings)  # type: ignore[arg-type]
