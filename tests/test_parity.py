"""The reference preset computes what the authors' published code computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scdgn.core.config import Settings, preset
from scdgn.core.methods import Batch, Constants, step_losses
from scdgn.core.networks import hidden_sums
from scdgn.core.pack import block, lane
from scdgn.core.pack.batches import EpochPlan
from scdgn.core.pack.block import FIRST, Block
from scdgn.core.pack.members import UNLABELED, Cells, Member
from scdgn.core.training import train
from tests.conftest import shared_file

NAMES = {
    "feature_extractor.0": "hidden",
    "feature_extractor.2": "latent",
    "label_classifier.0": "label",
    "domain_classifier.0": "domain",
}


@dataclass
class Published:
    """Thirty batches through the authors' code: what went in and what came out."""

    arrays: dict[str, np.ndarray]

    @property
    def settings(self) -> Settings:
        hidden, latent = self.weights("init")["latent.weight"].shape[::-1]
        return replace(
            preset("reference"),
            hidden=hidden,
            latent=latent,
            domain_code=len(self.weights("init")["domain.weight"]),
            lambda_max=float(self.arrays["lam"]),
            margin=float(self.arrays["margin"]),
            lr=float(self.arrays["lr"]),
            momentum=float(self.arrays["momentum"]),
            weight_decay=float(self.arrays["weight_decay"]),
            batch_size=self.arrays["x1"].shape[1],
            epochs=1,
        )

    def weights(self, moment: str) -> dict[str, Tensor]:
        named = {}
        for theirs, ours in NAMES.items():
            named[f"{ours}.weight"] = torch.from_numpy(self.arrays[f"{moment}/{theirs}.weight"])
            named[f"{ours}.bias"] = torch.from_numpy(self.arrays[f"{moment}/{theirs}.bias"])[:, None]
        return named

    @property
    def cells(self) -> Cells:
        """Every cell of x1 in the order of the batches, then every partner, as cells that no label loss sees."""
        x = np.concatenate([self.arrays["x1"], self.arrays["x2"]]).reshape(-1, self.arrays["x1"].shape[2])
        labels = self.arrays["label"].ravel()
        return Cells(
            torch.from_numpy(x),
            torch.from_numpy(np.concatenate([labels, np.full_like(labels, UNLABELED)])),
            torch.zeros(len(x), dtype=torch.int64),
            types=len(self.weights("init")["label.weight"]),
            domain_count=1,
        )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    with np.load(shared_file("reference", "scdgn_parity.npz")) as archive:
        reference = Published(dict(archive))
    monkeypatch.setattr(block, "_initial", lambda member: reference.weights("init"))
    # Batches of the given data may lack a type that the classifier has: all its logits are live in the authors' code.
    all_types = torch.ones(len(reference.weights("init")["label.weight"]), dtype=torch.bool)
    monkeypatch.setattr(Member, "trained_types", all_types)
    return reference


def test_every_step_has_the_published_losses_and_the_last_the_published_weights(published: Published) -> None:
    a = published.arrays
    settings = published.settings
    block = Block([Member(settings, published.cells, seed=0)], [0], torch.device("cpu"))
    constants = Constants(
        torch.ones(1, len(a["init/label_classifier.0.bias"]), dtype=torch.bool),
        torch.ones(1, 1, dtype=torch.bool),
        torch.tensor([settings.margin]),
    )
    ones = torch.ones(1, settings.batch_size)
    for step in range(len(a["x1"])):
        labels = torch.from_numpy(a["label"][step])[None]
        x = torch.from_numpy(np.concatenate([a["x1"][step], a["x2"][step]]))[None]
        batch = Batch(
            labels=labels,
            label_weight=ones,
            types=labels,
            domains=torch.zeros_like(labels),
            weight=ones,
            same=torch.from_numpy(a["same_domain"][step])[None].float(),
            use=torch.from_numpy(a["use_domain"][step])[None],
        )
        parameters = {name: parameter.clone().requires_grad_() for name, parameter in block.parameters.items()}
        hidden = hidden_sums(parameters["hidden.weight"], parameters["hidden.bias"], x).tanh()
        label, domain = step_losses("scdgn", parameters, hidden, batch, torch.ones(1), constants)
        assert label.item() == pytest.approx(a["label_loss"][step], abs=1e-5)
        assert domain.item() == pytest.approx(a["domain_loss"][step], abs=1e-5)
        loss = (label + settings.lambda_max * domain).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        by_name = dict(zip(parameters, gradients, strict=True))
        block.update(by_name | {name: by_name[name].flatten() for name in FIRST}, 1)
    for name, weight in published.weights("final").items():
        torch.testing.assert_close(block.weights(0)[name], weight, atol=1e-5, rtol=0)


def test_the_training_loop_ends_with_the_published_weights(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = published.arrays
    steps, size = a["label"].shape
    rows = torch.arange(steps * size).view(1, steps, size)
    labels = torch.from_numpy(a["label"])[None]
    nobody = torch.empty(1, steps, 0, dtype=torch.int64)
    plan = EpochPlan(
        widths=[size] * steps,
        streams=[1] * steps,
        labeled=rows,
        labels=labels,
        domains=torch.zeros_like(labels),
        real=torch.ones(labels.shape),
        partners=rows + steps * size,
        same=torch.from_numpy(a["same_domain"])[None].float(),
        use=torch.from_numpy(a["use_domain"])[None],
        unlabeled=nobody,
        unlabeled_place=nobody,
        unlabeled_domains=nobody,
        unlabeled_real=nobody.float(),
    )
    monkeypatch.setattr(lane, "plan_epoch", lambda *_: plan)
    (outcome,) = train([Member(published.settings, published.cells, seed=0)])
    assert outcome.model is not None
    for name, weight in published.weights("final").items():
        torch.testing.assert_close(outcome.model.weights[name], weight, atol=1e-5, rtol=0)
    assert outcome.history[0].label_loss == pytest.approx(a["label_loss"].mean(), abs=1e-5)
    assert outcome.history[0].domain_loss == pytest.approx(a["domain_loss"].mean(), abs=1e-5)
