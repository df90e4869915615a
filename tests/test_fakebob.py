"""FAKEBOB's bookkeeping of utterances that leave at different times."""

import pytest
import torch
from torch import Tensor

from sec4sr_pl.attacks import FAKEBOB


def test_what_is_known_of_an_utterance_stays_its_own_when_others_leave() -> None:
    """Fault L10: after others have left, progress and histories are not those of another place in the batch.

    Lengths tell the utterances apart: one falls at once, one never moves, one halves its steps, one has far to go.
    """
    sizes = {"falls": 1_000, "stalls": 999, "rises": 998, "far": 997}
    points: dict[int, list[Tensor]] = {size: [] for size in sizes.values()}

    def score(w: Tensor, lengths: Tensor) -> Tensor:
        asked = len(set(lengths.tolist())) == len(lengths)  # the points themselves, not those around them
        margins = []
        for own, size in zip(w, lengths.tolist(), strict=True):
            if asked:
                points[size].append(own[:size].clone())
            looks = len(points[size])
            margins.append(
                {
                    "falls": own.sum() * 0 + (1.0 if looks < 20 else -1.0),
                    "stalls": own.sum() * 0 + 1.0,
                    "rises": 3.0 + 0.1 * looks + 1e-4 * own.sum(),
                    "far": 3.0 + 1e-4 * own.sum() - 0.01 * looks,
                }[next(name for name, own_size in sizes.items() if own_size == size)]
            )
        return torch.stack([torch.stack(margins), torch.zeros(len(w))], 1)

    result = FAKEBOB(1.0, steps=130, step_size=1e-3, smallest_step=1e-5, samples=2)(
        score,
        torch.zeros(4, 1_000),
        torch.zeros(4, dtype=torch.int64),
        torch.tensor(list(sizes.values())),
        generator=torch.Generator().manual_seed(0),
    )
    each, whole = 3, 130 * 3 + 1  # one look at the labels was the first of 20
    assert result.queries.tolist() == [19 * each + 1, 101 * each + 1, 101 * each + 1, whole + 1]
    last = {name: float((points[size][-2] - points[size][-3]).abs().max()) for name, size in sizes.items()}
    assert last["far"] == pytest.approx(1e-3, rel=0.01)
    assert last["rises"] == pytest.approx(1e-5, rel=0.01)
