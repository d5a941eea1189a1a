"""NN, DANN and scDGN: what each adds to the label loss.

A method is a function from the encoder's output to the domain loss of every model. All three train on

    label loss + weight * domain loss

and lambda enters through `weight` (`lambda_enters = "loss"`) or through the strength of the gradient reversal
(`lambda_enters = "reversal"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scdgn.core import losses, networks
from scdgn.core.networks import Parameters


@dataclass(frozen=True)
class Batch:
    """One mini-batch of every model, the labelled cells first, then their drawn partners or the unlabelled cells.

    Attributes
    ----------
    labels, label_weight
        (models, labelled cells): types, and weights in the label loss.
    types, domains, weight
        (models, labelled and unlabelled cells): types, pseudo-labels included, domains, and weights in the domain loss;
        (streams, labelled cells) where there are no unlabelled ones, since the models of a stream then agree.
    same, use
        (models, labelled cells): drawn pairs (see `pairs`), else None.
    stream
        (models,) int64, the stream of each model; None where there is one stream, or one for each.
    """

    labels: Tensor
    label_weight: Tensor
    types: Tensor
    domains: Tensor
    weight: Tensor
    same: Tensor | None = None
    use: Tensor | None = None
    stream: Tensor | None = None


@dataclass(frozen=True)
class Constants:
    """What a model's losses need besides the batch, one row per model.

    Attributes
    ----------
    types, domains
        (models, types) and (models, domains) bool: those among a model's training cells.
    margin
        (models,)
    """

    types: Tensor
    domains: Tensor
    margin: Tensor

    def first(self, models: int) -> Constants:
        """Those of the first models."""
        return Constants(self.types[:models], self.domains[:models], self.margin[:models])


DomainLoss = Callable[[Parameters, Tensor, Batch, Tensor, Constants], Tensor]


def nn(parameters: Parameters, latent: Tensor, batch: Batch, reversal: Tensor, constants: Constants) -> Tensor:
    """No domain loss."""
    return torch.zeros_like(reversal)


def dann(parameters: Parameters, latent: Tensor, batch: Batch, reversal: Tensor, constants: Constants) -> Tensor:
    """Cross-entropy of a classifier of the domains (Ganin et al. 2016), behind gradient reversal."""
    logits = networks.domain_logits(parameters, latent, reversal, constants.domains)
    return losses.cross_entropy(logits, _per_model(batch.domains, batch), _per_model(batch.weight, batch))


def scdgn(parameters: Parameters, latent: Tensor, batch: Batch, reversal: Tensor, constants: Constants) -> Tensor:
    """Contrastive loss of domain codes (Ge et al. 2020), behind gradient reversal."""
    code = networks.domain_code(parameters, latent, reversal)
    if batch.same is None or batch.use is None:
        shares = losses.pair_shares(batch.types, batch.domains, batch.weight)
        shares = losses.PairShares(*(_per_model(share, batch) for share in shares))
        return losses.batch_pair_loss(code, shares, constants.margin)
    anchor, partner = code.chunk(2, dim=2)
    weight = _per_model(batch.weight, batch)
    return losses.pair_loss(anchor, partner, batch.same, batch.use, weight, constants.margin)


def _per_model(rows: Tensor, batch: Batch) -> Tensor:
    """One row per model, of one row per stream or model; a single row is left to broadcast."""
    return rows if batch.stream is None or len(rows) in (1, len(batch.stream)) else rows.index_select(0, batch.stream)


DOMAIN_LOSS: dict[str, DomainLoss] = {"nn": nn, "dann": dann, "scdgn": scdgn}


def step_losses(
    method: str, parameters: Parameters, hidden: Tensor, batch: Batch, reversal: Tensor, constants: Constants
) -> tuple[Tensor, Tensor]:
    """Label loss and domain loss of every model on one mini-batch, each (models,).

    Parameters
    ----------
    method
        `nn`, `dann` or `scdgn`.
    parameters
        Stacked parameters.
    hidden
        (models, hidden, cells), what the second layer is given.
    batch, constants
        The cells and what is known of the models.
    reversal
        (models,), strength of the gradient reversal.
    """
    latent = networks.latent_units(parameters, hidden)  # (models, latent, cells)
    logits = networks.label_logits(parameters, latent[:, :, : batch.labels.shape[1]], constants.types)
    label = losses.cross_entropy(logits, batch.labels, batch.label_weight)
    return label, DOMAIN_LOSS[method](parameters, latent, batch, reversal, constants)
