"""Whether a study that exists is the one that is asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import scdgn
from scdgn.cells.sources import TrainingCells
from scdgn.errors import SettingsError, count
from scdgn.search.folder import StudyFolder
from scdgn.search.records import FINISHED
from scdgn.search.stages.job import Job
from scdgn.search.study.documents import from_document, to_document
from scdgn.search.study.settings import CONTINUABLE, StudySettings
from scdgn.search.study.study import read_records
from scdgn.search.trials.cells import SearchCells


def identify(job: Job) -> None:
    """Write study.toml, or see that it says the same (`check_same`)."""
    document = to_document(job.settings)
    fingerprint = fingerprints(job.cells, job.sealed)
    if not job.folder.exists:
        document["record"] = {
            "id": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            "test_batches": list(job.cells.test_batches),
            "git": git_commit(),
            "folder": str(Path.cwd()),
            "machine": machine(),
            "versions": versions(),
        }
        job.folder.write_settings(document)
        return
    record = check_same(job.settings, job.folder, fingerprint)["record"]
    if changed := changed_versions(record):
        done = sum(one.state in FINISHED for one in read_records(job.folder, job.settings))
        told = f"after {count(done, 'trial')} this study went on with {changed}"
        record = {**record, "now": versions(), "changes": [*record.get("changes", []), told]}
        job.watch.note(
            f"{told}: trials of both are ranked together (the best are scored again with the present ones; --fresh "
            "starts over)"
        )
    job.folder.write_settings({**document, "record": record})


def changed_versions(record: Mapping[str, Any]) -> str:
    """What decides the numbers and is not what it was when a study last went on, in words; empty where all is."""
    before = record.get("now", record["versions"])
    return ", ".join(
        f"{name} {now} in place of {before[name]}"
        for name, now in versions().items()
        if name != "mlflow" and name in before and before[name] != now
    )


def fingerprints(cells: TrainingCells, sealed: SearchCells) -> dict[str, str]:
    """Of all cells that decide what a study finds."""
    return {
        "training": sealed.dataset.fingerprint(),
        "test": cells.dataset.take(cells.split.test).fingerprint(),
        "unlabeled": "+".join(query.fingerprint() for query in sealed.unlabeled),
    }


def check_same(settings: StudySettings, folder: StudyFolder, fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """See that a study that exists is the one that is asked for; its study.toml.

    Raises
    ------
    SettingsError
        If it was begun with other settings or on other cells, naming them.
    """
    before = folder.read_settings()
    from_document(before)  # a damaged one is told as such
    differences = [
        f"{key} was {then!r} and is now {now!r}" for key, then, now in _differences(before, to_document(settings))
    ]
    names = {"training": "training cells", "test": "test cells", "unlabeled": "unlabelled cells"}
    differences += [
        f"the {names[key]} are not the same"
        for key, value in fingerprint.items()
        if before["record"]["fingerprint"][key] != value
    ]
    if differences:
        raise SettingsError(
            f"the study {settings.name!r} was begun otherwise ({'; '.join(differences)}): give another --name, or "
            "--fresh to set the old one aside"
        )
    return before


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that would make the study another one. The cells are compared themselves, not by the file's name."""
    found = []
    for table in ("study", "data", "space", "sampler", "pruner"):
        old, new = before.get(table, {}), now.get(table, {})
        for key in sorted({*old, *new}):
            if key in CONTINUABLE or (table == "data" and key in ("data", "path", "obs")):
                continue
            if old.get(key) != new.get(key):
                name = key if table in ("study", "data", "space") else table if key == "name" else f"{table} {key}"
                found.append((name, old.get(key), new.get(key)))
    return found


def git_commit() -> str:
    """The commit of this code; empty where it is not a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(scdgn.__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """System, cores and GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{platform.node()}, {platform.platform()}, {os.cpu_count()} cores, {', '.join(gpus) or 'no GPU'}"


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    packages = ("scdgn", "torch", "numpy", "scanpy", "anndata", "optuna", "mlflow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
