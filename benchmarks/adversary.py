"""What the adversary is worth, one setting at a time: by leave-one-domain-out folds, no test batch.

    python -m benchmarks.adversary DATA_DIR --splits SPLITS.json --out RECORDS.jsonl [--methods dann scdgn] [--seeds 2]

Each row changes one thing of the default preset of dann or scdgn; the first is the preset, the second the same without
an adversary (lambda 0). Scored as in `benchmarks.portfolio`, on the folds of all sets: mean macro-F1 over the sets, the
difference to the preset with its standard error over the sets, and its worst set. Records are appended as they come,
and what is on record is not run again. About a minute of one thread for each row and seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.portfolio import Task, arguments

COMMON: list[dict[str, Any]] = [
    {},
    {"lambda_max": 0.0},
    {"lambda_max": 0.01},
    {"lambda_max": 0.3},
    {"lambda_max": 1.0},
    {"lambda_enters": "reversal"},
    {"lambda_enters": "reversal", "lambda_max": 0.3},
    {"domain_code": 8},
    {"domain_code": 64},
    {"batch_size": 32},
    {"batch_size": 256, "epochs": 90},
    {"shift_relabel": False},
    {"shift_probability": 0.0},
]
CHANGES: dict[str, list[dict[str, Any]]] = {
    "dann": COMMON,
    "scdgn": [
        *COMMON,
        {"margin": 0.3},
        {"margin": 1.0},
        {"margin": 3.0},
        {"margin": 15.0},
        {"pairing": "epoch", "shift_probability": 0.0},
    ],
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = Task.of(options)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {json.dumps(key): scores for key, scores in map(json.loads, lines)}
    for method in options.methods:
        base: np.ndarray[Any, Any] | None = None
        print(f"\n{method:52}{'mean':>7}{'difference':>17}{'worst':>8}  set")
        for change in CHANGES[method]:
            means = []
            for seed in range(options.seeds):
                if (key := json.dumps([method, change, seed])) not in known:
                    scores = [float(np.mean(task.scores(name, method, change, seed))) for name in task.names]
                    with options.out.open("a") as file:
                        file.write(json.dumps([[method, change, seed], scores]) + "\n")
                    known[key] = scores
                means.append(known[key])
            each = np.mean(means, axis=0)  # (sets,)
            base = each if base is None else base
            gain = each - base
            error = gain.std(ddof=1) / np.sqrt(len(gain))
            told = ", ".join(f"{name} {value}" for name, value in change.items()) or "the preset"
            worst = f"{gain.min():+8.3f}  {task.names[int(gain.argmin())]}"
            print(f"{told:52}{each.mean():7.3f}{gain.mean():+9.3f} ± {error:.3f}{worst}", flush=True)


if __name__ == "__main__":
    main()
