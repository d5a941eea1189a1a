"""What distribution costs: the same trials in Ray's workers and in this process.

    python -m benchmarks.distributed [--part memory startup overhead scaling fleet] [--quick] [...]

    memory      private memory of a worker that trains on a CSR data set, at most and after its last trial, and what
                that is above the same worker's on 400 cells, which is the libraries' and the networks'; in shares of
                the data set. USS (Private_Clean + Private_Dirty) of all mappings but those of Ray's object store, of
                which it is told how much the worker looked at. With one worker and two, and for comparison of a
                process without Ray. Wanted: under 0.1 of the data
    startup     seconds from the call of the engine to the first trial begun, and to its cells being ready to train on;
                and what the end takes. The median of the rounds
    overhead    seconds from the beginning of a trial to that of the next one in the same worker, less those that the
                trial waits: with Ray and two workers, in the process, and the difference as a share of the trial. The
                study is real (TPE, journal, `--before` trials in it). Wanted: at most 10 % of trials of 5 s
    scaling     trials per hour of real training, one thread each, with one worker and two; the same of one bare process
                and two, which share the same trials (local engine, no Ray). All are warm: a worker's first trial does
                not count. Wanted: two workers gain at least 0.9 of what two bare processes do
    fleet       trials that wait on fake GPUs, with the default sampler and pruner (which decides at every rung, and
                never to stop, since all scores are equal) and MLflow (SQLite) beside them: how busy one driver keeps so
                many GPUs, and on what it spends its CPU. Where the machine has no memory for a worker per GPU, fewer
                workers run shorter trials, as many per second. Wanted: 16 GPUs at least 95 % busy with trials of 5 s

Every measurement is of a process (and a Ray) of its own. The whole takes about half an hour; `--quick` shows in a few
minutes that all of it works, and its numbers are worthless. On a loaded machine they always are.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead import Waiting, opened, small_study
from benchmarks.scale import apart
from benchmarks.timing import machine
from benchmarks.watched import Clocked, Listed, Prepared, Span, Watch, Weighed, by_worker, periods, random_counts
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import preset
from scdgn.search.engines import Asked, Engine
from scdgn.search.engines.cluster import Cluster, Resources
from scdgn.search.engines.local import Local
from scdgn.search.records import Proposal
from scdgn.search.stages.owners import Watched
from scdgn.search.tracking.tracker import Tracker
from scdgn.search.trials.inputs import OwnInputs
from scdgn.search.trials.objective import Work
from scdgn.threads import usable_cores

GENES, DENSITY = 3000, 0.08
BYTES_STORED = 8  # of an entry: a float32 and an int32
TINY = 400
"""Cells of a data set that weighs nothing."""

WORKER = 0.3e9
"""Bytes that a worker that trains nothing takes for itself."""

SPARE = 3e9
"""Bytes that the driver and Ray's own processes should find free."""

START, START_OF_EACH = 60.0, 12.0
"""Seconds that the workers of a fleet have to start: together, and each on a core of its own."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes
    ----------
    megabytes
        Of the data set whose memory is measured.
    cells, epochs, trials
        Of the trainings of `scaling` (and the cells of `startup`); trials per worker.
    rounds
        Of `startup` and `scaling`, of which the median counts.
    seconds, waiting, before
        Lengths of the trials of `overhead`; trials per worker, and in the study before.
    gpus, trial, window, most_workers
        Sizes of the fleet; seconds of a trial and of the measurement, and workers that there may be (0 for as many as
        the memory allows).
    """

    megabytes: float = 300.0
    cells: int = 2490
    epochs: int = 8
    trials: int = 6
    rounds: int = 3
    seconds: tuple[float, ...] = (5.0, 1.0, 0.2)
    waiting: int = 10
    before: int = 100
    gpus: tuple[int, ...] = (16, 32, 64, 128)
    trial: float = 5.0
    window: float = 60.0
    most_workers: int = 0


QUICK = Options(
    megabytes=10.0, cells=600, epochs=4, trials=3, rounds=1, seconds=(0.5,), waiting=4, before=10, gpus=(2, 8),
    trial=1.0, window=5.0, most_workers=2,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="to see that all of it works")
    parser.add_argument("--megabytes", type=float, help="of the data set of `memory`")
    parser.add_argument("--rounds", type=int, help="of `startup` and `scaling`")
    parser.add_argument("--gpus", type=int, nargs="+", help="of the fleets")
    parser.add_argument("--window", type=float, help="seconds in which a fleet is measured")
    parser.add_argument("--most-workers", type=int, help="of a fleet; by default as many as the memory allows")
    words = parser.parse_args()
    given = {name: value for name, value in vars(words).items() if value is not None and name not in ("part", "quick")}
    if "gpus" in given:
        given["gpus"] = tuple(given["gpus"])
    options = replace(QUICK if words.quick else Options(), **given)
    os.environ["OMP_NUM_THREADS"] = "1"  # in all the processes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    torch.set_num_threads(1)
    print(f"{machine()}, {os.cpu_count()} cores")
    for part in words.part:
        print(f"\n{part}", flush=True)
        PARTS[part](options)


# What trains.


def proposals(count: int, epochs: int) -> list[Proposal]:
    settings = replace(preset("default", "scdgn"), epochs=epochs)
    return [Proposal(number, settings, PreprocessSettings()) for number in range(count)]


def work(cells: int) -> Work:
    return Work(
        OwnInputs(random_counts(cells, GENES, DENSITY), "leave-one-domain-out", seed=0, fold_seeds=1), "macro_f1"
    )


@contextmanager
def ray_engine(cpus: int, gpus: int = 0, concurrency: int = 0) -> Iterator[Engine]:
    """The engine on a Ray of its own, on this machine; with fake GPUs, each pack has one."""
    import ray

    ray.init(
        "local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"worker_register_timeout_seconds": 600},  # many start together on a few cores
    )
    try:
        yield Cluster(Resources(gpus=1.0 if gpus else 0.0, concurrency=concurrency))
    finally:
        ray.shutdown()


@contextmanager
def begun(tracker: Tracker | None = None, **settings: Any) -> Iterator[Watched]:
    """A real study, in a temporary folder; `settings` are of `StudySettings`."""
    with small_study(name="benchmark", **settings) as asked, opened(asked, tracker) as (_, told):
        yield told


def fill(told: Asked, trials: int) -> None:
    """Put trials into a study that do not wait."""
    waiting = Waiting(0.0)
    Local("cpu").run(told, waiting, 1, lambda: waiting.ended >= trials, never)


def never() -> bool:
    return False


# memory


def memory(options: Options) -> None:
    cells = round(options.megabytes * 1e6 / BYTES_STORED / (GENES * DENSITY))
    data = cells * round(GENES * DENSITY) * BYTES_STORED
    print(f"{cells:,} cells, {data / 1e6:.0f} MB as CSR; MB of private memory")
    parts = (f"with {TINY} cells", "with the data", "added by them", "of their size")
    print(f"{'':22} | " + " | ".join(f"{part:^16}" for part in parts) + " | in the")
    print(f"{'':22}" + f" | {'most':>7}  {'end':>7}" * 4 + " | store")
    without = {on_ray: apart(weigh, TINY, int(on_ray)) for on_ray in (True, False)}
    for name, workers in (("a worker", 1), ("each of two workers", 2), ("a process without Ray", 0)):
        small, large = without[workers > 0], apart(weigh, cells, workers)
        added = {when: large[when] - small[when] for when in small}
        columns = [f"{found['most'] / 1e6:7.0f}  {found['end'] / 1e6:7.0f}" for found in (small, large, added)]
        columns.append(f"{added['most'] / data:7.3f}  {added['end'] / data:7.3f}")
        print(f"{name:22} | " + " | ".join(columns) + f" | {large['shared'] / 1e6:5.0f}", flush=True)


def weigh(cells: int, workers: int) -> dict[str, float]:
    """Bytes of the worker that has most: private, at `most` while training, and at the `end`; and `shared` ones.

    Without workers, of this process.
    """
    owner = Watch(Listed(proposals(2 * max(workers, 1), epochs=2)))
    job = Weighed(Clocked(work(cells)))
    if workers:
        with ray_engine(cpus=workers) as engine:
            engine.run(owner, job, 1, never, never)
    else:
        Local("cpu").run(owner, job, 1, never, never)
    notes = [json.loads(note) for note in owner.notes]
    if len({note["worker"] for note in notes}) < workers:
        print(f"only one of {workers} workers had trials", flush=True)
    last = {note["worker"]: note for note in notes}.values()
    at_end = {what: max(note[what] for note in last) for what in ("end", "shared")}
    return {"most": max(note["most"] for note in notes), **at_end}


# startup


def startup(options: Options) -> None:
    engines = {"in the process": False, "Ray, two workers": True}
    found = {name: median([apart(start, options, ray) for _ in range(options.rounds)]) for name, ray in engines.items()}
    print(f"{'seconds':40}" + "".join(f"{name:>18}" for name in engines))
    for step in found["in the process"]:
        print(f"{step:40}" + "".join(f"{times[step]:18.2f}" for times in found.values()))


def start(options: Options, on_ray: bool) -> dict[str, float]:
    """Seconds of every step of a short search."""
    job = Prepared(work(options.cells), [])
    owner = Watch(Listed(proposals(2, options.epochs)))
    engine: Engine = Cluster(Resources(gpus=0.0, concurrency=2)) if on_ray else Local("cpu")
    called = time.time()
    _ = engine.kind  # which takes what it needs
    taken = time.time()
    engine.run(owner, Clocked(job), 1, never, never)
    returned = time.time()
    engine.close()
    closed = time.time()
    asked = owner.asked[0]
    first = min([*job.sent_at, min(span.begun for span in owner.spans)])
    ready = min(map(float, owner.notes))
    last = max(span.ended for span in owner.spans)
    return {
        "Ray's start": taken - called,
        "Tune's start, to its asking for a trial": asked - taken,
        "the worker's start": first - asked,
        "to the first trial begun": first - called,
        "its cells: stored, prepared, fetched": ready - first,
        "to training": ready - called,
        "Tune's end, after the last trial": returned - last,
        "Ray's end": closed - returned,
    }


def median(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


# overhead


def overhead(options: Options) -> None:
    print(f"study of {options.before} trials and more; seconds per trial and worker")
    print(f"{'trial':>8} | {'in the process':>14} | {'Ray, two workers':>16} | {'beyond':>8} | {'of the trial':>12}")
    for seconds in options.seconds:
        here, there = (apart(overhead_of, options, seconds, workers) for workers in (0, 2))
        share = (there - here) / (seconds + here)
        print(f"{seconds:8g} | {here:14.4f} | {there:16.4f} | {there - here:8.4f} | {share:12.1%}", flush=True)


def overhead_of(options: Options, seconds: float, workers: int) -> float:
    """Seconds that the engine takes per trial in each worker; without workers, in this process."""
    trials = options.before + max(workers, 1) * options.waiting
    with begun(trials=trials, pruner="NopPruner") as told:
        fill(told, options.before)
        owner = Watch(told)
        job = Clocked(Waiting(seconds))
        if workers:
            with ray_engine(cpus=workers) as engine:
                engine.run(owner, job, 1, never, never)
        else:
            Local("cpu").run(owner, job, 1, never, never)
    return statistics.mean(periods(owner.spans, max(workers, 1))) - seconds


# scaling


def scaling(options: Options) -> None:
    ways: dict[str, Callable[[], float]] = {
        "one bare process": lambda: bare(options, 1),
        "two bare processes": lambda: bare(options, 2),
        "one worker": lambda: apart(workers, options, 1),
        "two workers": lambda: apart(workers, options, 2),
    }
    rounds = [{name: 3600 * way() for name, way in ways.items()} for _ in range(options.rounds)]
    rates = median(rounds)
    print(f"{options.cells:,} cells, {options.epochs} epochs, {options.trials} trials per worker; trials per hour")
    for name, rate in rates.items():
        print(f"{name:22}{rate:8.0f}   (rounds: {', '.join(f'{each[name]:.0f}' for each in rounds)})")
    alone = rates["two bare processes"] / rates["one bare process"]
    with_ray = rates["two workers"] / rates["one worker"]
    print(f"two gain {alone:.2f} bare and {with_ray:.2f} with Ray: efficiency {with_ray / alone:.3f}")


def studied(options: Options, count: int) -> dict[str, Any]:
    """Settings of a study whose trials are drawn without looking, and take as long as each other."""
    fixed = preset("default", "scdgn")
    sizes = {name: getattr(fixed, name) for name in ("hidden", "latent", "domain_code", "batch_size")}
    return {
        "trials": count * options.trials,
        "sampler": "RandomSampler",
        "pruner": "NopPruner",
        "space": {**sizes, "epochs": options.epochs, "margin": {"low": 0.5, "high": 2.0}},
    }


def bare(options: Options, processes: int) -> float:
    """Trials per second of processes that know nothing of each other, warm."""
    with begun(**studied(options, processes)) as told:
        drawn, _ = told.next_pack(processes * options.trials)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, get_context("spawn").Manager() as manager:
        together = manager.Barrier(processes)
        running = [pool.submit(train, options, drawn[place::processes], together) for place in range(processes)]
        spans = [span for each in running for span in each.result()]
    return sum(1 / period for period in periods(spans, processes))


def train(options: Options, given: Sequence[Proposal], together: threading.Barrier) -> list[Span]:
    """Train trials in this process, at the same time as others."""
    torch.set_num_threads(1)
    job = Clocked(work(options.cells))
    owner = Watch(Listed(given))
    together.wait()
    Local("cpu").run(owner, job, 1, never, never)
    return owner.spans


def workers(options: Options, count: int) -> float:
    """Trials per second of so many workers, warm."""
    job = Clocked(work(options.cells))
    with begun(**studied(options, count)) as told, ray_engine(cpus=2, concurrency=count) as engine:
        owner = Watch(told)
        engine.run(owner, job, 1, never, never)
    return sum(1 / period for period in periods(owner.spans, count))


# fleet


def fleet(options: Options) -> None:
    free = available_memory() - SPARE
    most = options.most_workers or int(free / WORKER)
    found: dict[int, dict[str, float]] = {}
    for gpus in options.gpus:
        slots = gpus if gpus <= most else options.gpus[0]
        seconds = options.trial * slots / gpus
        found[gpus] = apart(simulate_fleet, options, slots, seconds)
        print(f"{gpus} GPUs: {slots} workers, trials of {seconds:g} s", flush=True)
    print(f"\n{'':44}" + "".join(f"{gpus:>5} GPUs" for gpus in found))
    for name in next(iter(found.values())):
        as_share = name.startswith(("GPUs", "as", "a core", "all"))
        cells = (f"{each[name]:10.1%}" if as_share else f"{each[name]:10.1f}" for each in found.values())
        print(f"{name:44}" + "".join(cells))
    for gpus, each in found.items():
        serves = 1000 * options.trial / each[PER_TRIAL]
        print(f"at the cost per trial with {gpus} GPUs, the driver fills one core at {serves:.0f} GPUs")


PER_TRIAL = "ms of CPU per trial: all of the driver"
THREADS = {
    "MainThread": "driver, the rest",
    "desk": "desk's thread",
    "tune": "Tune's thread",
    "tracking": "MLflow's thread",
}


def simulate_fleet(options: Options, slots: int, seconds: float) -> dict[str, float]:
    """What a driver does for so many fake GPUs, when all have begun, and how busy they are."""
    tracker = Tracker(print)
    with begun(tracker, trials=1_000_000) as told:
        fill(told, options.before)
        tracker.wait(600)
        owner = FleetWatch(told, slots, options.window)
        with ray_engine(slots + 2, slots) as engine:
            engine.run(owner, Clocked(Waiting(seconds)), 1, owner.enough, never)
        tracker.close()
    assert owner.first is not None and owner.last is not None
    first, last = owner.first, owner.last
    present = len(by_worker([span for span in owner.spans if first.at < span.ended <= last.at]))
    if present != slots:
        print(f"only {present} of {slots} workers had trials after {first.at - owner.called:.0f} s", flush=True)
    elapsed = last.at - first.at
    inside = [min(span.ended, last.at) - max(span.begun, first.at) for span in owner.spans]
    ended = sum(first.at < span.ended <= last.at for span in owner.spans)
    cpu = {name: last.cpu[name] - first.cpu.get(name, 0.0) for name in last.cpu}
    total = cpu.pop("process")
    names = ("drawing", "reports", "ends")
    cpu["MainThread"] -= sum(cpu[name] for name in names)
    parts = {f"ms of CPU per trial: {THREADS.get(name, name)}": value for name, value in cpu.items()}
    parts["ms of CPU per trial: Ray's threads, others"] = total - sum(cpu.values())
    return {
        "GPUs training": ended * seconds / (slots * elapsed),
        "GPUs that have a trial": sum(each for each in inside if each > 0) / (slots * elapsed),
        "as the fleet counts it, its start included": last.busy,
        "trials per second": ended / elapsed,
        **{name: value / ended * 1000 for name, value in parts.items()},
        PER_TRIAL: total / ended * 1000,
        "a core, by the driver": total / elapsed,
        "all cores, by all processes": (last.machine[0] - first.machine[0]) / (last.machine[1] - first.machine[1]),
    }


@dataclass(frozen=True)
class Look:
    """A look at the driver.

    Attributes
    ----------
    at
        Seconds since 1970.
    busy
        As `scdgn.search.engines.fleet` counts.
    cpu
        Seconds, by thread, by what the study was asked, and of the `process`.
    machine
        Time that all cores were at work, and all time.
    """

    at: float
    busy: float
    cpu: Mapping[str, float]
    machine: tuple[float, float]


class FleetWatch(Watch):
    """Watches a study whose trials all score alike, from when all workers have begun.

    Parameters
    ----------
    owner, slots, window
        The study, the workers, and seconds to watch.
    """

    def __init__(self, owner: Asked, slots: int, window: float) -> None:
        super().__init__(owner)
        self._slots = slots
        self._window = window
        self._longest = START + START_OF_EACH * slots / usable_cores()
        self._seen: set[int] = set()
        self.called = time.time()
        self.first: Look | None = None
        self.last: Look | None = None

    def report(self, number: int, step: int, value: float) -> bool:
        """Pruners decide at every rung, and none stops a trial that is as good as all."""
        return super().report(number, step, float(step))

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Look, now and then."""
        super().workers(fleet)
        self._seen |= {worker["pid"] for worker in fleet["workers"]}
        if (len(self._seen) >= self._slots or time.time() > self.called + self._longest) and not self.enough():
            self.last = self._look(fleet["busy"])
            self.first = self.first or self.last

    def enough(self) -> bool:
        """Whether all was seen."""
        return self.first is not None and self.last is not None and self.last.at > self.first.at + self._window

    def _look(self, busy: float) -> Look:
        threads = {
            thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            for thread in threading.enumerate()
            if thread.name in THREADS and thread.ident is not None
        }
        words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
        ticks = [float(word) for word in words]
        idle = ticks[3] + ticks[4]  # waiting for a disk is no work
        cpu = {**self.cpu, **threads, "process": time.process_time()}
        return Look(time.time(), busy, cpu, (sum(ticks[:8]) - idle, sum(ticks[:8])))


def available_memory() -> float:
    """Bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


PARTS: dict[str, Callable[[Options], None]] = {
    "memory": memory,
    "startup": startup,
    "overhead": overhead,
    "scaling": scaling,
    "fleet": fleet,
}


if __name__ == "__main__":
    main()
