"""What training costs beside other busy processes: threads that spin while they wait, and threads that sleep.

    python -m benchmarks.contention [--busy 0 2] [--repeats 3]

Each training is a process of its own with all cores, as `scdgn train` has it: with what OpenMP does by default, and
with `OMP_WAIT_POLICY=PASSIVE`, which `scdgn.environment` sets. Printed: seconds of training (median), and the ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from benchmarks.timing import machine

TRAIN = """
import time, torch
from scdgn.config import preset
from scdgn.data import Fields, from_anndata
from scdgn.fitting import fit
from scdgn.preprocess import INPUT_PRESETS
from scdgn.simulate import Simulation, simulate
from scdgn.threads import share_cores
from dataclasses import replace
import numpy as np
share_cores()
data = from_anndata(simulate(Simulation(cells={"a": 800, "b": 800}, cell_types=tuple("ABCD"), genes=2000)), Fields("celltype", "tech"))
start = time.perf_counter()
fit(data, np.arange(len(data)), replace(preset("default", "scdgn"), hidden=256, epochs=10), INPUT_PRESETS["default"], [0], device="cpu")
print(time.perf_counter() - start)
"""  # noqa: E501
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="processes beside it")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}\n{'busy processes':>15}{'spinning':>11}{'sleeping':>11}{'ratio':>8}")
    for count in options.busy:
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            seconds: dict[str, list[float]] = {"ACTIVE": [], "PASSIVE": []}
            for _ in range(options.repeats):
                for policy, found in seconds.items():
                    found.append(trained(policy))
        finally:
            for process in busy:
                process.kill()
        active, passive = (median(found) for found in seconds.values())
        print(f"{count:15}{active:11.1f}{passive:11.1f}{active / passive:8.2f}", flush=True)


def trained(policy: str) -> float:
    """Seconds of a training."""
    unset = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    if policy == "PASSIVE":
        environment["OMP_WAIT_POLICY"] = policy
    done = subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
