"""A batch's own classifier: what it learns, what it leaves alone, and how it is averaged with the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from scdgn.core import query_classifier
from scdgn.core.config import UNLABELED
from scdgn.core.expression import compressed
from scdgn.core.query_classifier import (
    COMPONENTS,
    LEAST_SURE,
    OF_A_TYPE,
    STRENGTH,
    SURE,
    WEIGHT,
    averaged,
    learn,
    principal_components,
)

AS_IT_IS = torch.eye(6)  # components, where those of the cells are their input


def drawn(cells: int = 400, types: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Components of cells, and probabilities that are sure of most of them."""
    draws = torch.Generator().manual_seed(seed)
    codes = torch.arange(cells) % types
    z = torch.randn(cells, 6, generator=draws) + 1.5 * torch.randn(types, 6, generator=draws)[codes]
    logits = 3 * torch.nn.functional.one_hot(codes, types) + torch.randn(cells, types, generator=draws)
    return z, logits.softmax(dim=1)


# --- components


def test_the_components_are_the_directions_of_most_variance() -> None:
    draws = torch.Generator().manual_seed(0)
    loadings = torch.randn(300, COMPONENTS, generator=draws)
    x = torch.randn(500, COMPONENTS, generator=draws) @ loadings.T + 5 + 0.01 * torch.randn(500, 300, generator=draws)
    found = principal_components(x, torch.zeros(500, dtype=torch.int64))
    torch.testing.assert_close(found @ found.T, torch.eye(COMPONENTS), atol=1e-5, rtol=0)
    exact = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False).Vh[:COMPONENTS]
    assert torch.linalg.svdvals(exact @ found.T).min() > 0.999  # the same space


@pytest.mark.parametrize(("cells", "genes"), [(30, 200), (500, 12)])
def test_there_are_no_more_components_than_genes(cells: int, genes: int) -> None:
    x = torch.rand(cells, genes)
    found = principal_components(x, torch.zeros(cells, dtype=torch.int64))
    assert found.shape == (min(COMPONENTS, genes), genes) and found.isfinite().all()


def test_components_of_sparse_input_and_without_the_cells_that_have_no_label() -> None:
    x = torch.rand(200, 80) * (torch.rand(200, 80) < 0.3)
    labels = torch.where(torch.arange(200) < 150, 0, UNLABELED)
    found = principal_components(x, labels)
    torch.testing.assert_close(principal_components(compressed(x), labels), found)
    assert torch.equal(principal_components(x[:150], labels[:150]), found)


# --- learning


def test_it_is_the_logistic_regression_of_the_sure_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_classifier, "STEPS", 500)
    z, p = drawn()
    z = z * 7 + 3
    found = learn(z, p, AS_IT_IS)
    assert found is not None
    sure = (p.amax(dim=1) >= SURE).numpy()
    codes = p.argmax(dim=1).numpy()[sure]
    own = z.double().numpy()[sure]
    own = (own - own.mean(axis=0)) / np.sqrt(np.square(own - own.mean(axis=0)).mean())
    share = 1 / (4 * np.bincount(codes)[codes])
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(own, codes, sample_weight=STRENGTH * share)
    ours = found.log_probabilities(z[torch.from_numpy(sure)]).exp().numpy()
    assert np.abs(ours - theirs.predict_proba(own)).max() < 1e-4


def test_the_size_of_the_input_does_not_matter() -> None:
    z, p = drawn()
    one, two = learn(z, p, AS_IT_IS), learn(z * 50 - 10, p, AS_IT_IS)
    assert one is not None and two is not None
    torch.testing.assert_close(one.log_probabilities(z), two.log_probabilities(z * 50 - 10), atol=1e-3, rtol=1e-3)


def test_types_of_few_cells_are_not_learned() -> None:
    z, p = drawn()
    p = torch.cat([p, torch.zeros(len(p), 2)], dim=1)
    rare = torch.arange(OF_A_TYPE - 1)
    p[rare], p[rare, 4] = 0.0, 1.0  # one type with too few cells, another without any
    found = learn(z, p, AS_IT_IS)
    assert found is not None
    assert found.bias.isfinite().tolist() == [True] * 4 + [False] * 2 and not found.weights[:, 4:].any()


def test_nothing_is_learned_where_it_would_be_a_guess() -> None:
    z, p = drawn()
    assert learn(z[: LEAST_SURE - 1], p[: LEAST_SURE - 1], AS_IT_IS) is None
    assert learn(z, torch.full_like(p, 1 / 4), AS_IT_IS) is None  # sure of nothing
    one = torch.zeros_like(p)
    one[:, 0] = 1.0
    assert learn(z, one, AS_IT_IS) is None
    one[:100] = p[:100]  # most cells are called the same
    assert learn(z, one, AS_IT_IS) is None
    assert learn(z, p, AS_IT_IS) is not None


# --- averaging


def test_probabilities_are_averaged_within_what_the_known_types_have_together() -> None:
    logits = torch.randn(2, 5, 4)
    logits[..., 3] = -torch.inf  # never trained
    said = torch.randn(5, 2).log_softmax(dim=1)
    own = torch.full((5, 4), -torch.inf)
    own[:, :2] = said  # two types are known
    found = averaged(logits, own)
    p = logits.softmax(dim=2)
    expected = p.clone()
    together = p[..., :2].sum(dim=2, keepdim=True)
    expected[..., :2] = (1 - WEIGHT) * p[..., :2] + WEIGHT * said.exp() * together
    torch.testing.assert_close(found.softmax(dim=2), expected)
    torch.testing.assert_close(found.logsumexp(dim=2), logits.logsumexp(dim=2))
    assert (found[..., 3] == -torch.inf).all()


def test_certain_models_and_classifiers_stay_finite() -> None:
    logits = torch.tensor([[[500.0, -500.0, 0.0]]])
    found = averaged(logits, torch.tensor([[-400.0, 0.0, -torch.inf]]))
    assert found.isfinite().all() and found.argmax() == 1
