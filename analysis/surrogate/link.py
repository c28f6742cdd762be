"""The scale on which the effects of mixers add up: quality itself, or quality bent so that losses multiply.

Where one bad layer makes the next one worse, the losses of layers compound, and no sum over neighbours can say so, however well each layer
is known. On the scale z = top - r log(1 + (top - q) / r) a product of losses is a sum. Near the top z is q, far below a logarithm of it.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Link:
    """Quality q against the latent scale z, both in nats per token and rising together; equal where ``reach`` is infinite."""

    top: float = 0.0
    """Where z = q and the slope is 1: the best quality that was scored."""
    reach: float = np.inf
    """How far below the top a loss is that bends the scale by half its slope."""

    def latent(self, quality: np.ndarray) -> np.ndarray:
        """z of qualities under top + reach."""
        return quality if np.isinf(self.reach) else self.top - self.reach * np.log1p((self.top - quality) / self.reach)

    def quality(self, latent: np.ndarray) -> np.ndarray:
        """q of any z."""
        return latent if np.isinf(self.reach) else self.top - self.reach * np.expm1((self.top - latent) / self.reach)

    def slope(self, latent: np.ndarray) -> np.ndarray:
        """dq/dz at z."""
        return np.ones_like(latent) if np.isinf(self.reach) else np.exp((self.top - latent) / self.reach)
