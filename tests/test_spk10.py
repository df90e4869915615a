"""Spk10: who is enrolled, who calibrates, who is tested."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import MakeRecognizer

from sec4sr_pl.attacks import CWinf
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import Spk10
from sec4sr_pl.data.librispeech import MINI, read_cuts
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.defenses import Quantization
from sec4sr_pl.enrollment import Task, enroll
from sec4sr_pl.evaluation import evaluate
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Summary
from sec4sr_pl.scoring import Cosine
from sec4sr_pl.types import REJECT


def write(root: Path, split: str, speakers: dict[str, int]) -> None:
    """Noise, 0.1 s an utterance; speaker -> utterances."""
    for speaker, count in speakers.items():
        (root / split / speaker).mkdir(parents=True)
        for index in range(count):
            noise = 0.1 * torch.randn(1_600, generator=torch.Generator().manual_seed(index))
            soundfile.write(root / split / speaker / f"{split[6:]}-{speaker}-{index}.wav", noise.numpy(), 16_000)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, "Spk10_enroll", {"ann": 2, "bob": 3})
    write(tmp_path, "Spk10_test", {"ann": 1, "bob": 2})
    write(tmp_path, "Spk10_imposter", {"103": 2, "26": 1, "8": 2, "1034": 1})
    return tmp_path


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    """AudioNet's embeddings, nobody enrolled."""
    trained = make_recognizer()
    return Recognizer(trained.features, trained.backbone, Cosine()).eval()


@pytest.fixture
def voices(root: Path) -> Path:
    """The data of Spk10 in utterances of 0.3 s, long enough for AudioNet."""
    for index, path in enumerate(sorted(root.glob("Spk10_*/*/*.wav"))):
        time = torch.arange(4_800) / 16_000
        pitch = 100 + 40 * (sum(path.parent.name.encode()) % 7)
        noise = torch.randn(4_800, generator=torch.Generator().manual_seed(index))
        soundfile.write(path, (0.3 * torch.sin(6.2832 * pitch * time).sign() + 0.05 * noise).numpy() / 2, 16_000)
    return root


def test_parts_and_labels(root: Path) -> None:
    data = Spk10(root)
    assert data.speakers == ("ann", "bob")
    assert data.dataset("enroll").labels == [0, 0, 1, 1, 1]
    test = data.dataset("test")
    assert [u.name for u in test.utterances] == [
        *("test-ann-0", "test-bob-0", "test-bob-1"),
        *("imposter-1034-0", "imposter-26-0"),
    ]
    assert test.labels == [0, 1, 1, REJECT, REJECT]
    calibration = data.dataset("calibration")
    assert [u.speaker for u in calibration.utterances] == ["103", "103", "8", "8"]
    assert calibration.labels == [REJECT] * 4
    with pytest.raises(DataError, match="got 'dev'"):
        data.utterances("dev")


def test_labels_index_the_speakers_of_the_recognizer(root: Path) -> None:
    data = Spk10(root)
    data.connect(["zoe", "bob"])
    assert data.dataset("test").labels == [REJECT, 1, 1, REJECT, REJECT]


def test_the_batches_of_the_test_part_are_whole_utterances_with_labels(root: Path) -> None:
    (batch,) = Spk10(root).test_dataloader()
    assert batch.speakers.tolist() == [0, 1, 1, REJECT, REJECT] and batch.waveforms.shape == (5, 1_600)


def test_one_imposter_can_not_both_calibrate_and_test(root: Path) -> None:
    for speaker in ("103", "26", "8"):
        shutil.rmtree(root / "Spk10_imposter" / speaker)
    with pytest.raises(DataError, match="one to calibrate, one to test"):
        Spk10(root).utterances("calibration")


def test_a_speaker_in_the_wrong_place_is_named(root: Path) -> None:
    shutil.move(root / "Spk10_imposter" / "26", root / "Spk10_test" / "26")
    with pytest.raises(DataError, match="Spk10_test holds 26, not in Spk10_enroll: expected enrolled speakers"):
        Spk10(root).utterances("test")
    shutil.move(root / "Spk10_test" / "26", root / "Spk10_enroll" / "26")
    write(root, "Spk10_imposter", {"26": 1})
    with pytest.raises(DataError, match=r"^Spk10_imposter holds 26, enrolled in Spk10_enroll: expected others$"):
        Spk10(root).utterances("calibration")


def test_the_halves_of_the_imposters_are_those_of_the_manifest_of_librispeech_mini(corpus: Path) -> None:
    roles = {cut.utterance: cut.role for cut in read_cuts(MINI / "manifest.csv") if cut.split == "Spk10_imposter"}
    data = Spk10(corpus)
    calibration = [u.name for u in data.utterances("calibration")]
    test = [u.name for u in data.utterances("test") if u.name in roles]
    assert len(calibration) == len(test) == 25 and len(data.utterances("test")) == 65
    assert {roles[name] for name in calibration} == {"calibration"}
    assert {roles[name] for name in test} == {"test"}


# campaigns


@pytest.fixture
def enrolled(recognizer: Recognizer, voices: Path) -> Callable[[Task], Path]:
    """A task -> the checkpoint of its recognizer, of the speakers ann and bob."""

    def make(task: Task) -> Path:
        enroll(recognizer, Spk10(voices), task)
        save_recognizer(recognizer, voices / f"{task}.ckpt")
        return voices / f"{task}.ckpt"

    return make


def records(output: Path, attack: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(output.rglob(f"{attack}/*.jsonl")) for line in path.open()]


def run(checkpoint: Path, voices: Path, **options: Any) -> Summary:
    attack = CWinf(epsilon=0.05, step_size=0.01, steps=20)
    settings = {"accelerator": "cpu", "perceptual": False, **options}
    summary = evaluate(checkpoint, Spk10(voices), [attack], voices / "out", **settings)
    assert summary is not None
    return summary


def test_in_an_open_set_imposters_are_attacked_to_be_accepted(enrolled: Callable[[Task], Path], voices: Path) -> None:
    summary = run(enrolled("OSI"), voices)
    benign = {record["name"]: record for record in records(voices / "out", "benign")}
    (row,) = summary.rows
    assert [record["label"] for record in benign.values()] == [0, 1, 1, REJECT, REJECT]
    attacked = records(voices / "out", row.attack)
    right = [record for record in attacked if benign[record["name"]]["correct"]]
    imposters = [record for record in right if record["label"] == REJECT]
    assert imposters and len(imposters) < len(right)
    assert row.directions["accepted"][:2] == (sum(record["decision"] != REJECT for record in imposters), len(imposters))
    speakers = [record for record in right if record["label"] != REJECT]
    wrong = [record["decision"] for record in speakers if record["decision"] != record["label"]]
    assert row.directions["rejected"][:2] == (wrong.count(REJECT), len(speakers))
    assert row.directions["confused"][:2] == (len(wrong) - wrong.count(REJECT), len(speakers))
    assert row.success.successes == sum(rate.successes for rate in row.directions.values()) > 0
    assert "accepted % [95 %]" in summary.to_markdown() and "rejected_k" in summary.to_csv()


def test_in_a_closed_set_imposters_are_left_out_and_counted(enrolled: Callable[[Task], Path], voices: Path) -> None:
    summary = run(enrolled("CSI"), voices)
    assert [record["label"] for record in records(voices / "out", "benign")] == [0, 1, 1]
    assert json.loads((voices / "out" / "campaign.json").read_text())["excluded"] == 2
    assert summary.benign.trials == 3 and summary.rows[0].directions == {}
    assert "2 utterances of imposters were left out: a closed set rejects nobody." in summary.notes


def test_in_verification_each_utterance_claims_to_be_each_speaker(
    enrolled: Callable[[Task], Path], voices: Path
) -> None:
    checkpoint = enrolled("SV")
    summary = run(checkpoint, voices, claims=True)
    recognizer = load_recognizer(checkpoint)
    data = Spk10(voices).dataset("test")
    scores = torch.cat([recognizer(waveform[None]) for waveform, _, _ in data])
    found = {record["name"]: record for record in records(voices / "out", "benign")}
    for column, speaker in enumerate(("ann", "bob")):
        own = [found[f"{utterance.name}@{speaker}"] for utterance in data.utterances]
        accepted = scores[:, column] > recognizer.scorer.threshold
        assert [record["decision"] for record in own] == [column if yes else ~column for yes in accepted]
        assert [record["label"] == column for record in own] == [label == column for label in data.labels]
    (row,) = summary.rows
    assert summary.benign.trials == 10
    assert row.directions["accepted"].trials + row.directions["rejected"].trials == summary.benign.successes
    assert row.success.successes > 0 and row.directions["confused"].successes == 0


def test_a_claim_needs_a_threshold_and_other_defenses_another_enrollment(
    enrolled: Callable[[Task], Path], voices: Path
) -> None:
    with pytest.raises(ValueError, match="enroll it with --task SV"):
        run(enrolled("CSI"), voices, claims=True)
    with pytest.raises(ValueError, match=r"enrolled and the threshold is set through the defenses.*--checkpoint"):
        run(enrolled("OSI"), voices, defenses=[Quantization()])
