"""The worst of several attacks for each utterance."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.written import as_written
from sec4sr_pl.types import mask_padding


class WorstCase(Attack):
    """Attacks in turn, each on the utterances still standing; a subclass writes `runs`.

    An utterance has fallen when the goal is achieved, with the objective's confidence, in every one of `draws` fresh
    draws; one that stands gets the result of the lowest mean margin. Results are judged as a file will hold them: where
    the utterance is 16-bit, they are rounded inside the ball.
    """

    stops_at_success = True
    returns = "worst of its members"
    draws: int

    @abstractmethod
    def runs(self, rows: Rows, objective: Objective) -> Iterator[Tensor]:
        """One result after the other, (still standing, time); `rows` holds fewer utterances after each."""

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The result of the lowest mean margin for each utterance."""
        worst, lowest = waveforms.clone(), waveforms.new_full((len(waveforms),), torch.inf)
        rows = Rows.of(score, labels, lengths, generator, clean=waveforms)
        for found in self.runs(rows, objective):
            low, high = (rows.clean - self.epsilon).clamp_min(-1.0), (rows.clean + self.epsilon).clamp_max(1.0)
            found = mask_padding(as_written(found.clamp(low, high), rows.clean, self.epsilon), rows.lengths)
            margins = torch.stack(
                [objective.loss(rows.score(found, rows.lengths), rows.labels) for _ in range(self.draws)]
            ).to(lowest)
            fallen = (margins < 0.0).all(0)
            margin = margins.mean(0).masked_fill(fallen, -torch.inf)
            lower = margin < lowest[rows.index]
            chosen = rows.index[lower]
            worst[chosen], lowest[chosen] = found[lower], margin[lower]
            if not rows.keep(~fallen):
                break
        return worst
