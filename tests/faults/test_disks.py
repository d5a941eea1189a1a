"""Disks that are full or read-only: told in a line, and the same command goes on when there is space again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import tally
from tests.faults.disturbed import Campaign, agrees, whole

long = pytest.mark.long
FULL = [
    *(("storage", 40), ("predictions", 5), ("left out", 2), ("table", 2), ("bundle", 3), ("summary", 2), ("any", 1)),
    ("any", 150),
]


def refused(campaign: Campaign, name: str, reason: str, **fault: object) -> None:
    """The search ends with exit code 2 and one line that says why; what is there is whole."""
    assert campaign.start(name, **fault).wait(timeout=300) == 2, campaign.log(name)
    log = campaign.log(name)
    assert log.splitlines()[-1].startswith("error: cannot write ") and reason in log.splitlines()[-1]
    assert "Traceback" not in log
    whole(campaign.folder(name))


@pytest.mark.parametrize(("place", "event"), FULL)
@long
def test_what_a_full_disk_ended_goes_on(campaign: Campaign, place: str, event: int) -> None:
    refused(campaign, f"full {place} {event}", "No space left on device", place=place, event=event, how="full")
    agrees(campaign, f"full {place} {event}")
    tally["disks full, as injected"] += 1


def test_a_read_only_folder_is_refused_before_anything_is_done(campaign: Campaign) -> None:
    refused(campaign, "read-only", "Read-only file system", place="any", event=1, how="read-only")
    assert "trial" not in campaign.log("read-only") and not campaign.studies("read-only").exists()
    tally["disks read-only, as injected"] += 1


@pytest.mark.parametrize("place", ["checkpoint", "tracking"])
@long
def test_what_a_search_can_do_without(campaign: Campaign, place: str) -> None:
    """It goes on without checkpoints and without MLflow, and says so once."""
    name = f"without {place}"
    assert campaign.start(name, place=place, event=5, how="full").wait(timeout=300) == 0, campaign.log(name)
    said = {"checkpoint": "checkpoints cannot be written", "tracking": "MLflow cannot be written to"}[place]
    assert campaign.log(name).count(said) == 1 and "Traceback" not in campaign.log(name)
    agrees(campaign, name)
    tally["disks full, as injected"] += 1


@pytest.fixture
def small(campaign: Campaign) -> Iterator[Path]:
    """A disk of 2 MB, mounted where the studies go."""
    place = campaign.studies("small disk")
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_small(campaign: Campaign, small: Path) -> None:
    """A real one: it fills, becomes read-only, and is well again."""
    ballast = small / "ballast"
    ballast.write_bytes(bytes(2 * 1024 * 1024 - 40 * 1024))
    refused(campaign, small.name, "No space left on device")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused(campaign, small.name, "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", small], check=True)
    agrees(campaign, small.name)
    tally["disks full and read-only, mounted"] += 1
