"""The figures of campaigns once more, from the wav files and the decisions on disk, by code that shares none with ours.

What is believed are the labels, decisions, targets, queries and, of draws, the seeds. All else is worked out anew, by
numpy, scipy, scikit-learn, pesq and pystoi, from definitions that are written another way than ours where there is one.
"""

import csv
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.stats import norm, t
from sklearn.metrics import det_curve
from test_campaign import fit, load, write_voices
from test_claims import claiming
from test_claims import recognizer as recognizer  # fixtures
from test_claims import root as root
from test_claims import system as system
from test_claims import voices as voices
from torch import Tensor

from sec4sr_pl.attacks import CW2, FGSM, PGD, Attack, UniformNoise
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Spk10
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.data.manifest import label, scan
from sec4sr_pl.defenses import FeCo
from sec4sr_pl.enrollment import enroll
from sec4sr_pl.evaluation import everybody
from sec4sr_pl.metrics import (
    clustered_interval,
    detection_errors,
    l0_norm,
    l1_norm,
    l2_norm,
    linf_norm,
    perceptual_evaluation_of_speech_quality,
    signal_to_noise_ratio,
    wilson_interval,
)
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, summarize
from sec4sr_pl.robustness.tables import write_summary
from sec4sr_pl.scoring import Cosine

pesq = pytest.importorskip("pesq", reason="pesq is not installed")
pystoi = pytest.importorskip("pystoi", reason="pystoi is not installed")

NATURAL = Path(__file__).parent.parent / "checkpoints" / "audionet_mini_natural.ckpt"
Samples = NDArray[np.float64]
RATE = 16_000
BENIGN, WORST = "benign", "worst case"
SECONDS = 0.3
"""Of the shortest voice."""
MEASURES = ("l0", "l1", "l2", "linf", "snr", "pesq", "stoi")
WORDS = ("goal", "notes", "sentinel")
"""What a summary holds beside numbers."""

# What lies on disk


def heard(path: Path) -> Samples:
    """An adversarial file, (time,) in [-1, 1]."""
    rate, samples = wavfile.read(path)
    assert rate == RATE and samples.ndim == 1 and samples.dtype in (np.int16, np.float32)
    return samples.astype(np.float64) / (32_768 if samples.dtype == np.int16 else 1)


def spoken(utterance: Any) -> Samples:
    """An original, (time,) in [-1, 1]."""
    stop = utterance.start + utterance.frames
    samples, rate = soundfile.read(utterance.path, start=utterance.start, stop=stop, dtype="float64")
    assert rate == RATE
    return np.asarray(samples)


def records(campaign: Campaign, attack: str) -> list[dict[str, Any]]:
    """The lines of an attack, in the order of the utterances."""
    paths = sorted((campaign.output / "records" / attack).glob("*.jsonl"))
    found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [record["name"] for record in found] == [utterance.name for utterance in campaign.data.utterances]
    return found


# Definitions


def measured(adversarial: Samples, original: Samples, perceptual: bool) -> dict[str, float | None]:
    """Each measure of distortion, None where it is not defined."""
    delta = adversarial - original
    energy, noise = math.fsum(original**2), math.fsum(delta**2)
    found: dict[str, float | None] = {
        "l0": sum(one != other for one, other in zip(adversarial.tolist(), original.tolist(), strict=True)),
        "l1": math.fsum(np.abs(delta)),
        "l2": math.sqrt(noise),
        "linf": max(delta.max(), -delta.min()),
        "snr": 10.0 * math.log10(energy / noise) if energy > 0.0 and noise > 0.0 else None,
    }
    return found | (
        {"pesq": quality(adversarial, original), "stoi": clarity(adversarial, original)} if perceptual else {}
    )


def quality(adversarial: Samples, original: Samples) -> float | None:
    """Wide-band PESQ, where its package knows one."""
    if not original.any() or not adversarial.any():
        return None
    try:
        return float(pesq.pesq(RATE, original, adversarial, "wb"))
    except pesq.PesqError:
        return None


def clarity(adversarial: Samples, original: Samples) -> float | None:
    """STOI; its package warns where it knows none, or finds no frame at all."""
    if not original.any():
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            value = float(pystoi.stoi(original, adversarial, RATE))
        except (IndexError, ValueError):
            return None
    return None if any("Not enough STFT frames" in str(one.message) for one in told) else value


def reach(rate: float, trials: float, quantile: float) -> tuple[float, float]:
    """The rates q with (rate - q)^2 = quantile^2 q (1 - q) / trials, between which Wilson's interval lies."""
    ends = np.roots([trials + quantile**2, -(2 * trials * rate + quantile**2), trials * rate**2])
    return float(ends.real.min()), float(ends.real.max())


def rate(flags: Iterable[bool], groups: Iterable[Any]) -> dict[str, float | int | None]:
    """A rate, with Wilson's interval or that of Korn and Graubard, where a group has more than one trial.

    Their number of independent trials is p (1 - p) over the variance of the rate, at most the trials; the variance sums
    the products of deviations of all pairs in a group. Where all trials agree, a group is one.
    """
    won, keys = np.array(list(flags), float), list(groups)
    trials, (_, member) = len(won), np.unique([str(key) for key in keys], return_inverse=True)
    if not trials:
        return {"successes": 0, "trials": 0, "value": None, "low": None, "high": None}
    value, count = float(won.mean()), int(member.max()) + 1
    if count == trials:
        low, high = reach(value, trials, norm.isf(0.025))
    elif count == 1:
        low, high = 0.0, 1.0
    else:
        together = member[:, None] == member[None]
        deviation = won - value
        variance = count / (count - 1) * float(deviation @ together @ deviation) / trials**2
        spread = value * (1 - value)
        independent = count if spread == 0 else trials if variance * trials <= spread else spread / variance
        low, high = reach(value, independent, t.isf(0.025, count - 1))
    return {"successes": int(won.sum()), "trials": trials, "value": value, "low": low, "high": high}


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def thresholds(true: NDArray[np.bool_], scores: Samples, prior: float) -> dict[str, float | None]:
    """EER, where the straight lines between the points of the DET curve cross the diagonal, and minDCF."""
    if true.all() or not true.any():
        return {"EER": None, "minDCF": None}
    alarms, misses, _ = det_curve(true, scores)
    alarms, misses = np.r_[1.0, alarms, 0.0], np.r_[0.0, misses, 1.0]  # it may leave out the ends
    cost = prior * misses + (1 - prior) * alarms
    return {
        "EER": float(np.interp(0.0, misses - alarms, misses)),
        "minDCF": float(cost.min() / min(prior, 1 - prior)),
    }


def directions(own: list[dict[str, Any]], groups: dict[str, str]) -> list[dict[str, Any]]:
    """Who is wrongly accepted, rejected and confused."""
    kinds: list[tuple[bool, Any]] = [
        (False, lambda decision, _: decision >= 0),
        (True, lambda decision, _: decision < 0),
        (True, lambda decision, speaker: decision >= 0 and decision != speaker),
    ]
    found = []
    for enrolled, wrong in kinds:
        chosen = [r for r in own if (r["label"] >= 0) is enrolled]
        found.append(rate((wrong(r["decision"], r["label"]) for r in chosen), (groups[r["name"]] for r in chosen)))
    return found


def recompute(
    campaign: Campaign,
    scores: dict[str, Samples] | None = None,
    drawn: dict[str, Samples] | None = None,
    prior: float = 0.01,
) -> dict[str, Any]:
    """All numbers of a summary.

    Args:
        campaign: for the folder, the list of utterances, and what was attacked how.
        scores: verification: of the claimed speaker, in the order of the utterances, benign and for each attack.
        drawn: of a randomized recognizer, the rate of right decisions, likewise.
        prior: of a true claim.
    """
    listed = campaign.data.utterances
    groups = {u.name: f"{u.path}@{u.start}" for u in listed}
    own = {name: records(campaign, name) for name in (BENIGN, *(attack.name for attack in campaign.attacks))}
    right = {name: {r["name"]: r["decision"] == r["label"] for r in every} for name, every in own.items()}

    def accuracy(name: str, among: Iterable[str]) -> dict[str, Any]:
        chosen = list(among)
        return rate((right[name][one] for one in chosen), (groups[one] for one in chosen))

    rows = [row(campaign, attack, own[attack.name], right[BENIGN], groups) for attack in campaign.attacks]
    for found in rows:
        found["accuracy"] = accuracy(found["attack"], groups)
        found["accuracy_over_draws"] = None if drawn is None else mean(drawn[found["attack"]])
    judges = [a.name for a in campaign.attacks if a.epsilon < math.inf and not a.name.startswith("UniformNoise")]
    benign = accuracy(BENIGN, groups)
    standing = [right[BENIGN][name] and all(right[judge][name] for judge in judges) for name in groups]
    attacked = mean([found["accuracy"]["value"] for found in rows if found["attack"] in judges])
    harmonic = None
    if attacked is not None:
        harmonic = 2 / (1 / benign["value"] + 1 / attacked) if benign["value"] > 0 < attacked else 0.0
    errors = {}
    for name, every in own.items() if campaign.threshold > -math.inf else ():
        accepted, rejected, confused = directions(every, groups)
        errors[name] = {"FAR": accepted, "FRR": rejected}
        if scores is None:
            errors[name] |= {"IER": confused}
        else:
            true = np.array([r["label"] >= 0 for r in every])
            errors[name] |= thresholds(true, scores[name], prior)
    seconds = np.array([u.frames / RATE for u in listed])
    names = np.array([u.name for u in listed])
    order = np.lexsort((names, seconds))
    quarters = []
    for part in range(4 if len(names) >= 8 else 0):
        chosen = order[len(names) * part // 4 : len(names) * (part + 1) // 4]
        by_attack = {name: accuracy(name, names[chosen].tolist()) for name in own}
        quarters.append(
            {"shortest": seconds[chosen].min(), "longest": seconds[chosen].max(), "accuracy": by_attack},
        )
    return {
        "benign": benign,
        "benign_over_draws": None if drawn is None else mean(drawn[BENIGN]),
        "rows": rows,
        "worst": rate(standing, groups.values()),
        "r1": harmonic,
        "errors": errors,
        "seconds": [seconds.min(), float(np.median(seconds)), seconds.max()],
        "quarters": quarters,
    }


def row(
    campaign: Campaign, attack: Attack, own: list[dict[str, Any]], right: dict[str, bool], groups: dict[str, str]
) -> dict[str, Any]:
    """What one attack did, but for the accuracy; its records' own measures are compared on the way."""
    won = {
        r["name"]: r["decision"] == r["target"] if campaign.goal != "untargeted" else r["decision"] != r["label"]
        for r in own
    }
    tried = [r["name"] for r in own if right[r["name"]] and r["target"] != r["label"]]
    counted = set(groups) if attack.epsilon < math.inf else {name for name in tried if won[name]}
    values: dict[str, list[float | None]] = {measure: [] for measure in MEASURES}
    changed = 0
    for record, utterance in zip(own, campaign.data.utterances, strict=True):
        found = measured(heard(campaign.output / record["audio"]), spoken(utterance), campaign.perceptual)
        compare({m: record[m] for m in found}, found, f"{attack.name} {utterance.name}")
        if utterance.name in counted and found["l0"]:
            changed += 1
            for measure in found:
                values[measure].append(found[measure])
    before = [r for r in own if right[r["name"]]]
    kinds = dict(zip(("accepted", "rejected", "confused"), directions(before, groups), strict=True))
    asked = {m: campaign.perceptual or m not in ("pesq", "stoi") for m in MEASURES}
    return {
        "attack": attack.name,
        "success": rate((won[name] for name in tried), (groups[name] for name in tried)),
        "changed": changed,
        "measures": {
            m: {
                "mean": mean([value for value in values[m] if value is not None]),
                "undefined": values[m].count(None) if asked[m] else None,
            }
            for m in MEASURES
        },
        "queries": mean([r["queries"] for r in own]),
        "directions": kinds if campaign.threshold > -math.inf else {},
    }


# Ours beside it


def compare(ours: Any, expected: Any, where: str) -> None:
    """The same structure and counts, and numbers to a millionth of their size."""
    if isinstance(expected, dict):
        assert isinstance(ours, dict) and set(ours) == set(expected), where
        for key in expected:
            compare(ours[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list):
        assert isinstance(ours, list) and len(ours) == len(expected), where
        for index, (one, other) in enumerate(zip(ours, expected, strict=True)):
            compare(one, other, f"{where} {index}")
    elif isinstance(expected, float) and isinstance(ours, int | float):
        assert math.isclose(ours, expected, rel_tol=1e-6, abs_tol=1e-9), f"{where}: {ours!r}, expected {expected!r}"
    else:
        assert ours == expected, f"{where}: {ours!r}, expected {expected!r}"


def cells(found: dict[str, Any], title: str) -> dict[str, Any]:
    """A rate in a spreadsheet."""
    ends = {"": "value", "_k": "successes", "_n": "trials", "_low": "low", "_high": "high"}
    return {title + end: found[name] for end, name in ends.items()}


def spreadsheet(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells that are not empty, by the first one of their line."""
    lines = {BENIGN: cells(found["benign"], "accuracy") | {"accuracy_over_draws": found["benign_over_draws"]}}
    for own in found["rows"]:
        line = cells(own["accuracy"], "accuracy") | cells(own["success"], "success")
        line |= {name: own[name] for name in ("accuracy_over_draws", "queries", "changed")}
        for measure, value in own["measures"].items():
            line |= {measure: value["mean"], f"{measure}_undefined": value["undefined"]}
        for name, value in own["directions"].items():
            line |= cells(value, name)
        lines[own["attack"]] = line
    for attack, errors in found["errors"].items():
        for name, value in errors.items():
            lines[attack] |= cells(value, name) if isinstance(value, dict) else {name: value}
    lines[WORST] = cells(found["worst"], "accuracy")
    return {attack: {title: cell for title, cell in line.items() if cell is not None} for attack, line in lines.items()}


def confirmed(
    campaign: Campaign,
    scores: dict[str, Samples] | None = None,
    drawn: dict[str, Samples] | None = None,
    prior: float = 0.01,
) -> dict[str, Any]:
    """All numbers of a campaign that has run, which are those of its summary, too."""
    write_summary(summarize(campaign, prior), campaign.output)
    found = recompute(campaign, scores, drawn, prior)
    ours = json.loads((campaign.output / "summary.json").read_text())
    compare({name: value for name, value in ours.items() if name not in WORDS}, found, "summary.json")
    with (campaign.output / "summary.csv").open(newline="") as file:
        lines = {
            line.pop("attack"): {title: float(cell) for title, cell in line.items() if cell}
            for line in csv.DictReader(file)
        }
    compare(lines, spreadsheet(found), "summary.csv")
    return found


class Sparse(FGSM):
    """Changes every third sample of the longer utterances of a batch."""

    def perturb(self, score: Any, waveforms: Tensor, labels: Tensor, lengths: Tensor, *rest: Any) -> Tensor:
        chosen = (lengths > lengths.median()).unsqueeze(1) & (torch.arange(waveforms.shape[1]) % 3 == 0)
        return torch.where(chosen, super().perturb(score, waveforms, labels, lengths, *rest), waveforms)


class Boundless(Attack):
    """FGSM that names no ball: what it changes without success does not count."""

    def __init__(self) -> None:
        self.epsilon = math.inf

    def perturb(self, *given: Any) -> Tensor:
        return FGSM(0.001).perturb(*given)


class Nothing(FGSM):
    """Changes nothing."""

    def perturb(self, score: Any, waveforms: Tensor, *rest: Any) -> Tensor:
        return waveforms


def padded(rows: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """A batch, (batch, time) float32, and its lengths."""
    batch = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for line, samples in zip(batch, rows, strict=True):
        line[: len(samples)] = samples
    return torch.from_numpy(batch), torch.tensor([len(samples) for samples in rows])


def files(campaign: Campaign, name: str) -> list[Samples]:
    """What the recognizer heard under an attack, or benign."""
    if name == BENIGN:
        return [spoken(utterance) for utterance in campaign.data.utterances]
    return [heard(campaign.output / record["audio"]) for record in records(campaign, name)]


@torch.no_grad()
def score(campaign: Campaign, name: str) -> Samples:
    """(utterances, speakers), each by itself."""
    rows = [campaign.recognizer(*padded([samples]))[0].double().numpy() for samples in files(campaign, name)]
    return np.stack(rows)


# Campaigns


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recognizer, Utterances]:
    """A recognizer of four voices, right about all utterances but one."""
    data = load(write_voices(tmp_path_factory.mktemp("voices"), utterances=2, seconds=SECONDS))
    return fit(data), data


def test_the_numbers_of_a_closed_set(closed: tuple[Recognizer, Utterances], tmp_path: Path) -> None:
    attacks = [FGSM(epsilon=0.001), PGD(steps=2), Sparse(), Nothing(), UniformNoise(), Boundless()]
    campaign = Campaign(*closed, attacks, tmp_path / "out", batch_size=5, perceptual=False)
    campaign.run()
    found = confirmed(campaign)
    weak, strong, sparse, nothing, noise, free = found["rows"]
    assert 0 < weak["success"]["successes"] < 7 and weak["success"]["trials"] == 7  # one was wrong before
    assert 0 < sparse["changed"] < 8 and nothing["changed"] == 0 and nothing["measures"]["l2"]["mean"] is None
    assert noise["accuracy"]["value"] > 0.8 > strong["accuracy"]["value"]  # in the worst case and R1 it would show
    assert 0 < free["changed"] == weak["success"]["successes"]  # the same changes
    assert found["worst"]["value"] < found["benign"]["value"] < 1.0
    for name in (BENIGN, *(attack.name for attack in attacks)):
        assert [r["decision"] for r in records(campaign, name)] == score(campaign, name).argmax(1).tolist()


def test_the_numbers_of_targeted_attacks(closed: tuple[Recognizer, Utterances], tmp_path: Path) -> None:
    attacks = [PGD(steps=2), FGSM(epsilon=0.001)]
    campaign = Campaign(*closed, attacks, tmp_path / "out", goal="random", batch_size=5, perceptual=False)
    campaign.run()
    strong, weak = confirmed(campaign)["rows"]
    assert strong["success"]["value"] > weak["success"]["value"]
    assert any(own["success"]["successes"] < 8 - own["accuracy"]["successes"] for own in (strong, weak))


def test_the_numbers_of_changes_below_16_bit(tmp_path: Path) -> None:
    data = load(write_voices(tmp_path / "float", "FLOAT", utterances=1, seconds=SECONDS))
    campaign = Campaign(fit(data), data, [FGSM(epsilon=1e-6)], tmp_path / "out", perceptual=False)
    campaign.run()
    found = confirmed(campaign)
    assert found["rows"][0]["measures"]["snr"]["mean"] > 90.0 and not found["quarters"]


def test_the_numbers_over_draws_of_a_randomized_recognizer(
    closed: tuple[Recognizer, Utterances], tmp_path: Path
) -> None:
    recognizer, data = closed
    defended = recognizer.with_defenses([FeCo(0.5)])
    campaign = Campaign(defended, data, [FGSM()], tmp_path / "out", batch_size=5, draws=3, perceptual=False)
    campaign.run()
    drawn = {}
    for name in (BENIGN, "FGSM"):
        rates, own = [], records(campaign, name)
        for batch in campaign.batches:  # the draws of a batch are made together
            rows = [files(campaign, name)[i] for i in batch]
            labels = np.array([own[i]["label"] for i in batch])
            defended.seed(campaign.seeds(name, [own[i]["name"] for i in batch], "measure"))
            with torch.no_grad():
                decisions = np.stack([defended(*padded(rows)).numpy().argmax(1) for _ in range(4)])
            assert decisions[0].tolist() == [own[i]["decision"] for i in batch]
            rates += (decisions[1:] == labels).mean(0).tolist()
        compare([r["correct_rate"] for r in own], rates, name)
        drawn[name] = np.array(rates)
    assert 0.0 < drawn["FGSM"].mean() < drawn[BENIGN].mean()
    confirmed(campaign, drawn=drawn)


@pytest.mark.parametrize("goal", ["untargeted", pytest.param("hardest", marks=pytest.mark.slow)])
def test_the_numbers_of_claims(system: Recognizer, voices: Path, goal: Any) -> None:
    campaign = claiming(system, voices, "out", goal=goal)
    campaign.run()
    verify(campaign, 0.3)


def verify(campaign: Campaign, prior: float) -> dict[str, Any]:
    """The numbers of a campaign of claims; its decisions, by what the files score."""
    threshold = float(campaign.recognizer.scorer.threshold)
    scores = {}
    for name in (BENIGN, *(attack.name for attack in campaign.attacks)):
        labels = np.array([r["label"] for r in records(campaign, name)])
        claimed = np.maximum(labels, -1 - labels)
        scores[name] = score(campaign, name)[np.arange(len(labels)), claimed]
        decisions = np.where(scores[name] > threshold, claimed, -1 - claimed)
        assert decisions.tolist() == [r["decision"] for r in records(campaign, name)]
    found = confirmed(campaign, scores, prior=prior)
    benign = found["benign"]
    alone = rate([i < benign["successes"] for i in range(benign["trials"])], range(benign["trials"]))
    assert (alone["low"], alone["high"]) != pytest.approx((benign["low"], benign["high"]), abs=1e-3)
    return found


def test_the_numbers_of_an_open_set(recognizer: Recognizer, voices: Path) -> None:
    data = Spk10(voices)
    enroll(recognizer, data, "OSI")
    attacks = [PGD(epsilon=0.01, step_size=0.002, steps=10)]
    campaign = Campaign(recognizer, data.dataset("test"), attacks, voices / "out", perceptual=False)
    campaign.run()
    found = confirmed(campaign)
    assert found["rows"][0]["directions"]["accepted"]["trials"] and found["errors"][BENIGN]["IER"]["trials"] == 3


def recorded(data_root: Path, folder: Path, count: int, seconds: float) -> Path:
    """Utterances of people, one of silence, and one of 0.2 s, in the layout of a data set."""
    paths = sorted((data_root / "Spk251_test").glob("*/*.flac"))[:count]
    sounds = {path: soundfile.read(path, frames=round(seconds * RATE), dtype="int16")[0] for path in paths}
    sounds |= {
        paths[0].with_name("silence.flac"): np.zeros(RATE, np.int16),
        paths[1].with_name("short.flac"): sounds[paths[1]][8_000:11_200],
    }
    for path, samples in sounds.items():
        target = folder / "test" / path.parent.name / f"{path.stem}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, RATE)
    return folder


def hear(recognizer: Recognizer, folder: Path, attacks: list[Attack], output: Path) -> dict[str, Any]:
    """The numbers of a campaign on a folder of `recorded`."""
    utterances = scan(folder, "test")
    data = Utterances(utterances, label(utterances, recognizer.scorer.speakers))
    campaign = Campaign(recognizer, data, attacks, output)
    campaign.run()
    return confirmed(campaign)


def test_the_quality_of_speech(data_root: Path, tmp_path: Path) -> None:
    attacks = [FGSM(), UniformNoise()]
    folder = recorded(data_root, tmp_path / "speech", 2, 1.0)
    attacked, noise = hear(load_recognizer(NATURAL), folder, attacks, tmp_path / "out")["rows"]
    assert attacked["measures"]["pesq"]["mean"] > 1.0 and 0.0 < attacked["measures"]["stoi"]["mean"] < 1.0
    assert noise["changed"] == 4
    assert [noise["measures"][m]["undefined"] for m in MEASURES] == [0, 0, 0, 0, 1, 2, 2]


@pytest.mark.slow
def test_the_numbers_of_all_recorded_speech(data_root: Path, tmp_path: Path) -> None:
    attacks: list[Attack] = [FGSM(0.0005), PGD(), Sparse(), UniformNoise(), CW2(steps=50, search_steps=2)]
    folder = recorded(data_root, tmp_path / "speech", 12, 2.0)
    found = hear(load_recognizer(NATURAL), folder, attacks, tmp_path / "out")
    assert found["quarters"] and found["worst"]["value"] < found["benign"]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["untargeted", "random"])
def test_the_numbers_of_claims_of_recorded_speech(data_root: Path, tmp_path: Path, goal: Any) -> None:
    trained = load_recognizer(NATURAL)
    recognizer = Recognizer(trained.features, trained.backbone, Cosine()).eval()
    data = Spk10(data_root)
    enroll(recognizer, data, "SV")
    speakers = recognizer.scorer.speakers
    data.connect(speakers)
    test = data.dataset("test")
    claims = Utterances(*everybody(test.utterances[::3], test.labels[::3], speakers))
    attacks = [PGD(epsilon=0.0005, step_size=0.0001, steps=3)]
    campaign = Campaign(recognizer, claims, attacks, tmp_path / "out", goal, perceptual=False, claims=True)
    campaign.run()
    benign, attacked = verify(campaign, 0.01)["errors"].values()
    assert 0.0 < benign["EER"] < attacked["EER"]


@pytest.mark.slow
def test_the_quality_of_long_speech_is_the_mean_of_equal_pieces(data_root: Path) -> None:
    sounds = [soundfile.read(path)[0] for path in sorted((data_root / "Spk251_test").glob("*/*.flac"))]
    original = np.tile(np.concatenate(sounds), 2)[: 41 * RATE + 1]
    adversarial = original + 0.002 * np.random.default_rng(0).uniform(-1.0, 1.0, len(original))
    borders = [0, 13 * RATE + 10_667, 27 * RATE + 5_334, 41 * RATE + 1]
    pieces = [quality(adversarial[a:b], original[a:b]) for a, b in pairwise(borders)]
    ours = perceptual_evaluation_of_speech_quality(torch.from_numpy(adversarial), torch.from_numpy(original))
    compare(ours, float(np.mean(pieces)), "pesq")


# Functions by themselves


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_norms_and_ratio_of_float32_at_any_amplitude_are_those_of_numpy_in_float64(size: float) -> None:
    generator = np.random.default_rng(0)
    original = (size * generator.normal(size=(3, 4_000))).astype(np.float32)
    adversarial = original + (size * 0.01 * generator.normal(size=original.shape)).astype(np.float32)
    found = [f(*map(torch.from_numpy, (adversarial, original))) for f in (l1_norm, l2_norm, linf_norm)]
    ratio = signal_to_noise_ratio(torch.from_numpy(adversarial), torch.from_numpy(original))
    wide, delta = original.astype(np.float64), adversarial.astype(np.float64) - original.astype(np.float64)
    for ours, order in zip(found, (1, 2, np.inf), strict=True):
        np.testing.assert_allclose(ours.numpy(), np.linalg.norm(delta, order, axis=1), rtol=1e-6)
    expected = 10 * np.log10((wide**2).sum(1) / (delta**2).sum(1))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(ratio.numpy(), expected, rtol=1e-6)


def test_norms_of_a_long_signal_are_those_of_numpy_in_float64() -> None:
    """Two minutes, of which float32 would lose the small changes beside the large one."""
    original = np.zeros((1, 120 * RATE), np.float32)
    adversarial = np.full_like(original, 1e-5)
    adversarial[0, 0], adversarial[0, 7] = 1.0, 0.0
    delta = adversarial.astype(np.float64)
    pair = torch.from_numpy(adversarial), torch.from_numpy(original)
    assert float(l2_norm(*pair)) == pytest.approx(math.sqrt(math.fsum(delta[0] ** 2)), rel=1e-9)
    assert float(l1_norm(*pair)) == pytest.approx(math.fsum(delta[0]), rel=1e-9)
    assert int(l0_norm(*pair)) == 120 * RATE - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_errors_at_a_threshold_are_counted_by_numpy(dtype: torch.dtype, seed: int) -> None:
    """A threshold between the scores of a coarse type and beside them."""
    generator = np.random.default_rng(seed)
    targets, others = (torch.from_numpy(generator.normal(m, 1.0, 300)).to(dtype) for m in (1.0, 0.0))
    score = float(targets[0])
    for threshold in (score, np.nextafter(score, 9.0), np.nextafter(score, -9.0), score + 1e-5, 0.3):
        found = detection_errors(targets, others, threshold)
        compare(float(found.false_acceptance), float((others.double().numpy() > threshold).mean()), "FAR")
        compare(float(found.false_rejection), float((targets.double().numpy() <= threshold).mean()), "FRR")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_errors_of_nan_are_refused(dtype: torch.dtype) -> None:
    good, bad = torch.tensor([0.5, 1.5], dtype=dtype), torch.tensor([0.5, math.nan], dtype=dtype)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="got 1 NaN among 4"):
            detection_errors(*pair, 1.0)


def test_wilsons_interval_ends_where_the_score_test_rejects() -> None:
    for successes, trials in ((0, 1), (1, 1), (0, 40), (7, 12), (39, 40), (7, 2887)):
        expected = [*reach(successes / trials, trials, norm.isf(0.025))]
        compare([*wilson_interval(successes, trials)], expected, f"{successes} of {trials}")


@pytest.mark.parametrize("trials", [2, 10, 49, 251])
@pytest.mark.parametrize("seed", range(3))
def test_clustered_intervals_of_any_counts(trials: int, seed: int) -> None:
    """Clusters that differ, that agree with each other, and whose trials all agree."""
    generator = np.random.default_rng([trials, seed])
    sizes = generator.integers(1, trials + 1, 6)
    for tried, won in (
        (sizes, generator.integers(0, sizes + 1)),
        (np.full(6, trials), np.full(6, generator.integers(1, trials))),
        (sizes, sizes),
        (sizes, 0 * sizes),
    ):
        flags = [index < k for n, k in zip(tried, won, strict=True) for index in range(n)]
        expected = rate(flags, np.repeat(np.arange(6), tried))
        compare(list(clustered_interval(won, tried)), [expected["low"], expected["high"]], f"{won} of {tried}")
