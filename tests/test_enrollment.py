"""Enrollment and calibration: thresholds from scores that no test utterance has a part in."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeRecognizer
from sklearn.metrics import confusion_matrix, roc_curve
from test_spk10 import recognizer as recognizer  # fixtures
from test_spk10 import root as root
from test_spk10 import voices as voices
from torch.testing import assert_close

from sec4sr_pl import kaldi
from sec4sr_pl.backbones import IVector
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import Spk10
from sec4sr_pl.defenses import GaussianNoise, Quantization
from sec4sr_pl.enrollment import calibrate, embed, enroll, held_out_scores, main
from sec4sr_pl.features import MFCC
from sec4sr_pl.metrics import (
    equal_error_rate,
    identification_scores,
    min_dcf,
    min_dcf_threshold,
    open_set_errors,
    verification_scores,
)
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine
from sec4sr_pl.types import REJECT

SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.6, 0.4], [0.5, 0.8], [0.7, 0.2]])
LABELS = torch.tensor([0, 1, 1, REJECT, REJECT])


# metrics


def test_every_utterance_claims_to_be_every_speaker() -> None:
    targets, nontargets = verification_scores(SCORES, LABELS)
    assert_close(targets, torch.tensor([0.9, 0.3, 0.4]))
    assert_close(nontargets, torch.tensor([0.1, 0.2, 0.6, 0.5, 0.8, 0.7, 0.2]))


def test_found_speakers_and_imposters_have_their_best_score() -> None:
    found, imposters = identification_scores(SCORES, LABELS)
    assert_close(found, torch.tensor([0.9, 0.3]))  # the third is taken for another
    assert_close(imposters, torch.tensor([0.8, 0.7]))


def test_open_set_errors_are_those_of_the_confusion_matrix() -> None:
    generator = np.random.default_rng(0)
    labels, decisions = generator.integers(REJECT, 4, (2, 500))
    table = confusion_matrix(labels, decisions, labels=[REJECT, 0, 1, 2, 3])
    enrolled = table[1:].sum()
    expected = table[0, 1:].sum() / table[0].sum(), table[1:, 0].sum() / enrolled
    wrong = (table[1:, 1:].sum() - np.trace(table[1:, 1:])) / enrolled
    errors = open_set_errors(torch.from_numpy(decisions), torch.from_numpy(labels))
    assert [float(rate) for rate in errors] == pytest.approx([*expected, wrong], abs=1e-6)
    assert 0 < float(errors.identification_error) < 1


def test_nobody_who_could_err_is_no_rate() -> None:
    errors = open_set_errors(torch.tensor([0, REJECT]), torch.tensor([0, 0]))
    assert errors.false_acceptance.isnan() and errors.false_rejection == 0.5 and errors.identification_error == 0.0
    with pytest.raises(ValueError, match="a decision for each label"):
        open_set_errors(torch.tensor([0, 1]), torch.tensor([0]))


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.9])
def test_the_cost_at_its_threshold_is_the_least_of_scikit_learns_roc(prior: float) -> None:
    generator = torch.Generator().manual_seed(0)
    targets, nontargets = torch.randn(80, generator=generator) + 1.5, torch.randn(300, generator=generator)
    threshold = min_dcf_threshold(targets, nontargets, prior)
    misses, alarms = (targets <= threshold).float().mean(), (nontargets > threshold).float().mean()
    cost = prior * misses + (1 - prior) * alarms
    truth = np.r_[np.ones(80), np.zeros(300)]
    false_alarms, hits, _ = roc_curve(truth, torch.cat([targets, nontargets]).numpy(), drop_intermediate=False)
    assert float(cost) == pytest.approx((prior * (1 - hits) + (1 - prior) * false_alarms).min(), abs=1e-6)
    assert float(cost) / min(prior, 1 - prior) == pytest.approx(float(min_dcf(targets, nontargets, prior)), abs=1e-6)
    if prior < 0.5:
        assert threshold > min_dcf_threshold(targets, nontargets, 0.9)


# calibration


def test_a_task_sets_its_own_threshold_and_a_prior_moves_it() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 5 - 1
    scores = torch.randn(400, 4, generator=generator)
    scores[labels >= 0, labels[labels >= 0]] += 2.0
    claim, best = calibrate(scores, labels, "SV"), calibrate(scores, labels, "OSI")
    assert (claim.targets, claim.nontargets) == (320, 1_280)
    assert best.nontargets == 80 and 0 < best.targets < 320
    assert best.threshold > claim.threshold + 0.3  # the best of four imposter scores is higher than one
    assert claim.equal_error_rate == pytest.approx(float(equal_error_rate(*verification_scores(scores, labels))))
    assert calibrate(scores, labels, "SV", target_prior=0.01).threshold > claim.threshold
    decisions = torch.where(scores.max(1).values > best.threshold, scores.argmax(1), REJECT)
    errors = open_set_errors(decisions, labels)
    assert float(errors.false_acceptance) == pytest.approx(best.equal_error_rate, abs=0.02)


def test_a_held_out_score_is_that_against_all_utterances_but_one_a_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(7, 5, generator=generator)
    speakers = ["b", "a", "b", "c", "a", "b", "c"]
    scores = held_out_scores(Cosine(), embeddings, speakers)
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    for row, speaker in enumerate(speakers):
        turn = speakers[:row].count(speaker)
        for column, name in enumerate("abc"):
            own = [i for i, other in enumerate(speakers) if other == name]
            mean = units[own[:turn] + own[turn + 1 :]].mean(0)
            assert float(scores[row, column]) == pytest.approx(float(units[row] @ mean / mean.norm()), abs=1e-6)
    with pytest.raises(ValueError, match=r"two or more enrollment utterances a speaker.*got one of 1 \(c\)"):
        held_out_scores(Cosine(), embeddings[:6], speakers[:6])


# enrollment


def test_a_ready_recognizer_comes_out(recognizer: Recognizer, voices: Path) -> None:
    data = Spk10(voices)
    calibration = enroll(recognizer, data)
    assert calibration is not None
    assert recognizer.scorer.speakers == data.speakers == ("ann", "bob")
    assert float(recognizer.scorer.threshold) == pytest.approx(calibration.threshold)
    parts = [data.dataset(part) for part in ("enroll", "calibration")]
    own, others = (torch.cat([recognizer.embed(waveform[None]) for waveform, _, _ in part]) for part in parts)
    assert_close(embed(recognizer, parts[0], batch_size=2), own)
    scores = torch.cat([held_out_scores(Cosine(), own, ["ann"] * 2 + ["bob"] * 3), recognizer.scorer(others)])
    expected = calibrate(scores, torch.tensor([0, 0, 1, 1, 1] + [REJECT] * 4), "OSI")
    assert calibration == pytest.approx(expected, abs=1e-6)
    assert not torch.allclose(recognizer.scorer(own), scores[:5], atol=1e-4)


def test_short_utterances_set_the_threshold_of_models_of_whole_ones(recognizer: Recognizer, voices: Path) -> None:
    data = Spk10(voices)
    calibration = enroll(recognizer, data, max_seconds=0.2)
    parts = [[waveform[None] for waveform, _, _ in data.dataset(part)] for part in ("enroll", "calibration")]
    whole = torch.cat([recognizer.embed(waveform) for waveform in parts[0]])
    own, others = (torch.cat([recognizer.embed(waveform[:, :3_200]) for waveform in part]) for part in parts)
    names = ["ann"] * 2 + ["bob"] * 3
    scores = torch.cat([held_out_scores(Cosine(), whole, names, own), recognizer.scorer(others)])
    assert calibration == pytest.approx(
        calibrate(scores, torch.tensor([0, 0, 1, 1, 1] + [REJECT] * 4), "OSI"), abs=1e-6
    )
    assert calibration.threshold != pytest.approx(enroll(recognizer, data).threshold, abs=1e-4)  # type: ignore[union-attr]


def test_the_test_set_has_no_say(recognizer: Recognizer, voices: Path) -> None:
    first = enroll(recognizer, Spk10(voices))
    other = (voices / "Spk10_enroll" / "ann" / "enroll-ann-0.wav").read_bytes()
    for pattern in ("Spk10_test/*/*", "Spk10_imposter/26/*", "Spk10_imposter/1034/*"):
        for path in voices.glob(pattern):
            path.write_bytes(other)
    assert enroll(recognizer, Spk10(voices)) == first
    (imposter,) = voices.glob("Spk10_imposter/8/*-0.wav")
    imposter.write_bytes(other)
    changed = enroll(recognizer, Spk10(voices))
    assert changed is not None and changed != first


def test_a_closed_set_has_no_threshold_and_forgets_one(recognizer: Recognizer, voices: Path) -> None:
    enroll(recognizer, Spk10(voices))
    assert recognizer.scorer.threshold > -torch.inf
    assert enroll(recognizer, Spk10(voices), task="CSI") is None
    assert recognizer.scorer.threshold == -torch.inf


def test_a_defended_recognizer_enrolls_and_calibrates_through_its_defense(recognizer: Recognizer, voices: Path) -> None:
    plain = enroll(recognizer, Spk10(voices))
    defended = recognizer.with_defenses([Quantization()])
    calibration = enroll(defended, Spk10(voices))
    assert calibration != plain
    waveforms = torch.stack([waveform for waveform, _, _ in Spk10(voices).dataset("enroll")])
    rounded = (waveforms * 64).round() / 64  # step 512 of 32,768
    direct = recognizer.embed(rounded)
    other = Cosine()
    other.enroll(direct, ["ann"] * 2 + ["bob"] * 3)
    assert_close(defended.scorer.models, other.models, rtol=1e-4, atol=1e-4)


def test_a_randomized_defense_gives_the_same_threshold_again(recognizer: Recognizer, voices: Path) -> None:
    defended = recognizer.with_defenses([GaussianNoise()])
    results = [enroll(defended, Spk10(voices), seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_a_classifier_head_has_no_enrollment(make_recognizer: MakeRecognizer, voices: Path) -> None:
    with pytest.raises(ValueError, match="ClosedSet has no enrollment: expected a scorer such as Cosine"):
        enroll(make_recognizer(), Spk10(voices))


# the command


def test_a_folder_and_a_trained_network_make_a_recognizer(
    make_recognizer: MakeRecognizer, voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recognizer(make_recognizer(), tmp_path / "trained.ckpt")
    flags = [f"--checkpoint={tmp_path / 'trained.ckpt'}", "--data=Spk10", f"--data.root={voices}"]
    main([*flags, "--scorer=Cosine", "--defenses=[Quantization]", f"--output={tmp_path / 'ready.ckpt'}"])
    shown = capsys.readouterr().out
    ready = load_recognizer(tmp_path / "ready.ckpt")
    assert ready.scorer.speakers == ("ann", "bob") and ready.scorer.threshold > -1
    assert [type(defense) for defense in ready.defenses] == [Quantization]
    assert "Enrolled 2 speakers" in shown and f"{float(ready.scorer.threshold):.6g}" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "either a recognizer or a checkpoint"),
        (["--checkpoint={place}/none.ckpt"], "There is no checkpoint"),
        (["--checkpoint={place}/trained.ckpt"], "ClosedSet has no enrollment"),
    ],
)
def test_what_its_user_can_mend_is_one_line(
    flags: list[str],
    said: str,
    make_recognizer: MakeRecognizer,
    voices: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_recognizer(make_recognizer(), tmp_path / "trained.ckpt")
    common = ["--data=Spk10", f"--data.root={voices}", f"--output={tmp_path / 'ready.ckpt'}"]
    with pytest.raises(SystemExit) as stop:
        main([*common, *(flag.format(place=tmp_path) for flag in flags)])
    shown = capsys.readouterr().err
    assert stop.value.code == 1 and said in shown and "Traceback" not in shown
    assert not (tmp_path / "ready.ckpt").exists()


CONFIGS = Path(__file__).parents[1] / "configs" / "enroll"


def write_ivector_models(folder: Path) -> None:
    """A random i-vector-PLDA system, as training leaves it."""
    folder.mkdir(parents=True)
    backbone, scorer = IVector(), PLDA()
    scorer.psi.fill_(2.0)
    gmm, extractor = backbone.models()
    kaldi.write_gmm(folder / "final_ubm.txt", gmm)
    kaldi.write_extractor(folder / "final_ie.txt", extractor)
    kaldi.write_vector(folder / "mean.vec", scorer.center)
    kaldi.write_matrix(folder / "transform.txt", scorer.lda)
    kaldi.write_plda(folder / "plda.txt", kaldi.PLDAModel(scorer.mean, scorer.transform, scorer.psi))
    save_recognizer(Recognizer(MFCC(), backbone, scorer), folder / "recognizer.ckpt")


@pytest.mark.parametrize("config", [pytest.param(path, id=path.name) for path in sorted(CONFIGS.glob("*.yaml"))])
def test_every_enrollment_config_makes_a_recognizer(
    config: Path, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "ge2e" in config.stem and find_spec("resemblyzer") is None:
        pytest.skip("needs the weights: pip install --no-deps resemblyzer")
    monkeypatch.chdir(tmp_path)
    cohort = [f"--cohort.root={voices}", "--recognizer.init_args.scorer.init_args.top=4"]
    flags = cohort if "cohort:" in config.read_text() else []
    shutil.copytree(voices / "Spk10_imposter", voices / "Spk251_train")
    for speaker in (voices / "Spk251_train").iterdir():
        speaker.rename(speaker.with_name(f"stranger{speaker.name}"))
    write_ivector_models(tmp_path / "runs" / "ivector")
    main([f"--config={config}", f"--data.root={voices}", f"--output={tmp_path / 'ready.ckpt'}", *flags])
    assert load_recognizer(tmp_path / "ready.ckpt").scorer.speakers == ("ann", "bob")
