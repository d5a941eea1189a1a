"""Which ensemble of trials is best on a domain that has not chosen it; no test batch is opened.

    python -m benchmarks.ensembles DATA_DIR --splits SPLITS.json [--methods nn dann scdgn] [--seeds 2]

The trials are the default preset, the preset with variable genes (which fails where genes are many and cells few) and
the portfolio. Each is trained for every case of `benchmarks.adaptation`; to each case in turn the other cases of its
set are the folds that choose: for a protocol of the RNA mixtures and for the control cells of Kang et al. those of the
same file. Printed is macro-F1 of the ensemble that a rule makes of five trials, the preset and four others in turn,
plain and with every trial corrected for its query: the means over sets near and far, each set counting once.

    best        the trial that is best on the folds, alone
    mean        of all trials
    greedy      ensemble selection with replacement, ten times, from the best one (Caruana et al. 2004)
    committee   what a search exports (`committee.members`), chosen by plain and by corrected predictions
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import get_args

import numpy as np
import torch

from benchmarks.adaptation import FAR, Case, cases
from benchmarks.portfolio import arguments
from scdgn.cells.dataset import Dataset
from scdgn.core.config import Method
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.search.left_out import LeftOut, together
from scdgn.search.stages import committee
from scdgn.search.study.portfolio import PORTFOLIO
from scdgn.search.study.space import Space, Value

SIZE, TRIALS, DRAWS = 10, 5, 3
NEAR = dict(zip(FAR, ("rnamix_2protocols", "pbmc_5batch"), strict=True))
"""The set whose cases choose for a far one."""

Trials = Mapping[int, Sequence[LeftOut]]
Rule = Callable[[Trials, Trials], Mapping[int, int]]
"""From what trials say of the folds, plain and corrected, to how many models of each there are."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--mixtures", default="rnamix_2protocols", help="the file of the RNA mixtures")
    parser.add_argument("--methods", nargs="+", default=get_args(Method), choices=get_args(Method))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for method in options.methods:
        found: dict[str, list[dict[int, LeftOut]]] = defaultdict(list)
        for case in cases(options):
            found[case.set].append(trained(case, method, options.seeds))
        report(method, found)


def trained(case: Case, method: Method, seeds: int) -> dict[int, LeftOut]:
    """What every trial says of the query, by number; 0 is the preset."""
    space, query = Space.of(method, {}), case.dataset.take(case.query)
    trials: list[Mapping[str, Value]] = [{}, {"gene_selection": "variable"}, *PORTFOLIO[method]]
    found = {}
    for number, drawn in enumerate(trials):
        bundle = fit(case.dataset, case.train, *space.settings(drawn), range(seeds), device="cpu")
        plain, corrected = (logits(replace(bundle, corrects=corrects), query) for corrects in (False, True))
        types = list(bundle.cell_types)
        codes = [types.index(name) if name in types else len(types) for name in query.cell_types]
        labels = torch.tensor(codes)[torch.from_numpy(query.labels)]
        rows = torch.from_numpy(case.query)
        found[number] = LeftOut(case.set, rows, labels, plain, torch.zeros(plain.shape[:2]), corrected)
    return found


def logits(bundle: Bundle, query: Dataset) -> torch.Tensor:
    """Of the ensemble, (1, cells, types and one that is not trained)."""
    p = bundle.probabilities(bundle.input(query, bundle.correction(query, lambda: [query])))
    p = torch.from_numpy(p).clamp(min=1e-30)
    return torch.nn.functional.pad(p.log(), (0, 1), value=-torch.inf)[None]


def report(method: Method, found: Mapping[str, Sequence[Mapping[int, LeftOut]]]) -> None:
    """The scores of every rule."""
    subsets = [(0, *others) for others in combinations(sorted(next(iter(found.values()))[0])[1:], TRIALS - 1)]
    scores: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    for place, (name, case) in enumerate((name, case) for name, some in found.items() for case in some):
        folds = [other for other in found[NEAR.get(name, name)] if other is not case]
        for draw in range(DRAWS):
            trials = subsets[(place * DRAWS + draw * TRIALS) % len(subsets)]
            plain, corrected = (
                {number: [fold[number].as_predicted(corrects) for fold in folds] for number in trials}
                for corrects in (False, True)
            )
            for rule, choose in RULES.items():
                (mixed,) = together({number: [case[number]] for number in trials}, choose(plain, corrected))
                both = (committee.scores([mixed.as_predicted(corrects)], "macro_f1")[0] for corrects in (False, True))
                scores[rule, name].append(tuple(both))
    print(f"{method:18}{'near':>8}{'corrected':>11}{'far':>8}{'corrected':>11}")
    for rule in RULES:
        near, far = (
            np.mean([np.mean(scores[rule, name], axis=0) for name in found if (name in FAR) == is_far], axis=0)
            for is_far in (False, True)
        )
        print(f"{rule:18}{near[0]:8.4f}{near[1]:11.4f}{far[0]:8.4f}{far[1]:11.4f}", flush=True)


def score(trials: Trials, models: Mapping[int, int]) -> float:
    return float(np.mean(committee.scores(together(trials, models), "macro_f1")))


def best(trials: Trials) -> int:
    return max(trials, key=lambda number: score(trials, {number: 1}))


def greedy(trials: Trials) -> Mapping[int, int]:
    taken = {best(trials): 1}
    for _ in range(SIZE - 1):
        more = {number: score(trials, {**taken, number: taken.get(number, 0) + 1}) for number in trials}
        number = max(more, key=lambda number: (more[number], taken.get(number, 0)))
        taken[number] = taken.get(number, 0) + 1
    return taken


RULES: Mapping[str, Rule] = {
    "best": lambda plain, corrected: {best(plain): 1},
    "mean": lambda plain, corrected: dict.fromkeys(plain, 1),
    "greedy": lambda plain, corrected: greedy(plain),
    "committee, plain": lambda plain, corrected: committee.members(plain, best(plain), SIZE, "macro_f1"),
    "committee": lambda plain, corrected: committee.members(corrected, best(corrected), SIZE, "macro_f1"),
}


if __name__ == "__main__":
    main()
