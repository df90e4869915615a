"""Numbers of the tables: robustness, errors of identification and verification, and how audible a perturbation is.

Each metric is a pure function; those watched during training have a `torchmetrics.Metric` twin whose states are sums or
concatenations, so that one process and many report the same value.
"""

from sec4sr_pl.metrics.counts import Fraction, clustered_interval, wilson_interval
from sec4sr_pl.metrics.distortion import (
    PerceptualEvaluationOfSpeechQuality,
    ShortTimeObjectiveIntelligibility,
    SignalToNoiseRatio,
    l0_norm,
    l1_norm,
    l2_norm,
    linf_norm,
    perceptual_evaluation_of_speech_quality,
    short_time_objective_intelligibility,
    signal_to_noise_ratio,
)
from sec4sr_pl.metrics.identification import (
    IdentificationErrorRate,
    OpenSetErrorRates,
    OpenSetErrors,
    identification_error_rate,
    identification_scores,
    open_set_errors,
)
from sec4sr_pl.metrics.robustness import (
    AttackDirectionRates,
    AttackDirections,
    AttackSuccessRate,
    attack_directions,
    attack_success_rate,
    r1_score,
)
from sec4sr_pl.metrics.verification import (
    DETCurve,
    DetectionErrorRates,
    DetectionErrors,
    DetectionErrorTradeoff,
    EqualErrorRate,
    MinDCF,
    det_curve,
    detection_errors,
    equal_error_rate,
    equal_error_threshold,
    min_dcf,
    min_dcf_threshold,
    verification_scores,
)

__all__ = [
    "AttackDirectionRates",
    "AttackDirections",
    "AttackSuccessRate",
    "DETCurve",
    "DetectionErrorRates",
    "DetectionErrorTradeoff",
    "DetectionErrors",
    "EqualErrorRate",
    "Fraction",
    "IdentificationErrorRate",
    "MinDCF",
    "OpenSetErrorRates",
    "OpenSetErrors",
    "PerceptualEvaluationOfSpeechQuality",
    "ShortTimeObjectiveIntelligibility",
    "SignalToNoiseRatio",
    "attack_directions",
    "attack_success_rate",
    "clustered_interval",
    "det_curve",
    "detection_errors",
    "equal_error_rate",
    "equal_error_threshold",
    "identification_error_rate",
    "identification_scores",
    "l0_norm",
    "l1_norm",
    "l2_norm",
    "linf_norm",
    "min_dcf",
    "min_dcf_threshold",
    "open_set_errors",
    "perceptual_evaluation_of_speech_quality",
    "r1_score",
    "short_time_objective_intelligibility",
    "signal_to_noise_ratio",
    "verification_scores",
    "wilson_interval",
]
