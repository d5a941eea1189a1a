"""What the authors' training loop does, restated: what the speed claims are measured against. Torch and numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scdgn.core.config import preset
from scdgn.core.networks import initial_parameters, layer_sizes
from scdgn.core.pairs import legal_partners
from scdgn.core.randomness import Purpose, generator

SETTINGS = preset("reference")


class PublishedLoop:
    """One model in training by the published settings.

    Partners are drawn once and copied out in double precision; every epoch shuffles all arrays in place on the host;
    every step builds its tensors from them, encodes cells and partners in two passes, and reads both losses and the
    training accuracy back. Their optional validation after each step is left out.

    The initial weights and the pairs are those of our trainer with the same seed, so that results compare.

    Parameters
    ----------
    x
        (cells, genes) float32.
    labels, domains
        (cells,) int64 codes.
    device
        Where to compute.
    seed
        Of the initial weights, the pairs and the order of the cells.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        labels: NDArray[np.int64],
        domains: NDArray[np.int64],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._device = device
        self._draws = np.random.RandomState(seed)  # whose shuffle they use
        pairs = legal_partners(torch.from_numpy(labels), torch.from_numpy(domains)).draw(generator(seed, Purpose.PAIRS))
        self._arrays: list[NDArray[Any]] = [
            x.copy(),
            x[pairs.partner.numpy()].astype(np.float64),
            labels.copy(),
            pairs.same.numpy().astype(np.float64),
            pairs.use.numpy().astype(np.float64),
        ]
        sizes = layer_sizes(SETTINGS, x.shape[1], int(labels.max()) + 1, int(domains.max()) + 1)
        initial = initial_parameters(sizes, SETTINGS.bias_init, seed, torch.float32)
        hidden, latent, label, domain = (_linear(initial, name).to(device) for name in sizes)
        self._encoder = nn.Sequential(hidden, nn.Tanh(), latent, nn.Tanh())
        self._classifier = label
        self._discriminator = nn.Sequential(domain, nn.Tanh())
        self._optimizer = torch.optim.SGD(
            [parameter for layer in (hidden, latent, label, domain) for parameter in layer.parameters()],
            lr=SETTINGS.lr,
            momentum=SETTINGS.momentum,
            nesterov=True,
            weight_decay=SETTINGS.weight_decay,
        )

    def epoch(self) -> None:
        """Train for one epoch."""
        state = self._draws.get_state()
        for array in self._arrays:
            self._draws.set_state(state)
            self._draws.shuffle(array)
        size = SETTINGS.batch_size
        for start in range(0, len(self._arrays[0]), size):
            self._step(*(array[start : start + size] for array in self._arrays))

    @torch.no_grad()
    def predict(self, x: Tensor) -> NDArray[np.int64]:
        """Codes of the predicted types: (cells, genes) to (cells,)."""
        return np.asarray(self._classifier(self._encoder(x)).argmax(dim=1).cpu().numpy())

    def _step(self, *batch: NDArray[Any]) -> None:
        one, other, same, use = (
            torch.tensor(batch[place], dtype=torch.float32, device=self._device) for place in (0, 1, 3, 4)
        )
        label = torch.tensor(batch[2], device=self._device)
        self._optimizer.zero_grad()
        first, second = self._encoder(one), self._encoder(other)
        logits = self._classifier(first)
        label_loss = nn.functional.cross_entropy(logits, label)
        codes = [self._discriminator(Reversed.apply(latent, 1.0)) for latent in (first, second)]
        squared = (codes[0] - codes[1]).square().sum(dim=1) + 1e-3
        apart = torch.relu(SETTINGS.margin - squared.sqrt()).square()
        domain_loss = (use * 0.5 * (same * squared + (1 - same) * apart)).mean()
        label_loss.item(), domain_loss.item(), (logits.argmax(dim=1) == label).float().sum().item()
        (label_loss + SETTINGS.lambda_max * domain_loss).backward()
        self._optimizer.step()


class Reversed(torch.autograd.Function):
    """Gradient reversal (Ganin et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, strength: float) -> Tensor:
        """The identity."""
        ctx.strength = strength
        return latent.view_as(latent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Minus `strength` times the gradient."""
        return -ctx.strength * gradient, None


def _linear(initial: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = initial[f"{name}.weight"], initial[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias[:, 0])
    return layer
