"""Trials of a list: which files they mean, samples of them, thresholds from them, and attacks on them."""

import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import MakeRecognizer
from test_spk10 import recognizer as recognizer  # fixtures
from test_spk10 import root as root
from test_spk10 import voices as voices
from torch.nn import functional

from sec4sr_pl import audio, enrollment, evaluation
from sec4sr_pl.attacks import CWinf
from sec4sr_pl.backbones import GE2E
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import SpeakerData, Spk10, Spk251, VoxCeleb, trial_list
from sec4sr_pl.data.manifest import DataError, Utterance
from sec4sr_pl.data.shards import convert
from sec4sr_pl.data.trial_lines import read_list
from sec4sr_pl.data.trials import Trials, all_pairs
from sec4sr_pl.enrollment import enroll
from sec4sr_pl.evaluation import evaluate
from sec4sr_pl.features import Mel
from sec4sr_pl.metrics import equal_error_rate, equal_error_threshold
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import Cosine

# Files


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 nosuch/ann/1.wav bob/2.wav", "1 of the 2 files of .* are not there, first nosuch/ann/1.wav"),
        ("0 ann/1.wav ann/2.wav", "1 of the 2 files of .* are not there, first ann/2.wav"),
        ("1 ann/1.wav bob/2.wav", "the label 1 for 'ann/1.wav bob/2.wav', of speakers ann and bob"),
        ("0 test/ann/1.wav ann/3.wav", "the label 0 for 'test/ann/1.wav ann/3.wav', of speakers ann and ann"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True], ids=["files", "shards"])
def test_files_in_other_folders_and_labels_that_speakers_contradict_are_refused(
    line: str, said: str, sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ann/1", "bob/2", "ann/3"):
        path = tmp_path / "test" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, torch.zeros(800).numpy(), 16_000)
    data = SpeakerData(tmp_path, "test", trials=tmp_path / "list.txt")
    if sharded:
        convert(SpeakerData(tmp_path, "test"), tmp_path / "shards")
        data = SpeakerData(tmp_path / "shards", "test", trials=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("1 test/ann/1.wav 3.flac\n0 ann/1.wav bob/2.wav\n")
    assert data.trials().target.tolist() == [True, False]
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=said):
        data.trials()


# Samples


def crowd(sizes: list[int]) -> list[Utterance]:
    """So many utterances of each speaker."""
    pairs = [(speaker, index) for speaker, size in enumerate(sizes) for index in range(size)]
    return [Utterance(f"{s}-{i}", f"speaker{s}", Path(f"{s}-{i}.wav"), 0, 16_000, 16_000) for s, i in pairs]


def test_a_sample_of_all_pairs_holds_no_more_than_it_may_and_as_many_targets_as_others() -> None:
    utterances = crowd([1, 2, *[300] * 20])
    trials = all_pairs(utterances, limit=4_000)
    pairs = [tuple(pair) for pair in trials.pairs.tolist()]
    assert 3_800 < len(pairs) == len(set(pairs)) <= 4_000 and all(one != other for one, other in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert 0.45 < trials.target.double().mean() < 0.55
    for (one, other), target in zip(pairs, trials.target.tolist(), strict=True):
        assert target == (trials.utterances[one].speaker == trials.utterances[other].speaker)
    heard = {trials.utterances[index].speaker for pair in pairs for index in pair}
    assert len(heard) >= 20
    assert torch.equal(all_pairs(utterances, limit=4_000).pairs, trials.pairs)
    assert not torch.equal(all_pairs(utterances, limit=4_000, seed=1).pairs[:100], trials.pairs[:100])


def test_few_utterances_are_paired_completely() -> None:
    with pytest.raises(DataError, match="Expected at least 2 trials, got 1"):
        all_pairs(crowd([3, 4]), limit=1)
    assert len(all_pairs(crowd([3, 4]), limit=21).pairs) == 21 > len(all_pairs(crowd([3, 4]), limit=20).pairs)


def test_fewer_trials_keep_the_part_of_the_targets_though_the_list_alternates() -> None:
    utterances = crowd([10, 10])
    pairs = torch.tensor([(one, other) for one in range(10) for other in (one, one + 10)])
    trials = Trials(utterances, pairs, torch.arange(20) % 2 == 0)
    few = trials.spread(10)
    assert int(few.target.sum()) == 5 and len(few.pairs) == 10
    names = [(few.utterances[one].name, few.utterances[other].name) for one, other in few.pairs.tolist()]
    assert names == sorted(names, key=lambda pair: int(pair[0][2:])) and {u.name for u in few.utterances} == set(
        sum(names, ())
    )
    assert trials.spread(20) is trials
    with pytest.raises(DataError, match="at least one trial, got a limit of 0"):
        trials.spread(0)


def test_a_trial_claims_by_a_name_of_its_own() -> None:
    utterances = crowd([2, 1])
    trials = Trials(
        utterances, torch.tensor([[0, 2], [0, 1], [2, 1], [0, 1]]), torch.tensor([False, True, False, True])
    )
    found, labels = trials.claims(["0-0", "1-0"])
    assert [utterance.name for utterance in found] == ["0-1@0-0", "0-1@1-0", "0-1@0-0#2", "1-0@0-0"]
    assert labels == [0, ~1, 0, ~0]
    assert [utterance.path for utterance in found] == [utterances[i].path for i in (1, 1, 1, 2)]
    assert [utterance.name for utterance in trials.enrolled()] == ["0-0", "1-0"]


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "shards"])
def test_a_list_that_is_written_is_read_as_the_same_trials(
    sharded: bool, voxceleb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sharded:
        convert(VoxCeleb(voxceleb), tmp_path / "shards", ["vox1_test/wav"])
        capsys.readouterr()
    root, output = tmp_path / "shards" if sharded else voxceleb, tmp_path / "list.txt"
    trial_list.main(["--data=VoxCeleb", f"--data.root={root}", f"--output={output}", "--trials=1000"])
    assert capsys.readouterr().out.startswith("120 trials in ")
    data = VoxCeleb(root, trials=output)
    trials, expected = data.trials(), all_pairs(data.scan("vox1_test/wav"))
    assert trials.utterances == expected.utterances and torch.equal(trials.pairs, expected.pairs)
    assert torch.equal(trials.target, expected.target)


# Thresholds and attacks


@pytest.fixture
def halves(voxceleb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root in the form of VoxCeleb, whose list is cut in two: `calibration.txt` and `test.txt` of other speakers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "vox1_test").symlink_to(voxceleb / "vox1_test")
    lines = read_list(voxceleb / "veri_test2.txt")
    speakers = sorted({file[:7] for _, *pair in lines for file in pair})
    for name, own in (("calibration", speakers[:4]), ("test", speakers[4:])):
        kept = [f"{int(label)} {one} {other}\n" for label, one, other in lines if {one[:7], other[:7]} <= set(own)]
        (tmp_path / f"{name}.txt").write_text("".join(kept))
    return tmp_path


def flags(root: Path, trials: str) -> list[str]:
    return ["--data=VoxCeleb", f"--data.root={root}", f"--data.trials={trials}.txt"]


@pytest.fixture
def calibrated(halves: Path, make_recognizer: MakeRecognizer, capsys: pytest.CaptureFixture[str]) -> Path:
    """A checkpoint of a trained classifier, enrolled for verification on `calibration.txt` by the command."""
    save_recognizer(make_recognizer(), halves / "trained.ckpt")
    arguments = [f"--checkpoint={halves / 'trained.ckpt'}", "--scorer=Cosine", "--task=SV"]
    enrollment.main([*arguments, *flags(halves, "calibration"), f"--output={halves / 'ready.ckpt'}"])
    assert "equal error rate on 4 scores of speakers and 24 of others" in " ".join(capsys.readouterr().out.split())
    return halves / "ready.ckpt"


def by_hand(recognizer: Recognizer, data: SpeakerData) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosine of each trial's two files, and which trials are targets."""
    scores, kinds = [], []
    for target, *pair in read_list(data.trial_list):  # type: ignore[arg-type]
        one, other = (recognizer.embed(audio.read(data.root / "vox1_test/wav" / file)[None]) for file in pair)
        scores.append(functional.cosine_similarity(one, other))
        kinds.append(target)
    return torch.cat(scores), torch.tensor(kinds)


@torch.no_grad()
def test_the_command_attacks_the_trials_of_a_list_at_the_threshold_of_another(calibrated: Path, halves: Path) -> None:
    recognizer = load_recognizer(calibrated)
    scores, target = by_hand(recognizer, VoxCeleb(halves, trials=Path("calibration.txt")))
    expected = equal_error_threshold(scores[target], scores[~target])
    assert float(recognizer.scorer.threshold) == pytest.approx(float(expected), abs=1e-5)

    attack = json.dumps([{"class_path": "CWinf", "init_args": {"epsilon": 0.002}}])
    arguments = [f"--checkpoint={calibrated}", f"--attacks={attack}", "--perceptual=false", "--accelerator=cpu"]
    arguments += [f"--output={halves / 'out'}", "--part=trials"]
    summary = evaluation.main([*arguments, *flags(halves, "test")])
    assert summary is not None
    scores, target = by_hand(recognizer, VoxCeleb(halves, trials=Path("test.txt")))
    assert len(scores) == 28 and summary.benign.trials == 28
    benign, attacked = summary.errors.values()
    assert benign["EER"] == pytest.approx(float(equal_error_rate(scores[target], scores[~target])), abs=1e-6)
    accepted = scores > recognizer.scorer.threshold
    assert benign["FAR"][:2] == (int((accepted & ~target).sum()), 24)  # type: ignore[index]
    assert benign["FRR"][:2] == (int((~accepted & target).sum()), 4)  # type: ignore[index]
    assert attacked["EER"] > benign["EER"]  # type: ignore[operator]
    records = [json.loads(line) for path in sorted((halves / "out/records/CWinf-10").glob("*")) for line in path.open()]
    audio_of = {record["name"]: halves / "out" / record["audio"] for record in records}
    assert len(audio_of) == 28 and all(path.is_file() for path in audio_of.values())
    (halves / "out/summary.md").read_text().index("| errors | FAR % [95 %] |")


def test_the_list_that_set_the_threshold_is_no_test(calibrated: Path, halves: Path) -> None:
    (halves / "mixed.txt").write_text((halves / "test.txt").read_text() + (halves / "calibration.txt").read_text())
    for name, count in (("calibration", 7), ("mixed", 7)):
        with pytest.raises(ValueError, match=rf"^{count} enrolled utterances of .*{name}.txt also set the threshold"):
            evaluate(calibrated, VoxCeleb(halves, trials=Path(f"{name}.txt")), [], halves / "out", "trials")


def test_speakers_of_a_list_who_were_trained_on_are_told(calibrated: Path, halves: Path) -> None:
    calibration, test = (VoxCeleb(halves, trials=Path(f"{name}.txt")) for name in ("calibration", "test"))
    recognizer = load_recognizer(calibrated)
    strangers, heard = sorted(calibration.trials().speakers), sorted(test.trials().speakers)
    recognizer.scorer.trained_on = heard
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        enroll(recognizer, calibration, "SV")
    save_recognizer(recognizer, halves / "heard.ckpt")
    with pytest.warns(UserWarning, match=f"trained on {len(heard)} of the speakers .*: {heard[0]}, "):
        evaluate(halves / "heard.ckpt", test, [], halves / "out", "trials", max_seconds=1.0, accelerator="cpu")
    recognizer.scorer.trained_on = strangers[:1]
    with pytest.warns(UserWarning, match=f"trained on 1 of the speakers .*: {strangers[0]}. "):
        enroll(recognizer, calibration, "SV")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda recognizer: None, "A claim is decided by a threshold"),
        (lambda recognizer: recognizer.scorer.threshold.fill_(0.0), "ClosedSet has no enrollment: .*--scorer Cosine"),
    ],
    ids=["no threshold", "a classifier"],
)
def test_a_recognizer_that_can_not_verify_is_told_what_it_needs(
    prepare: Callable[[Recognizer], Any], said: str, halves: Path, make_recognizer: MakeRecognizer
) -> None:
    recognizer = make_recognizer()
    prepare(recognizer)
    save_recognizer(recognizer, halves / "trained.ckpt")
    with pytest.raises(ValueError, match=said):
        evaluate(halves / "trained.ckpt", VoxCeleb(halves, trials=Path("test.txt")), [], halves / "out", "trials")


def test_a_limit_takes_trials_and_enrolls_no_more_than_they_need(calibrated: Path, halves: Path) -> None:
    data = VoxCeleb(halves, trials=Path("test.txt"))
    summary = evaluate(calibrated, data, [], halves / "out", "trials", limit=7, max_seconds=1.0, accelerator="cpu")
    assert summary is not None and summary.benign.trials == 7
    (found,) = summary.errors.values()
    assert found["FRR"].trials == 1 and found["FAR"].trials == 6  # type: ignore[union-attr]


@pytest.mark.slow
@torch.no_grad()
def test_pretrained_ge2e_verifies_real_speech_and_falls_to_an_attack(corpus: Path, tmp_path: Path) -> None:
    """Five speakers' trials set the threshold, those of the other five are attacked."""
    if find_spec("resemblyzer") is None:
        pytest.skip("needs the weights: pip install --no-deps resemblyzer")
    lines = read_list(corpus / "trials.txt")
    speakers = sorted({one.split("/")[1] for _, one, _ in lines})
    splits = ("Spk10_enroll", "Spk10_test", "Spk10_imposter")
    data = []
    for name, own in (("calibration", speakers[:5]), ("test", speakers[5:])):
        kept = [(label, *pair) for label, *pair in lines if {file.split("/")[1] for file in pair} <= set(own)]
        (tmp_path / name).write_text("".join(f"{int(label)} {one} {other}\n" for label, one, other in kept))
        data.append(SpeakerData(corpus, trials=tmp_path / name, trial_splits=splits))
    recognizer = Recognizer(Mel(), GE2E.pretrained(), Cosine())
    calibration = enroll(recognizer, data[0], "SV")
    assert calibration is not None and calibration.equal_error_rate < 0.03
    save_recognizer(recognizer, tmp_path / "sv.ckpt")
    settings: dict[str, Any] = {"limit": 12, "max_seconds": 2.0, "perceptual": False, "accelerator": "cpu"}
    attacks = [CWinf(epsilon=0.01, step_size=0.002, steps=5)]
    summary = evaluate(tmp_path / "sv.ckpt", data[1], attacks, tmp_path / "out", "trials", **settings)
    assert summary is not None
    benign, attacked = summary.errors.values()
    assert benign["EER"] < 0.1 and attacked["EER"] > 0.8  # type: ignore[operator]
    assert summary.rows[0].success.value > 0.8  # type: ignore[operator]


# One's own folder


def test_who_only_enrolls_needs_no_test_folder(recognizer: Recognizer, root: Path, voices: Path) -> None:
    expected = enroll(recognizer, Spk10(voices), "OSI")
    for old, new in (("enroll", "enroll"), ("imposter", "imposter")):
        (voices / f"Spk10_{old}").rename(voices / new)
    for path in (voices / "Spk10_test").rglob("*.wav"):
        path.unlink()
    folders = ["--data.enroll_split=enroll", "--data.imposter_split=imposter", "--data.test_split=nowhere"]
    save_recognizer(Recognizer(recognizer.features, recognizer.backbone, Cosine()), voices / "plain.ckpt")
    made = enrollment.main(
        [
            *(f"--checkpoint={voices / 'plain.ckpt'}", "--data=Spk10", f"--data.root={voices}", *folders),
            f"--output={voices / 'mine.ckpt'}",
        ]
    )
    assert made.scorer.speakers == ("ann", "bob")
    assert expected is not None and float(made.scorer.threshold) == expected.threshold


def test_who_asks_to_enroll_from_other_data_is_told_of_the_folders(root: Path) -> None:
    with pytest.raises(DataError, match=r"Spk251 has the parts 'train', .* got 'enroll'; .*--data.enroll_split"):
        Spk251(root).utterances("enroll")
