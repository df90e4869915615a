"""What a recognizer with a threshold does wrong, benign and under attack: FAR, FRR, and IER, or EER and minDCF."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from sec4sr_pl.metrics import equal_error_rate, min_dcf
from sec4sr_pl.robustness.campaign import Record
from sec4sr_pl.robustness.rates import Rate, shown

Errors = dict[str, Rate | float | None]
"""FAR, FRR and IER at the threshold; in verification EER and minDCF, over all thresholds, in the place of IER."""


Groups = Mapping[str, Hashable]
"""What an utterance of a campaign was made from, by its name: one recording may stand for several claims."""


def rate(records: Sequence[Record], flag: Callable[[Record], bool], groups: Groups) -> Rate:
    """How many records have a flag, with an interval that counts what was made from one recording together."""
    return Rate.of(map(flag, records), [groups[record["name"]] for record in records])


def directions(records: Sequence[Record], groups: Groups) -> tuple[Rate, Rate, Rate]:
    """Imposters who are accepted, speakers who are rejected, and speakers who are taken for another."""
    imposters = [record for record in records if record["label"] < 0]
    speakers = [record for record in records if record["label"] >= 0]
    return (
        rate(imposters, lambda record: record["decision"] >= 0, groups),
        rate(speakers, lambda record: record["decision"] < 0, groups),
        rate(speakers, lambda record: record["decision"] >= 0 and record["decision"] != record["label"], groups),
    )


def errors(records: Sequence[Record], groups: Groups, verification: bool, target_prior: float) -> Errors:
    """Errors over all records; None where there was nobody to make one.

    Args:
        records: of the benign utterances, or of an attack.
        groups: what was made from one recording.
        verification: labels and decisions are those of claims, or of one speaker.
        target_prior: probability of a true claim, for minDCF.
    """
    accepted, rejected, confused = directions(records, groups)
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
