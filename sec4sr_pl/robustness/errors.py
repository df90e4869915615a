"""What a recognizer with a threshold does wrong, benign and under attack: FAR, FRR, and IER, or EER and minDCF."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sec4sr_pl.metrics import equal_error_rate, min_dcf
from sec4sr_pl.robustness.campaign import Record
from sec4sr_pl.robustness.rates import Rate, shown

Errors = dict[str, Rate | float | None]
"""FAR, FRR and IER at the threshold; in verification EER and minDCF, over all thresholds, in the place of IER."""


def directions(records: Sequence[Record]) -> tuple[Rate, Rate, Rate]:
    """Imposters who are accepted, speakers who are rejected, and speakers who are taken for another."""
    imposters = [record for record in records if record["label"] < 0]
    speakers = [record for record in records if record["label"] >= 0]
    return (
        Rate.of(record["decision"] >= 0 for record in imposters),
        Rate.of(record["decision"] < 0 for record in speakers),
        Rate.of(record["decision"] >= 0 and record["decision"] != record["label"] for record in speakers),
    )


def errors(records: Sequence[Record], verification: bool, target_prior: float) -> Errors:
    """Errors over all records; None where there was nobody to make one.

    Args:
        records: of the benign utterances, or of an attack.
        verification: labels and decisions are those of claims, or of one speaker.
        target_prior: probability of a true claim, for minDCF.
    """
    accepted, rejected, confused = directions(records)
    if not verification:
        return {"FAR": accepted, "FRR": rejected, "IER": confused}
    scores = claimed_scores(records)
    costs = {"EER": equal_error_rate(*scores), "minDCF": min_dcf(*scores, target_prior)}
    found = {name: None if cost.isnan() else float(cost) for name, cost in costs.items()}
    return {"FAR": accepted, "FRR": rejected, **found}


def claimed_scores(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """The scores of true and of false claims, (targets,) and (nontargets,), above the threshold.

    In verification a margin is that, up to the sign that the goal gives it; of a randomized recognizer, its mean.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for record in records:
        label, target = record["label"], record["target"]
        rises = label < 0 if target is None else target >= 0  # what the goal wants of the score
        scores[label >= 0].append(-record["margin"] if rises else record["margin"])
    return torch.tensor(scores[True], dtype=torch.float64), torch.tensor(scores[False], dtype=torch.float64)


def said(found: Errors) -> dict[str, str]:
    """For people, by title: in percent, but for the cost."""
    texts = {}
    for name, value in found.items():
        if isinstance(value, Rate):
            texts[f"{name} % [95 %]"] = str(value)
        elif name == "EER":
            texts["EER %"] = shown(None if value is None else 100 * value, 1)
        else:
            texts[name] = shown(value, 3)
    return texts


def columns(found: Errors) -> dict[str, float | None]:
    """For a spreadsheet, by title."""
    numbers: dict[str, float | None] = {}
    for name, value in found.items():
        numbers |= value.columns(name) if isinstance(value, Rate) else {name: value}
    return numbers
