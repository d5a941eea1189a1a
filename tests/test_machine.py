"""What the process may use of the machine: cores and memory, of containers too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from scdgn import threads
from scdgn.core import memory
from scdgn.core.memory import free_memory
from scdgn.threads import same_threads, share_cores, usable_cores

CPU = torch.device("cpu")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores; the file that a container's limit is read from."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "CPU_LIMIT", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 8), ("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("rubbish", 8)]
)
def test_cores_are_those_that_affinity_and_container_leave(cores: Path, limit: str | None, expected: int) -> None:
    if limit is not None:
        cores.write_text(limit + "\n")
    assert usable_cores() == expected


def test_workers_share_the_cores(cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with same_threads():
        assert [share_cores(workers) for workers in (1, 2, 3, 100)] == [8, 4, 2, 1]
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        torch.set_num_threads(5)
        assert share_cores(4) == 5  # what the user set stays


def test_free_memory_is_what_system_and_container_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert free_memory(CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemFree:  10 kB\nMemAvailable:     60 kB\n")
    assert free_memory(CPU) == 60 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("50000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 9000\n")
    assert free_memory(CPU) == 60 * 1024
    (tmp_path / "memory.max").write_text("81000\n")
    assert free_memory(CPU) == 40_000
    (tmp_path / "memory.max").write_text("10\n")
    assert free_memory(CPU) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="memory is told by Linux alone")
def test_this_machine_has_memory() -> None:
    free = free_memory(CPU)
    assert free is not None and 0 < free < 2**50
