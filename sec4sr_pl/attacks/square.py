"""The Square attack in one dimension: random search that sees scores only."""

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import row_generators
from sec4sr_pl.attacks.written import lasting
from sec4sr_pl.types import valid_mask

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Parts of the queries after which segments become half as long."""
LOWEST_TONE = 0.003
"""Cycles a sample of the slowest square wave: 48 Hz at 16 kHz."""


class Square(Attack):
    """Random search on segments of time in the L-infinity ball, by scores alone.

    Each query replaces the change within a random segment by a square wave of amplitude epsilon with random frequency
    (log-uniform from 48 Hz to Nyquist at 16 kHz) and phase, and keeps it where the margin became lower: the corners of
    the ball that the paper's squares of one sign reach in images, with the pitch that spectrograms hear. Segments begin
    with a part of the utterance and halve on the paper's schedule. An utterance leaves as soon as its goal is achieved,
    with the objective's confidence and in every draw. Random numbers come from each row's own generator before the
    search starts. Host synchronizations: a few a query.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        steps: candidates asked, without the start; each costs `draws` forward rows.
        segment: length of the first segments, as a part of the utterance.
        draws: passes averaged for each candidate against randomized recognizers.

    Raises:
        ValueError: a parameter outside its range.

    Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
    2020, algorithm 1; its squares are segments here.
    """

    stops_at_success = True
    knowledge = "scores"

    def __init__(self, epsilon: float = 0.002, steps: int = 5_000, segment: float = 0.8, draws: int = 1) -> None:
        if not (0.0 <= epsilon <= 2.0 and 0.0 < segment <= 1.0):
            raise ValueError(f"Expected epsilon in [0, 2] and segment in (0, 1], got {epsilon} and {segment}")
        if steps < 1 or draws < 1:
            raise ValueError(f"Expected steps >= 1 and draws >= 1, got {steps} and {draws}")
        self.epsilon, self.steps, self.segment, self.draws = epsilon, steps, segment, draws

    @property
    def name(self) -> str:
        """Square-5000, and what differs from the defaults."""
        marks = [f"seg{self.segment:g}"] * (self.segment != 0.8) + [f"EOT{self.draws}"] * (self.draws > 1)
        marks += [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)
        return "-".join(["Square", str(self.steps), *marks])

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The waveform of the lowest margin."""
        batch, time = waveforms.shape
        generators = row_generators(generator, batch)
        tables = [torch.rand(self.steps + 1, 3, generator=own, device=own.device) for own in generators]
        result = waveforms.clone()
        rows = Rows.of(
            score,
            labels,
            lengths,
            generators,
            clean=waveforms,
            x=waveforms,
            lowest=torch.full_like(waveforms[:, 0], torch.inf) if time else waveforms.new_zeros(batch),
            draws=torch.stack(tables).to(waveforms) if batch else waveforms.new_zeros(0, self.steps + 1, 3),
        )
        for step in range(self.steps + 1):
            part = 1.0 if step == 0 else self.segment / 2.0 ** sum(step > place * self.steps for place in HALVINGS)
            candidate = self.candidate(rows, rows.draws[:, step], part)
            scores = [rows.score(candidate, rows.lengths) for _ in range(self.draws)]
            margins = torch.stack([objective.loss(drawn, rows.labels) for drawn in scores]).to(rows.lowest)
            margin, achieved = margins.mean(0), (margins < 0.0).all(0)
            achieved = lasting(achieved, candidate, rows, self.epsilon, objective, self.draws)
            lower = (margin < rows.lowest) | achieved
            rows.x = torch.where(lower.unsqueeze(1), candidate, rows.x)
            rows.lowest = torch.where(lower, margin, rows.lowest)
            result[rows.index[lower]] = candidate[lower]
            if not rows.keep(~achieved):
                break
        return result

    def candidate(self, rows: Rows, draws: Tensor, part: float) -> Tensor:
        """The rows with a square wave in a segment: (rows, 3) uniform draws are its place, frequency and phase."""
        size = (part * rows.lengths).ceil()
        first = (draws[:, 0] * (rows.lengths - size + 1)).floor()
        tone = LOWEST_TONE * (0.5 / LOWEST_TONE) ** draws[:, 1]
        place = torch.arange(rows.x.shape[1], device=rows.x.device)
        cycles = tone.unsqueeze(1) * place + draws[:, 2:]
        wave = torch.where(cycles % 1.0 < 0.5, self.epsilon, -self.epsilon)
        inside = (place >= first.unsqueeze(1)) & (place < (first + size).unsqueeze(1))
        inside &= valid_mask(rows.lengths, rows.x.shape[1])
        return torch.where(inside, (rows.clean + wave).clamp(-1.0, 1.0), rows.x)
