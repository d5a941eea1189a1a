"""The words that a study is asked in, where it has a choice; the command line knows them, and imports nothing else."""

from __future__ import annotations

from typing import Literal

Methods = Literal["nn", "dann", "scdgn", "all"]

Metric = Literal["macro_f1", "accuracy", "balanced_accuracy"]

Selection = Literal["leave-one-domain-out", "training-domain"]

Correct = Literal["auto", "always", "never"]

Procedure = Literal["search", "seed-best-of-10"]

EngineName = Literal["local", "ray"]
