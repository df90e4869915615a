"""A recognizer knows on whom it was trained, and enrollment warns where they calibrate or are tested."""

import re
import warnings
from pathlib import Path

import pytest
from conftest import MakeRecognizer
from test_background_runs import QUICK
from test_ivector_plda import background
from test_ivector_plda import folder as folder  # fixtures
from test_spk10 import root as root
from test_spk10 import voices as voices

from sec4sr_pl.backbones import XVector
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import Background, SpeakerData, Spk10
from sec4sr_pl.data.manifest import scan
from sec4sr_pl.enrollment import judges, make, warn_of_training
from sec4sr_pl.features import MFCC
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine
from sec4sr_pl.training.background import backend
from sec4sr_pl.training.background.__main__ import train

LISTED = [f"s{index}" for index in range(6)]


@pytest.fixture
def data(folder: Path) -> Path:
    """Eight speakers, of whom six are in the list at the root."""
    (folder / "listed.txt").rename(folder / "data" / "background201.txt")
    return folder / "data"


def test_background_models_are_of_the_listed_speakers_and_remember_them(data: Path, tmp_path: Path) -> None:
    listed = background(tmp_path, listed="data/background201.txt")
    made = train(listed, tmp_path / "listed", **QUICK)  # type: ignore[arg-type]
    assert made.scorer.trained_on == LISTED
    assert load_recognizer(tmp_path / "listed" / "recognizer.ckpt").scorer.trained_on == LISTED
    (tmp_path / "all.txt").write_text(" ".join([*LISTED, "s6", "s7"]))
    everyone = train(background(tmp_path, listed="all.txt"), tmp_path / "all", **QUICK)  # type: ignore[arg-type]
    assert everyone.scorer.trained_on == [*LISTED, "s6", "s7"]


def test_a_back_end_remembers_the_speakers_of_the_network_too(
    data: Path, tmp_path: Path, make_recognizer: MakeRecognizer
) -> None:
    network = make_recognizer(
        ["s5", "s6", "bob"], features=lambda: MFCC(30, 0), backbone=lambda: XVector(30, 16, 24, 12)
    )
    save_recognizer(network, tmp_path / "network.ckpt")
    part = Background(data, "train", segment_seconds=0.4, development_seconds=0)
    made = backend.train(tmp_path / "network.ckpt", part, tmp_path / "models", lda_size=3)
    assert made.scorer.trained_on == ["bob", *LISTED, "s6"]


@pytest.mark.parametrize(
    ("trained_on", "heard"),
    [
        (["x", "y"], None),
        (["x", "103"], "1 of the speakers who calibrate or are tested: 103. "),
        (["x", "bob", "26"], "2 of the speakers who calibrate or are tested: 26, bob. "),
        (["8", "ann", "103", "26", "1034", "bob"], "6 of .*: 103, 1034, 26, 8, ann, .... "),
    ],
)
@pytest.mark.parametrize("scorer", ["PLDA", "Cosine in place of a classifier head"])
def test_enrollment_warns_of_speakers_who_were_trained_on(
    scorer: str, trained_on: list[str], heard: str | None, voices: Path, make_recognizer: MakeRecognizer
) -> None:
    """103 and 8 calibrate, ann, bob, 26 and 1034 are tested."""
    trained, given = make_recognizer(trained_on), Cosine() if scorer != "PLDA" else None
    if scorer == "PLDA":
        trained = Recognizer(trained.features, trained.backbone, PLDA(trained_on=trained_on))
        trained.scorer.psi.fill_(2.0)  # an identity would be untrained
    save_recognizer(trained, voices / "trained.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        made = make(Spk10(voices), voices / "out.ckpt", checkpoint=voices / "trained.ckpt", scorer=given)
    assert sorted(made.scorer.trained_on) == sorted(trained_on)
    assert sorted(load_recognizer(voices / "out.ckpt").scorer.trained_on) == sorted(trained_on)
    said = [str(warning.message) for warning in caught if "trained on" in str(warning.message)]
    assert len(said) == (heard is not None) and all(re.search(heard or "", text) for text in said)


def test_an_enrolled_plda_remembers_behind_normalization_too(voices: Path) -> None:
    normalized = Normalized(PLDA(trained_on=["ann"]))
    assert normalized.trained_on == ["ann"]
    normalized.trained_on = ["ann", "bob"]
    assert normalized.scorer.trained_on == ["ann", "bob"]  # whose argument travels in a checkpoint


def test_data_without_these_parts_is_not_looked_at(voices: Path) -> None:
    assert judges(SpeakerData(voices, "Spk10_enroll", "nowhere")) == set()


def test_the_listed_speakers_of_librispeech_mini_are_in_no_test_of_spk10(corpus: Path) -> None:
    speakers = judges(Spk10(corpus))
    assert speakers.isdisjoint((corpus / "background201.txt").read_text().split())
    everyone = sorted({utterance.speaker for utterance in scan(corpus, "Spk251_train")})
    with pytest.warns(UserWarning, match="trained on 50 of the speakers"):
        warn_of_training(everyone, speakers)
