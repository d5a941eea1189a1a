"""What training costs beside other busy processes, by how long OpenMP's threads spin while they wait for each other.

    python -m benchmarks.contention [--busy 0 2] [--repeats 3]

Each training of small layers is a process of its own with all cores, as `scdgn train` has it: with what OpenMP does by
default, with threads that sleep at once (`OMP_WAIT_POLICY=PASSIVE`), and as `scdgn.environment` has it, which spin a
little. Printed: seconds of training, the median.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from benchmarks.timing import machine
from scdgn.environment import SPINS

TRAIN = """
import time, torch
from scdgn.core.config import preset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.model.fitting import fit
from scdgn.cells.settings import INPUT_PRESETS
from scdgn.cells.simulate import Simulation, simulate
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
POLICIES = {"default": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}, "ours": {"GOMP_SPINCOUNT": SPINS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="processes beside it")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}\n{'busy processes':>15}" + "".join(f"{name:>12}" for name in POLICIES))
    for count in options.busy:
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
        try:
            for _ in range(options.repeats):
                for name, found in seconds.items():
                    found.append(trained(POLICIES[name]))
        finally:
            for process in busy:
                process.kill()
        print(f"{count:15}" + "".join(f"{median(found):12.2f}" for found in seconds.values()), flush=True)


def trained(policy: dict[str, str]) -> float:
    """Seconds of a training."""
    unset = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | policy
    done = subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
