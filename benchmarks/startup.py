"""What it costs to start: seconds of CPU of fresh processes, beside Python's own start.

python -m benchmarks.startup [--rounds 10]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from statistics import median

PYTHON = "Python itself"
PROGRAMS = {
    PYTHON: "pass",
    "import scdgn": "import scdgn",
    "scdgn --help": "import sys; sys.argv = ['scdgn', '--help']; from scdgn.cli import main; main()",
    "import scdgn.model.scdgn, with torch and AnnData": "import scdgn.model.scdgn",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for turn in range(options.rounds + 1):
        for name, program in PROGRAMS.items():
            seconds = cpu(program)
            if turn:  # the first one reads the files from the disk
                taken[name].append(seconds)
    own = median(taken[PYTHON])
    for name, seconds_of in taken.items():
        print(f"{name:45}{median(seconds_of):8.3f} s{median(seconds_of) / own:8.1f} times")


def cpu(program: str) -> float:
    """Seconds of CPU that a process takes which runs the program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
