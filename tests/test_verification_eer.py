"""Verification as a metric of validation: trials, and the same figures from any number of processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from sklearn.metrics import roc_curve
from test_ddp import TIMEOUT, distance, free_port, start, voices
from torch import Tensor
from torch.nn import functional

from sec4sr_pl import audio
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.callbacks import VerificationEER
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.manifest import DataError, scan
from sec4sr_pl.data.trials import Trials, all_pairs, read_trials
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import SpeakerModule

Results = dict[str, dict[str, Any]]
CASES = ["list", "pairs", "double"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five voices, and a list of trials among 13 of their utterances, which 2 processes can't share evenly."""
    root = tmp_path_factory.mktemp("data")
    voices(root)
    (root / "train").rename(root / "test")
    files = sorted(path.relative_to(root) for path in (root / "test").glob("*/*"))[:26:2]
    lines = [f"{int(a.parent == b.parent)} {a} {b}" for i, a in enumerate(files) for b in files[:i]]
    (root / "trials.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def results(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What one process has to tell, and each of two."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    output, port = tmp_path_factory.mktemp("output"), free_port()
    ranks = ((0, 2), (1, 2), (0, 1))
    processes = [start(rank, world, port, root, output, "eer_script.py") for rank, world in ranks]
    try:
        for process in processes:
            text, _ = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, text[-3_000:]
    finally:
        for process in processes:
            process.kill()
    names = {"alone": "0-of-1", "first": "0-of-2", "second": "1-of-2"}
    return {name: torch.load(output / f"{file}.pt", weights_only=True) for name, file in names.items()}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_and_one_tell_the_same_to_the_bit(case: str, results: Results) -> None:
    alone, first, second = (results[name][case] for name in ("alone", "first", "second"))
    assert 0.0 < alone["logged"]["verification/eer"] < 0.5
    for other in (first, second):
        assert other["logged"]["verification/eer"] == alone["logged"]["verification/eer"]
        assert other["logged"]["verification/min_dcf"] == alone["logged"]["verification/min_dcf"]
        assert torch.equal(other["embeddings"], alone["embeddings"])


def scores_and_labels(embeddings: Tensor, trials: Trials) -> tuple[list[float], list[int]]:
    scores = [float(functional.cosine_similarity(embeddings[i], embeddings[j], dim=0)) for i, j in trials.pairs]
    return scores, trials.target.int().tolist()


def reference(scores: list[float], labels: list[int]) -> tuple[float, float]:
    """EER at the crossing of scikit-learn's curve, and the lowest normalized cost on it."""
    false_alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    misses = 1.0 - hits
    after = int((misses <= false_alarms).argmax())
    excess = misses - false_alarms
    weight = excess[after - 1] / (excess[after - 1] - excess[after])
    rate = misses[after - 1] + weight * (misses[after] - misses[after - 1])
    return float(rate), float((0.01 * misses + 0.99 * false_alarms).min() / 0.01)


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_those_of_scikit_learn_on_these_trials(case: str, results: Results, root: Path) -> None:
    made = results["first"][case]
    pairs = case == "pairs"
    trials = all_pairs(scan(root, "test")) if pairs else read_trials(root / "trials.txt", root)
    assert len(made["embeddings"]) == len(trials.utterances) == (45 if pairs else 13)
    rate, cost = reference(*scores_and_labels(made["embeddings"], trials))
    assert made["logged"]["verification/eer"] == pytest.approx(rate, abs=1e-6)
    assert made["logged"]["verification/min_dcf"] == pytest.approx(cost, abs=1e-5)


def test_within_training_both_processes_embed_by_what_the_first_would_save(results: Results, root: Path) -> None:
    """Though each gathered statistics of its own, and the processes share the utterances."""
    first, second = (results[name]["trained"] for name in ("first", "second"))
    assert distance(first["own"], second["own"]) > 0.0
    assert distance(first["state"], second["state"]) == 0.0
    assert first["logged"] == second["logged"] and len(first["logged"]) == 2
    assert torch.equal(first["embeddings"], second["embeddings"])
    rate, _ = reference(*scores_and_labels(first["embeddings"], read_trials(root / "trials.txt", root)))
    assert first["logged"]["verification/eer"] == pytest.approx(rate, abs=1e-6)


# trials


def test_all_pairs_are_each_pair_once(root: Path) -> None:
    utterances = scan(root, "odd")
    trials = all_pairs(reversed(utterances))  # type: ignore[arg-type]
    names = [utterance.name for utterance in trials.utterances]
    assert sorted(names) == sorted(utterance.name for utterance in utterances)
    assert [u.frames for u in trials.utterances] == sorted(u.frames for u in utterances)
    pairs = {frozenset((names[i], names[j])) for i, j in trials.pairs.tolist()}
    assert len(pairs) == len(trials.pairs) == 26 * 25 // 2
    for (i, j), same in zip(trials.pairs.tolist(), trials.target.tolist(), strict=True):
        assert same == (trials.utterances[i].speaker == trials.utterances[j].speaker)


def test_a_list_gives_its_trials_in_order_and_each_utterance_once(root: Path) -> None:
    trials = read_trials(root / "trials.txt", root)
    lines = [line.split() for line in (root / "trials.txt").read_text().splitlines()]
    found = [
        [str(int(same)), *(str(trials.utterances[index].path.relative_to(root)) for index in pair)]
        for pair, same in zip(trials.pairs.tolist(), trials.target.tolist(), strict=True)
    ]
    assert found == lines
    assert len(trials.utterances) == 13


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 test/a.wav\n", "is '1 test/a.wav': expected 'label path path'"),
        ("yes a.wav b.wav\n", "is 'yes a.wav b.wav'"),
        ("", "holds no trial"),
        ("0 {0} {1}\n", "has 0 of the same among 1"),
        ("1 {0} {0}\n1 {1} {1}\n", "has 2 of the same among 2"),
    ],
)
def test_a_list_in_another_form_or_of_one_kind_is_refused(text: str, message: str, root: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(root) for path in (root / "test").glob("*/*"))
    (tmp_path / "list.txt").write_text(text.format(*files))
    with pytest.raises(DataError) as stop:
        read_trials(tmp_path / "list.txt", root)
    assert message in str(stop.value)


@pytest.mark.parametrize("outside", ["../outside.wav", "/outside.wav"])
def test_files_outside_the_root_are_not_read(outside: str, root: Path, tmp_path: Path) -> None:
    inside = sorted(path.relative_to(root) for path in (root / "test").glob("*/*"))[0]
    (tmp_path / "list.txt").write_text(f"1 {inside} {outside}\n0 {inside} {root / inside}\n")
    with pytest.raises(ValueError, match=f"inside {root}, got '{outside}'"):
        read_trials(tmp_path / "list.txt", root)


def test_files_that_are_not_there_are_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1 no.wav no.wav\n")
    with pytest.raises(audio.AudioError, match=r"no\.wav does not exist"):
        read_trials(tmp_path / "list.txt", root)
    with pytest.raises(DataError, match="There is no trial list"):
        read_trials(tmp_path / "none.txt", root)


@pytest.mark.parametrize("arguments", [{"target_prior": 0.0}, {"batch_size": 0}])
def test_an_argument_outside_its_range_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected target_prior in"):
        VerificationEER(**arguments)


def test_one_development_utterance_a_speaker_makes_no_trials_and_is_told_before_training(root: Path) -> None:
    data = SpeakerData(root, "odd", num_workers=0)
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[VerificationEER()])
    with pytest.raises(DataError, match="the set of all pairs has 0 of the same among 10"):
        trainer.validate(module, data)


class Asked(VerificationEER):
    """How often the trials were scored."""

    times = 0

    def embeddings(self, *arguments: Any) -> Tensor:
        self.times += 1
        return super().embeddings(*arguments)


def small(root: Path, callback: VerificationEER, **settings: Any) -> Trainer:
    """A training of two steps with a sanity check, and one validation."""
    data = SpeakerData(root, "test", num_workers=0, batch_size=4, **settings)
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=2, callbacks=[callback], **options)
    trainer.fit(module, data)
    return trainer


def test_the_sanity_check_scores_no_trials(root: Path) -> None:
    callback = Asked()
    trainer = small(root, callback, development_fraction=0.3)
    assert trainer.num_sanity_val_steps and callback.times == 1
    assert 0.0 <= float(trainer.callback_metrics["verification/eer"]) <= 1.0


def test_a_part_goes_before_the_list_of_the_data(root: Path) -> None:
    settings: dict[str, Any] = {"development_fraction": 0.3, "trials": Path("trials.txt")}
    for part, count in ((None, 13 * 12 // 2), ("development", 15 * 14 // 2)):
        callback = Asked(part=part)
        small(root, callback, **settings)
        assert callback._found is not None and len(callback._found.pairs) == count


def test_a_nan_embedding_is_told_and_ends_no_training(root: Path) -> None:
    class Broken(VerificationEER):
        def embeddings(self, *arguments: Any) -> Tensor:
            made = super().embeddings(*arguments)
            made[0] = torch.nan
            return made

    with pytest.warns(UserWarning, match="14 of the scores of 105 trials are NaN"):
        trainer = small(root, Broken(part="development"), development_fraction=0.3)
    assert trainer.callback_metrics["verification/eer"].isnan()
    assert trainer.callback_metrics["verification/min_dcf"].isnan()
