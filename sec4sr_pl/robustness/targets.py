"""The speaker that a targeted attack wants, chosen once per utterance."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sec4sr_pl.attacks import Objective
from sec4sr_pl.draws import key

Goal = Literal["untargeted", "random", "hardest", "simplest"]


def choose_targets(
    scores: Tensor,
    decisions: Tensor,
    labels: Tensor,
    names: Sequence[str],
    goal: Goal,
    objective: Objective,
    seed: int,
) -> list[int]:
    """A target for each utterance, from the undefended recognizer's benign scores.

    Candidates are all decisions but the true label and the current decision; if none is left, all but the decision.

    Args:
        scores: (batch, speakers).
        decisions: (batch,) on these scores.
        labels: (batch,) true ones.
        names: utterance ids; a random target depends on its utterance's name and the seed alone.
        goal: `random`; `hardest`, the enrolled candidate of the lowest score; `simplest`, of the highest. Where no
            candidate is enrolled, as for a claim to be one speaker, these are as random.
        objective: says what can be decided.
        seed: of random targets.

    Raises:
        ValueError: nobody left to be taken for.
    """
    targets = []
    for row, decision, own, name in zip(scores.tolist(), decisions.tolist(), labels.tolist(), names, strict=True):
        everyone = objective.decisions(own, scores.shape[1])
        candidates = [c for c in everyone if c not in (own, decision)] or [c for c in everyone if c != decision]
        enrolled = [c for c in candidates if c >= 0]
        if not candidates:
            raise ValueError(f"There is no {goal} target for '{name}': the recognizer knows {scores.shape[1]} speakers")
        if goal == "random" or not enrolled:
            targets.append(candidates[key(seed, name, "target") % len(candidates)])
        else:
            pick = min if goal == "hardest" else max
            targets.append(pick(enrolled, key=row.__getitem__))
    return targets
