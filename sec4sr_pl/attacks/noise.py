"""The control of attacks in a ball: noise that knows nothing."""

from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import row_generators, uniform


class UniformNoise(Attack):
    """Uniform noise in the L-infinity ball, without a query: what an attack must do better than.

    A control and no attack: a campaign draws it by itself, and counts it neither in the worst case nor in R1.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.

    Raises:
        ValueError: epsilon outside its range.

    Source: Athalye et al., "Obfuscated gradients give a false sense of security", 2018, section 3.1 (random sampling).
    """

    queries_victim = False
    knowledge, randomized, returns = "nothing", "needs nothing", "one draw"

    def __init__(self, epsilon: float = 0.002) -> None:
        if not 0.0 <= epsilon <= 2.0:
            raise ValueError(f"Expected epsilon in [0, 2], got {epsilon}")
        self.epsilon = epsilon

    @property
    def name(self) -> str:
        """UniformNoise, and the radius where it differs from the default."""
        return "-".join(["UniformNoise", *[f"eps{self.epsilon:g}"] * (self.epsilon != 0.002)])

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The noisy utterance."""
        draws = uniform(waveforms, row_generators(generator, len(waveforms)))
        return waveforms + self.epsilon * (2.0 * draws - 1.0)
