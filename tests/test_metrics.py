"""Metrics against scipy, scikit-learn, torchmetrics, pesq, pystoi, and answers known by hand."""

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchmetrics.functional as reference
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import binomtest, hmean
from sklearn.metrics import det_curve, roc_curve
from torch import Tensor
from torch.testing import assert_close
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import binary_eer

from sec4sr_pl.metrics import (
    AttackDirectionRates,
    AttackSuccessRate,
    DetectionErrorRates,
    DetectionErrors,
    DetectionErrorTradeoff,
    EqualErrorRate,
    IdentificationErrorRate,
    MinDCF,
    OpenSetErrorRates,
    PerceptualEvaluationOfSpeechQuality,
    ShortTimeObjectiveIntelligibility,
    SignalToNoiseRatio,
    attack_success_rate,
    clustered_interval,
    detection_errors,
    equal_error_rate,
    equal_error_threshold,
    identification_error_rate,
    l0_norm,
    l1_norm,
    l2_norm,
    linf_norm,
    min_dcf,
    open_set_errors,
    perceptual_evaluation_of_speech_quality,
    r1_score,
    short_time_objective_intelligibility,
    signal_to_noise_ratio,
    wilson_interval,
)
from sec4sr_pl.types import SAMPLE_RATE

pesq = pytest.importorskip("pesq", reason="pesq is not installed")
pystoi = pytest.importorskip("pystoi", reason="pystoi is not installed")


def speech_like(seconds: float) -> Tensor:
    """Harmonics of a gliding voice under an envelope of four syllables a second, (time,) in [-1, 1]."""
    time = torch.arange(round(seconds * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    phase = 2 * math.pi * (120 * time + 3 * torch.sin(2 * math.pi * 0.7 * time))
    voice = sum(torch.sin(k * phase) / k for k in range(1, 30))
    return (0.1 * voice * torch.sin(4 * math.pi * time).clamp(min=0)).float()


def noisy(waveforms: Tensor, size: float, seed: int = 0) -> Tensor:
    return waveforms + size * torch.randn(waveforms.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def recorded(data_root: Path) -> Tensor:
    """3 s of a person."""
    path = max(data_root.rglob("*.flac"), key=lambda path: path.stat().st_size)
    return torch.from_numpy(soundfile.read(path, frames=3 * SAMPLE_RATE, dtype="float32")[0])


@pytest.fixture(scope="module", params=["synthetic", "recorded"])
def speech(request: pytest.FixtureRequest) -> Tensor:
    return speech_like(3.0) if request.param == "synthetic" else request.getfixturevalue("recorded")


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trials(seed: int, targets: int = 40, nontargets: int = 60, decimals: int | None = None) -> tuple[Tensor, Tensor]:
    """Overlapping scores on a PLDA-like scale; rounded, they have ties."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(4, 5, targets), generator.normal(-4, 5, nontargets)
    kept = scores if decimals is None else [kind.round(decimals) for kind in scores]
    return torch.from_numpy(kept[0]), torch.from_numpy(kept[1])


def labeled(target: Tensor, nontarget: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and scores as the libraries take them."""
    return torch.cat([torch.ones(len(target)), torch.zeros(len(nontarget))]).long(), torch.cat([target, nontarget])


# Signal-to-noise ratio and norms


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 36.96, 80.0])
def test_snr_of_a_scaled_copy_is_the_scale_in_decibels(decibels: float) -> None:
    original = torch.randn(3, 500, dtype=torch.float64)
    adversarial = original * (1 + 10 ** (-decibels / 20))
    assert_close(signal_to_noise_ratio(adversarial, original), torch.full((3,), decibels, dtype=torch.float64))


def test_snr_agrees_with_torchmetrics(speech: Tensor) -> None:
    original = torch.stack([speech, speech.flip(0) * 0.3])
    adversarial = noisy(original, 0.002)
    assert_close(
        signal_to_noise_ratio(adversarial, original),
        reference.audio.signal_noise_ratio(adversarial.double(), original.double()),
        rtol=0,
        atol=1e-6,
    )


def test_snr_is_infinite_only_where_nothing_was_changed() -> None:
    original = torch.tensor([[0.1, 0.2], [0.0, 0.0], [0.0, 0.0], [0.1, 0.2]])
    adversarial = torch.tensor([[0.1, 0.2], [0.0, 0.0], [0.1, 0.0], [0.1, 0.3]])
    found = signal_to_noise_ratio(adversarial, original)
    expected = torch.tensor([math.inf, math.inf, -math.inf, 10 * math.log10(5)], dtype=torch.float64)
    assert_close(found, expected, rtol=0, atol=1e-5)  # 0.1 and 0.3 in float32


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1.0, 1e25, 1e30])
def test_snr_and_norms_do_not_depend_on_the_scale(size: float) -> None:
    original = torch.randn(2, 300)
    adversarial = noisy(original, 0.01)
    scaled = (adversarial * size, original * size)
    measures = [signal_to_noise_ratio, l1_norm, l2_norm, linf_norm]
    ratio, *norms = (measure(*scaled) for measure in measures)
    assert_close(ratio, signal_to_noise_ratio(adversarial, original), rtol=1e-6, atol=0)
    for norm, measure in zip(norms, measures[1:], strict=True):
        assert_close(norm / size, measure(adversarial, original), rtol=1e-5, atol=0)


def test_the_energy_of_a_long_utterance_is_summed_to_the_last_digits() -> None:
    generator = np.random.default_rng(0)
    original = torch.from_numpy(generator.normal(0.0, 0.1, (1, 3_000_000))).float()
    adversarial = original + torch.from_numpy(generator.normal(0.0, 1e-4, original.shape)).float()
    signal, delta = original[0].numpy().astype(np.longdouble), (adversarial[0].double() - original[0].double()).numpy()
    energy = float((delta.astype(np.longdouble) ** 2).sum())
    assert float(l2_norm(adversarial, original)) == pytest.approx(energy**0.5, rel=1e-12)
    expected = 10 * math.log10(float((signal**2).sum()) / energy)
    assert float(signal_to_noise_ratio(adversarial, original)) == pytest.approx(expected, rel=1e-12)


def test_norms_agree_with_numpy() -> None:
    original = torch.rand(4, 300) * 2 - 1
    adversarial = noisy(original, 0.01)
    adversarial[0, 7:90] = original[0, 7:90]
    delta = adversarial.numpy().astype(float) - original.numpy()
    for measure, order in ((l1_norm, 1), (l2_norm, 2), (linf_norm, np.inf)):
        assert_close(measure(adversarial, original), torch.from_numpy(np.linalg.norm(delta, order, axis=1)))
    assert l0_norm(adversarial, original).tolist() == [np.linalg.norm(row, 0) for row in delta]


@pytest.mark.parametrize("measure", [signal_to_noise_ratio, l0_norm, l1_norm, l2_norm, linf_norm])
def test_padding_does_not_count(measure) -> None:
    original = torch.randn(3, 400)
    adversarial = noisy(original, 0.01)
    lengths = torch.tensor([400, 250, 1])
    alone = [measure(adversarial[i : i + 1, :n], original[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    for i, n in enumerate(lengths.tolist()):
        original[i, n:], adversarial[i, n:] = math.nan, 7.0
    assert_close(measure(adversarial, original, lengths), torch.cat(alone))


@pytest.mark.parametrize("measure", [signal_to_noise_ratio, l0_norm, l1_norm, l2_norm, linf_norm])
def test_half_precision_is_measured_in_double(measure) -> None:
    original = torch.full((1, 48_000), 0.5, dtype=torch.float16)  # its energy is beyond half precision
    adversarial = original + 2**-9
    assert_close(measure(adversarial, original), measure(adversarial.float(), original.float()))


@pytest.mark.parametrize("measure", [signal_to_noise_ratio, l0_norm, l1_norm, l2_norm, linf_norm])
def test_batched_measures_never_read_a_value_back_from_the_device(measure) -> None:
    waveforms, lengths = torch.empty(4, 100, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    assert measure(waveforms, waveforms, lengths).shape == (4,)  # a meta tensor has no values to read


@pytest.mark.parametrize(
    ("adversarial", "original", "lengths", "message"),
    [
        (torch.zeros(5), torch.zeros(5), None, r"`adversarial` \(batch, time\) float, got \(5,\)"),
        (
            torch.zeros(2, 5),
            torch.zeros(2, 5).short(),
            None,
            r"`original` \(batch, time\) float, got \(2, 5\) torch.int16",
        ),
        (torch.zeros(2, 0), torch.zeros(2, 0), None, r"got \(2, 0\)"),
        (torch.zeros(2, 6), torch.zeros(2, 5), None, r"got \(2, 6\) and \(2, 5\)"),
        (torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor([5]), r"`lengths` \(2,\), got \(1,\)"),
    ],
)
def test_waveforms_of_the_wrong_shape_are_refused(adversarial, original, lengths, message: str) -> None:
    for measure in (
        signal_to_noise_ratio,
        l0_norm,
        l1_norm,
        l2_norm,
        linf_norm,
        PerceptualEvaluationOfSpeechQuality().update,
    ):
        with pytest.raises(ValueError, match=message):
            measure(adversarial, original, lengths)


# PESQ and STOI


def test_pesq_takes_the_original_as_reference(speech: Tensor) -> None:
    adversarial = noisy(speech, 0.005)
    expected = pesq.pesq(SAMPLE_RATE, speech.numpy(), adversarial.numpy(), "wb")
    swapped = pesq.pesq(SAMPLE_RATE, adversarial.numpy(), speech.numpy(), "wb")
    assert perceptual_evaluation_of_speech_quality(adversarial, speech) == pytest.approx(expected, abs=1e-4)
    assert abs(expected - swapped) > 0.01  # else the order would not show


def test_stoi_takes_the_original_as_reference(speech: Tensor) -> None:
    adversarial = noisy(speech, 0.02)
    expected = pystoi.stoi(speech.numpy(), adversarial.numpy(), SAMPLE_RATE, extended=False)
    swapped = pystoi.stoi(adversarial.numpy(), speech.numpy(), SAMPLE_RATE, extended=False)
    assert short_time_objective_intelligibility(adversarial, speech) == pytest.approx(expected, abs=1e-4)
    assert abs(expected - swapped) > 0.001


def test_an_unchanged_utterance_is_perfect(speech: Tensor) -> None:
    assert perceptual_evaluation_of_speech_quality(speech, speech) == pytest.approx(4.64, abs=0.01)
    assert short_time_objective_intelligibility(speech, speech) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("measure", [perceptual_evaluation_of_speech_quality, short_time_objective_intelligibility])
def test_more_noise_is_worse_on_recorded_speech(measure, recorded: Tensor) -> None:
    values = [measure(noisy(recorded, size).numpy(), recorded.numpy()) for size in (0.0005, 0.005, 0.05)]
    assert values == sorted(values, reverse=True) and values[0] - values[-1] > 0.1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.02, 0.2])
@pytest.mark.parametrize("measure", [perceptual_evaluation_of_speech_quality, short_time_objective_intelligibility])
def test_an_utterance_too_short_is_nan(measure, seconds: float, no_warnings: None) -> None:
    original = speech_like(seconds)
    assert math.isnan(measure(noisy(original, 0.01), original))


@pytest.mark.parametrize("measure", [perceptual_evaluation_of_speech_quality, short_time_objective_intelligibility])
def test_silence_or_nan_in_the_original_is_nan(measure, no_warnings: None) -> None:
    speech, silence, broken = speech_like(1.0), torch.zeros(SAMPLE_RATE), torch.full((SAMPLE_RATE,), math.nan)
    assert all(math.isnan(measure(*pair)) for pair in [(speech, silence), (silence, silence), (speech, broken)])
    assert all(math.isnan(measure(broken, original)) for original in (speech, silence))


def test_a_silent_adversarial_utterance_is_unintelligible_and_has_no_pesq(no_warnings: None) -> None:
    speech = speech_like(1.0)
    assert short_time_objective_intelligibility(torch.zeros_like(speech), speech) == pytest.approx(0.0, abs=1e-3)
    assert math.isnan(perceptual_evaluation_of_speech_quality(torch.zeros_like(speech), speech))


def test_pesq_survives_more_stretches_of_speech_than_its_library_has_room_for() -> None:
    burst = torch.cat([torch.randn(3300, generator=torch.Generator().manual_seed(1)) * 0.1, torch.zeros(3400)])
    original = burst.repeat(60)  # 25 s; `pesq` itself ends the process with a segmentation fault
    adversarial = noisy(original, 0.001)
    halves = zip(adversarial.chunk(2), original.chunk(2), strict=True)
    expected = np.mean([perceptual_evaluation_of_speech_quality(*half) for half in halves])
    assert perceptual_evaluation_of_speech_quality(adversarial, original) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [perceptual_evaluation_of_speech_quality, short_time_objective_intelligibility])
def test_a_pair_that_is_no_pair_of_waveforms_is_refused(measure) -> None:
    wrong = [
        (torch.zeros(5), torch.zeros(6)),
        (torch.zeros(1, 5), torch.zeros(1, 5)),
        (torch.zeros(5), np.zeros(5, "i2")),
    ]
    for adversarial, original in wrong:
        with pytest.raises(ValueError, match=r"one shape \(time,\), got"):
            measure(adversarial, original)


@pytest.mark.parametrize(
    ("measure", "package"),
    [(perceptual_evaluation_of_speech_quality, "pesq"), (short_time_objective_intelligibility, "pystoi")],
)
def test_a_missing_package_is_named(measure, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        measure(torch.zeros(5), torch.zeros(5))


# Rates


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 40), (40, 40), (13, 40), (1, 2610), (2000, 2610)]
)
def test_wilson_interval_agrees_with_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_trials_any_rate_is_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def correlated(clusters: int, trials: int, correlation: float, rate: float, count: int) -> np.ndarray:
    """Successes of `count` draws of clusters whose rates are beta-distributed: the correlation is that in a cluster."""
    generator = np.random.default_rng(0)
    spread = (1.0 - correlation) / correlation
    rates = generator.beta(rate * spread, (1.0 - rate) * spread, (count, clusters))
    return generator.binomial(trials, rates)


def covered(interval: tuple[float, float], rate: float) -> bool:
    return interval[0] <= rate <= interval[1]


@pytest.mark.parametrize(("correlation", "rate"), [(0.3, 0.5), (0.3, 0.2), (0.6, 0.5), (0.6, 0.2)])
def test_a_clustered_interval_covers_what_wilsons_does_not(correlation: float, rate: float) -> None:
    """20 recordings that each claim to be 10 speakers."""
    draws = correlated(20, 10, correlation, rate, 1_000)
    clustered = [covered(clustered_interval(row.tolist(), [10] * 20), rate) for row in draws]
    single = [covered(wilson_interval(int(row.sum()), 200), rate) for row in draws]
    assert 0.93 <= np.mean(clustered) <= 0.985
    assert np.mean(single) <= 0.75


def test_clusters_of_one_trial_have_wilsons_interval_and_one_cluster_tells_nothing() -> None:
    assert clustered_interval([1, 0, 0, 1], [1] * 4) == wilson_interval(2, 4)
    assert clustered_interval([3], [5]) == (0.0, 1.0)
    assert clustered_interval([], []) == wilson_interval(0, 0)


def test_clusters_that_agree_count_once() -> None:
    """As 4 trials of which all succeed, with Student's quantile: 1 / (1 + t^2 / 4)."""
    low, high = clustered_interval([5, 6, 2, 4], [5, 6, 2, 4])
    assert high == 1.0 and low == pytest.approx(1.0 / (1.0 + 3.182446305284263**2 / 4.0))


@pytest.mark.parametrize("arguments", [([5], [4]), ([1, 1], [2]), ([0], [0]), ([-1, 2], [3, 3])])
def test_impossible_clusters_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= .* got"):
        clustered_interval(*arguments)


@pytest.mark.parametrize("arguments", [(5, 4), (-1, 4), (1, -1), (1, 2, 0.0), (1, 2, 95)])
def test_impossible_counts_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"expected .* got"):
        wilson_interval(*arguments)


def test_r1_score_reproduces_the_paper() -> None:
    assert round(r1_score(99.8, 4.573), 2) == 8.75


def test_r1_score_is_the_harmonic_mean_of_floats_and_tensors() -> None:
    benign, adversarial = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([0.3, 0.5, 1e-3])
    assert_close(r1_score(benign, adversarial), torch.from_numpy(hmean(torch.stack([benign, adversarial]).numpy())))
    assert r1_score(0.9, 0.3) == pytest.approx(hmean([0.9, 0.3]))


def test_r1_score_without_any_accuracy_is_zero() -> None:
    assert r1_score(0.0, 0.0) == 0.0
    assert_close(r1_score(torch.zeros(2), torch.tensor([0.0, 0.5])), torch.zeros(2))


def test_errors_that_were_there_before_are_no_success_of_the_attack() -> None:
    benign_correct = torch.tensor([True, True, True, True, False, False])
    achieved = torch.tensor([True, False, False, False, True, True])
    assert attack_success_rate(benign_correct, achieved) == 0.25


def test_without_a_correct_original_the_success_rate_is_nan() -> None:
    assert attack_success_rate(torch.tensor([False]), torch.tensor([True])).isnan()
    assert attack_success_rate(torch.zeros(0).bool(), torch.zeros(0).bool()).isnan()


@pytest.mark.parametrize(
    ("benign_correct", "achieved"),
    [
        (torch.ones(3).bool(), torch.ones(2).bool()),
        (torch.ones(3).bool(), torch.ones(3)),
        (torch.ones(3, 1).bool(), torch.ones(3, 1).bool()),
    ],
)
def test_flags_that_do_not_match_are_refused(benign_correct: Tensor, achieved: Tensor) -> None:
    for measure in (attack_success_rate, AttackSuccessRate().update):
        with pytest.raises(ValueError, match=r"expected .* got"):
            measure(benign_correct, achieved)


# Verification


@pytest.mark.parametrize("decimals", [None, 0, -1])
@pytest.mark.parametrize("seed", range(20))
def test_equal_error_rate_is_where_the_roc_of_sklearn_crosses_the_diagonal(seed: int, decimals: int | None) -> None:
    scores = trials(seed, 5 + 7 * seed, 100 - 4 * seed, decimals)
    labels, values = labeled(*scores)
    false_alarms, hits, _ = roc_curve(labels, values)
    expected = brentq(lambda rate: 1 - rate - interp1d(false_alarms, hits)(rate), 0, 1)
    assert float(equal_error_rate(*scores)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_rate_is_within_one_step_of_torchmetrics(seed: int) -> None:
    target, nontarget = trials(seed, 400, 600)
    labels, values = labeled(target, nontarget)
    probabilities = (values - values.min()) / (values.max() - values.min())  # it would squash others by a sigmoid
    assert_close(equal_error_rate(target, nontarget), binary_eer(probabilities, labels).float(), rtol=0, atol=1 / 400)


def test_equal_error_rate_equals_torchmetrics_where_a_threshold_balances_the_errors() -> None:
    target, nontarget = torch.tensor([0.1, 0.6, 0.7, 0.8, 0.9]), torch.tensor([0.0, 0.2, 0.3, 0.4, 0.65])
    labels, values = labeled(target, nontarget)
    assert_close(equal_error_rate(target, nontarget), torch.tensor(0.2))
    assert_close(binary_eer(values, labels), torch.tensor(0.2))


def test_equal_error_rate_does_not_depend_on_the_scale_of_the_scores() -> None:
    target, nontarget = trials(3)
    expected = equal_error_rate(target, nontarget)
    for change in (lambda s: s / 100, lambda s: 1000 * s - 7, torch.atan, lambda s: s / 20 + 0.5):
        assert_close(equal_error_rate(change(target), change(nontarget)), expected)


@pytest.mark.parametrize(
    ("target", "nontarget", "expected"),
    [([2.0, 3.0], [0.0, 1.0], 0.0), ([0.0, 1.0], [2.0, 3.0], 1.0), ([1.0, 1.0], [1.0], 0.5), ([0.0, 2.0], [1.0], 0.5)],
)
def test_equal_error_rate_of_simple_scores(target: list[float], nontarget: list[float], expected: float) -> None:
    assert equal_error_rate(torch.tensor(target), torch.tensor(nontarget)) == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_balances_the_errors_better_than_the_equal_error_threshold(seed: int, decimals) -> None:
    target, nontarget = trials(seed, decimals=decimals)

    def difference(threshold: Tensor) -> float:
        return abs(float((target <= threshold).double().mean() - (nontarget > threshold).double().mean()))

    grid = torch.cat([target, nontarget, torch.linspace(-30, 30, 601, dtype=torch.float64)])
    assert difference(equal_error_threshold(target, nontarget)) <= min(map(difference, grid)) + 1e-12


def test_equal_error_threshold_is_the_middle_between_two_scores() -> None:
    assert equal_error_threshold(torch.tensor([5.0, 3.0]), torch.tensor([-2.0, 1.0, 1.0])) == 2.0


def test_equal_error_threshold_separates_adjacent_floats() -> None:
    lower = torch.tensor([1 + 2**-23])
    upper = torch.nextafter(lower, torch.tensor(2.0))
    assert (lower + upper) / 2 == upper  # the plain middle would reject it
    threshold = equal_error_threshold(upper, lower)
    assert upper > threshold and not lower > threshold


def test_equal_error_threshold_of_equal_scores_rejects_all() -> None:
    assert equal_error_threshold(torch.ones(3), torch.ones(2)) == 1.0


@pytest.mark.parametrize("costs", [(0.01, 1.0, 1.0), (0.05, 1.0, 1.0), (0.5, 10.0, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_min_dcf_is_the_least_cost_on_the_det_curve_of_sklearn(seed: int, costs: tuple[float, float, float]) -> None:
    target, nontarget = trials(seed, decimals=seed % 2)
    prior, miss_cost, false_alarm_cost = costs
    false_alarms, misses, _ = det_curve(*labeled(target, nontarget))
    false_alarms, misses = np.append(false_alarms, [0, 1]), np.append(misses, [1, 0])  # it may leave out the ends
    cost = miss_cost * prior * misses + false_alarm_cost * (1 - prior) * false_alarms
    expected = cost.min() / min(miss_cost * prior, false_alarm_cost * (1 - prior))
    assert float(min_dcf(target, nontarget, *costs)) == pytest.approx(expected, abs=1e-6)


def test_min_dcf_is_zero_for_separated_scores_and_one_for_useless_ones() -> None:
    scores = torch.arange(10.0)
    assert min_dcf(scores[5:], scores[:5]) == 0
    assert min_dcf(scores[:5], scores[5:]) == pytest.approx(1)
    assert min_dcf(scores, scores[:1].expand(4)) == pytest.approx(0.1)  # one target at the score of all others


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_threshold_is_not_rounded_to_the_type_of_the_scores(dtype: torch.dtype) -> None:
    scores = torch.tensor([1.0, 1.0, 2.0], dtype=dtype)  # in bfloat16 the neighbors of 1 are 0.0039 and 0.0078 away
    for threshold in (1.0001, torch.tensor(1.0001)):
        errors = detection_errors(scores, scores, threshold)
        assert [float(rate) for rate in errors] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("measure", [equal_error_rate, min_dcf])
def test_without_trials_of_one_kind_the_errors_are_nan(measure) -> None:
    some, none = torch.tensor([0.1, 0.2]), torch.zeros(0)
    assert all(measure(*kinds).isnan() for kinds in [(some, none), (none, some), (none, none)])
    with pytest.raises(ValueError, match="both kinds, got 2 and 0"):
        equal_error_threshold(some, none)


def at_zero(targets: Tensor, nontargets: Tensor) -> DetectionErrors:
    return detection_errors(targets, nontargets, 0.0)


@pytest.mark.parametrize("measure", [equal_error_rate, min_dcf, equal_error_threshold, at_zero])
def test_scores_that_cannot_be_ranked_are_refused(measure) -> None:
    good = torch.tensor([0.1, 0.2])
    for bad in (torch.tensor([0.1, math.nan]), good[None], torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"expected .* got"):
            measure(bad, good)
        with pytest.raises(ValueError, match=r"expected .* got"):
            measure(good, bad)


@pytest.mark.parametrize(
    "costs",
    [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.1, 0.0, 1.0), (0.1, 1.0, -1.0), (0.1, math.nan, 1.0), (0.1, 1.0, math.nan)],
)
def test_impossible_costs_are_refused(costs: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"expected .* got"):
        min_dcf(torch.ones(1), torch.zeros(1), *costs)
    with pytest.raises(ValueError, match=r"expected .* got"):
        MinDCF(*costs)


# Classes


def rounds() -> list[dict[str, tuple[Tensor, ...]]]:
    """Three batches; the second holds an utterance that is unchanged, silent and short, and no target trial."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for i in range(3):
        target, nontarget = (kind.float() for kind in trials(i, 10, 15))
        original = speech_like(0.8).repeat(2, 1) * torch.tensor([[1.0], [0.0 if i == 1 else 0.5]])
        adversarial = original + 0.01 * torch.randn(original.shape, generator=generator)
        if i == 1:
            adversarial[1] = original[1]
        flags = torch.rand(2, 8, generator=generator) > 0.5
        batches.append(
            {
                "scores": (target[:0] if i == 1 else target, nontarget),
                "flags": (flags[0], flags[1]),
                "decisions": tuple(torch.randint(-1, 3, (2, 9), generator=generator)),
                "attacks": tuple(torch.randint(-1, 3, (3, 99), generator=generator)),
                "waveforms": (adversarial, original, torch.tensor([12_000, 12_800 if i != 1 else 300])),
            }
        )
    return batches


def metrics() -> dict[str, list[Metric]]:
    return {
        "scores": [EqualErrorRate(), MinDCF(target_prior=0.1), DetectionErrorRates(0.1), DetectionErrorTradeoff()],
        "flags": [AttackSuccessRate()],
        "decisions": [IdentificationErrorRate(), OpenSetErrorRates()],
        "attacks": [AttackDirectionRates()],
        "waveforms": [
            SignalToNoiseRatio(),
            PerceptualEvaluationOfSpeechQuality(),
            ShortTimeObjectiveIntelligibility(),
        ],
    }


def measured(batches: list[dict[str, tuple[Tensor, ...]]]) -> dict[str, Tensor]:
    """Values of all classes after these batches, and how many utterances they left out."""
    values = {}
    for kind, members in metrics().items():
        for metric in members:
            for batch in batches:
                metric.update(*batch[kind])
            value = metric.compute()
            values[type(metric).__name__] = torch.stack(value) if isinstance(value, tuple) else value
            if kind == "waveforms":
                values[f"{type(metric).__name__} failures"] = metric.failures()
                assert metric.failed <= values[f"{type(metric).__name__} failures"]  # own state is as it was
    return values


def test_classes_over_batches_equal_the_functions_on_all_of_it() -> None:
    batches = rounds()
    values = measured(batches)
    target, nontarget = (torch.cat([batch["scores"][i] for batch in batches]) for i in range(2))
    assert_close(values["EqualErrorRate"], equal_error_rate(target, nontarget))
    assert_close(values["MinDCF"], min_dcf(target, nontarget, 0.1))
    assert_close(values["DetectionErrorRates"], torch.stack(detection_errors(target, nontarget, 0.1)))
    flags = [torch.cat([batch["flags"][i] for batch in batches]) for i in range(2)]
    assert_close(values["AttackSuccessRate"], attack_success_rate(flags[0], flags[1]))
    decisions = [torch.cat([batch["decisions"][i] for batch in batches]) for i in range(2)]
    assert_close(values["IdentificationErrorRate"], identification_error_rate(decisions[0], decisions[1]))
    assert_close(values["OpenSetErrorRates"], torch.stack(open_set_errors(decisions[0], decisions[1])))
    ratios = torch.cat([signal_to_noise_ratio(*batch["waveforms"]) for batch in batches])
    assert_close(values["SignalToNoiseRatio"], ratios[ratios.isfinite()].mean())
    for measure, name in (
        (perceptual_evaluation_of_speech_quality, "PerceptualEvaluationOfSpeechQuality"),
        (short_time_objective_intelligibility, "ShortTimeObjectiveIntelligibility"),
    ):
        rows = [row for batch in batches for row in zip(*batch["waveforms"], strict=True)]
        each = [measure(ours[:length], theirs[:length]) for ours, theirs, length in rows]
        assert float(values[name]) == pytest.approx(np.nanmean(each), abs=1e-5)
    assert [int(value) for name, value in values.items() if name.endswith("failures")] == [1, 1, 1]


def test_equal_error_rate_over_small_batches_of_cosine_scores_is_that_of_all_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    target, nontarget = (0.3 * torch.randn(200, generator=generator) + mean for mean in (0.4, 0.0))
    metric = EqualErrorRate()
    for i in range(0, 200, 2):  # some batches lie in [0, 1] and some do not: torchmetrics squashes only the latter
        metric.update(target[i : i + 2], nontarget[i : i + 2])
    assert_close(metric.compute(), equal_error_rate(target, nontarget))


def test_the_value_of_one_batch_is_that_of_the_batch() -> None:
    first, second = rounds()[0], rounds()[2]
    metric = SignalToNoiseRatio()
    for batch in (first, second):
        assert_close(metric(*batch["waveforms"]), signal_to_noise_ratio(*batch["waveforms"]).mean())


@pytest.mark.parametrize(
    "metric",
    [
        EqualErrorRate(),
        MinDCF(),
        AttackSuccessRate(),
        IdentificationErrorRate(),
        SignalToNoiseRatio(),
        PerceptualEvaluationOfSpeechQuality(),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_metric_that_saw_nothing_is_nan(metric: Metric) -> None:
    assert metric.compute().isnan()


def test_a_reset_forgets_values_and_failures() -> None:
    metric = SignalToNoiseRatio()
    metric.update(torch.ones(1, 4), torch.ones(1, 4))
    assert metric.failures() == 1 and metric.compute().isnan()
    metric.reset()
    metric.update(torch.ones(1, 4) * 1.1, torch.ones(1, 4))
    assert metric.failures() == 0 and metric.compute() == pytest.approx(20, abs=1e-4)


def test_a_collection_keeps_metrics_apart_whose_first_batch_only_failed() -> None:
    collection = MetricCollection([PerceptualEvaluationOfSpeechQuality(), ShortTimeObjectiveIntelligibility()])
    collection.update(torch.zeros(1, 12_800), torch.zeros(1, 12_800))
    original = speech_like(0.8)[None]
    collection.update(noisy(original, 0.01), original)
    values = collection.compute()
    assert values["PerceptualEvaluationOfSpeechQuality"] > 1 > values["ShortTimeObjectiveIntelligibility"]


def measure_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    uneven = measured(rounds()[rank::2])  # two batches against one, which has no target trial
    idle = EqualErrorRate()
    if rank == 0:
        for batch in rounds():
            idle.update(*batch["scores"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other process computes before it updates
        uneven["idle"] = idle.compute()
    torch.save(uneven, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed")
def test_two_processes_report_what_one_reports(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(measure_in_process, (str(tmp_path),), nprocs=2, start_method="fork")
    alone = measured(rounds())
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert_close(together.pop("idle"), alone["EqualErrorRate"], rtol=0, atol=0)
        assert_close(together, alone, rtol=1e-6, atol=0)
