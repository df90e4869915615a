"""SirenAttack: particle swarm optimization, by scores alone."""

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.source import copies_at_a_time, uniform
from sec4sr_pl.attacks.written import lasting
from sec4sr_pl.types import mask_padding

PULL = 1.4961
"""Of a particle's own best place, and of the swarm's."""
INERTIA = (0.9, 0.1)
"""Part of its velocity that a particle keeps, falling linearly over an epoch."""
PATIENCE = 10
"""Steps after which a swarm must have made progress, and epochs after which an utterance must have."""
PROGRESS = 0.9999
"""It goes on while its lowest loss falls below this part of what it was."""


class SirenAttack(Attack):
    """A swarm of particles in the L-infinity ball of each utterance, by scores alone.

    Each step moves a particle by v <- w v + 1.4961 (r (its best place - x) + r' (the swarm's best - x)), with r and r'
    uniform in [0, 1) for each sample. Each epoch draws the swarm anew around the best place so far, which is the
    utterance itself at first. An utterance stops by itself: an epoch whose lowest margin stalls for 10 steps ends, an
    utterance that stalls for 10 epochs, or whose goal is achieved, with the objective's confidence and in every draw,
    leaves. It returns the waveform of the lowest margin. Memory: five copies of the batch a particle. Numbers are
    drawn where the generators live, by default on the CPU. Host synchronizations: a few a step.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        particles: of an utterance.
        epochs: swarms one after the other.
        steps: of each swarm.
        draws: passes averaged for each particle against randomized recognizers.

    Raises:
        ValueError: a parameter outside its range.

    Source: Du et al., "SirenAttack: generating adversarial audio for end-to-end acoustic systems", 2020, algorithm 1;
    epochs and stopping as in the public code of Chen et al., "Towards understanding and mitigating audio adversarial
    examples for speaker recognition", 2022.
    """

    stops_at_success = True
    knowledge = "scores"

    def __init__(
        self, epsilon: float = 0.002, particles: int = 50, epochs: int = 30, steps: int = 300, draws: int = 1
    ) -> None:
        if not 0.0 <= epsilon <= 2.0:
            raise ValueError(f"Expected epsilon in [0, 2], got {epsilon}")
        if min(particles, epochs, steps, draws) < 1:
            raise ValueError(
                f"Expected particles, epochs, steps and draws >= 1, got {particles}, {epochs}, {steps} and {draws}"
            )
        self.epsilon, self.particles, self.epochs, self.steps = epsilon, particles, epochs, steps
        self.draws = draws

    @property
    def name(self) -> str:
        """Siren-30x300x50 by epochs, steps and particles, and what differs from the defaults."""
        marks = [f"EOT{self.draws}"] * (self.draws > 1) + [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)
        return "-".join(["Siren", f"{self.epochs}x{self.steps}x{self.particles}", *marks])

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
        best, lowest = waveforms.clone(), waveforms.new_full((len(waveforms),), torch.inf)
        reach = mask_padding(torch.full_like(waveforms, self.epsilon), lengths)
        everyone = Rows.of(
            score,
            labels,
            lengths,
            generator,
            clean=waveforms,
            low=(waveforms - reach).clamp_min(-1.0),
            high=(waveforms + reach).clamp_max(1.0),
            checked=lowest.clone(),
        )
        for epoch in range(self.epochs):
            self.swarm(everyone, best, lowest, objective)
            reached = lowest[everyone.index]
            going = reached > -torch.inf
            if epoch % PATIENCE == 0:
                going &= reached <= PROGRESS * everyone.checked
                everyone.checked = reached
            if not everyone.keep(going):
                break
        return best

    def swarm(self, everyone: Rows, best: Tensor, lowest: Tensor, objective: Objective) -> None:
        """One epoch; brings the whole batch's `best` and `lowest` up to date, -inf where the goal is achieved."""
        rows = Rows(**vars(everyone))
        places = [uniform(rows.low, rows.generators) for _ in range(self.particles)]
        speeds = [2.0 * uniform(rows.low, rows.generators) - 1.0 for _ in range(self.particles)]
        span = (rows.high - rows.low).unsqueeze(1)
        rows.x = rows.low.unsqueeze(1) + span * torch.stack(places, 1)
        rows.x[:, 0] = best[rows.index]
        rows.velocity = span * torch.stack(speeds, 1)
        rows.own, rows.own_loss = rows.x.clone(), rows.x.new_full(rows.x.shape[:2], torch.inf)
        rows.checked = torch.full_like(rows.checked, torch.inf)
        for step in range(self.steps + 1):
            loss, achieved = self.look(rows, objective)
            closer = loss < rows.own_loss
            rows.own = torch.where(closer.unsqueeze(2), rows.x, rows.own)
            rows.own_loss = torch.where(closer, loss, rows.own_loss)
            hopeful = achieved | ~achieved.any(1, keepdim=True)
            leader = loss.masked_fill(~hopeful, torch.inf).argmin(1, keepdim=True)
            leading = rows.x.take_along_dim(leader.unsqueeze(2), 1).squeeze(1)
            won = lasting(achieved.gather(1, leader).squeeze(1), leading, rows, self.epsilon, objective, self.draws)
            least = loss.gather(1, leader).squeeze(1).masked_fill(won, -torch.inf)
            lower = least < lowest[rows.index]
            chosen = rows.index[lower]
            best[chosen], lowest[chosen] = leading[lower], least[lower]
            reached = lowest[rows.index]
            going = reached > -torch.inf
            if step % PATIENCE == 0:
                going &= reached <= PROGRESS * rows.checked
                rows.checked = reached
            if step == self.steps or not rows.keep(going):
                break
            first, last = INERTIA
            self.move(rows, best[rows.index], first + (last - first) * (step + 1) / self.steps)

    def look(self, rows: Rows, objective: Objective) -> tuple[Tensor, Tensor]:
        """Mean over draws of each particle's margin, and its success in every draw, (rows, particles) each."""
        drawn = []
        for _ in range(self.draws):
            margins = []
            for part in rows.x.split(copies_at_a_time(rows.score, rows.low), 1):
                count = part.shape[1]
                scores = rows.score(part.transpose(0, 1).flatten(0, 1), rows.lengths.repeat(count))
                margins += [objective.loss(own, rows.labels) for own in scores.chunk(count)]
            drawn.append(torch.stack(margins, 1).to(rows.low))
        losses = torch.stack(drawn)
        return losses.mean(0), (losses < 0.0).all(0)

    def move(self, rows: Rows, leaders: Tensor, inertia: float) -> None:
        """One step of every particle, one after the other: a row's draws then depend on no other row."""
        for x, velocity, own in zip(*(each.unbind(1) for each in (rows.x, rows.velocity, rows.own)), strict=True):
            pulls = [uniform(x, rows.generators) * (goal - x) for goal in (own, leaders)]
            velocity.mul_(inertia).add_(PULL * (pulls[0] + pulls[1]))
            x.copy_(torch.clamp(x + velocity, rows.low, rows.high))
