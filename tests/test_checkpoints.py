"""A pack goes on from the file that was kept of it, and from nothing that is not one."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from scdgn.core.config import Settings
from scdgn.core.pack.members import Member
from scdgn.core.training import Trained, TrainingState, train
from scdgn.errors import OutputError, SettingsError
from scdgn.search.trials import checkpoints as module
from scdgn.search.trials.checkpoints import Checkpoint, Checkpoints
from tests import LONGEST
from tests.test_pack import POOL, assert_equal
from tests.test_resume import assert_same_bits, uninterrupted

SETTINGS = Settings(hidden=6, latent=5, domain_code=4, epochs=4, batch_size=16, clip_norm=0.1, dropout=0.2)
# Two trials of two models and one of one, in an order that is not that of their numbers.
TRIALS = {12: 2, 3: 2, 7: 1}
MEMBERS = [
    Member(replace(SETTINGS, hidden=6 + number % 4, lr=0.01 / number), POOL[place], place, 0)
    for number, models in TRIALS.items()
    for place in range(models)
]
PLACES = {12: [0, 1], 3: [2, 3], 7: [4]}
OUTCOMES, STATES = uninterrupted(MEMBERS)


def checkpoint(epoch: int = 2, **changes: Any) -> Checkpoint:
    known = {number: {"models": models, "step": 2, "scores": {"a": 0.1}} for number, models in TRIALS.items()}
    return replace(Checkpoint(tuple(TRIALS), known, 1.5, STATES[epoch - 1]), **changes)


def at(place: object, identity: str = "study", every: float = 60.0) -> Checkpoints:
    return Checkpoints(str(place), every, identity)


@pytest.fixture(params=["folder", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "a study").mkdir()
    yield {
        "folder": str(tmp_path / "a study" / "checkpoints"),
        "file": f"file://{tmp_path}/checkpoints",
        "memory": "memory://bucket/checkpoints",
    }[request.param]
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def go_on(found: Checkpoint | None, numbers: list[int]) -> list[Trained]:
    assert found is not None
    return train([MEMBERS[index] for number in numbers for index in PLACES[number]], state=found.state)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# What is kept is found


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_training_goes_on_from_a_file_to_the_last_bit(place: str, epoch: int) -> None:
    assert at(place).save(checkpoint(epoch)) is None
    found = at(place).find(list(TRIALS))
    assert found is not None
    written = checkpoint(epoch)
    assert (found.begun, found.trials, found.seconds) == (written.begun, written.trials, written.seconds)
    assert list(found.trials) == list(TRIALS)
    for outcome, again in zip(OUTCOMES, go_on(found, list(TRIALS)), strict=True):
        assert_same_bits(outcome, again)


@pytest.mark.parametrize("numbers", [[7, 3, 12], [3], [7, 12]])
def test_some_of_its_trials_go_on_without_the_others_in_the_order_asked_for(place: str, numbers: list[int]) -> None:
    at(place).save(checkpoint())
    found = at(place).find(numbers)
    assert found is not None and list(found.trials) == numbers
    expected = [OUTCOMES[index] for number in numbers for index in PLACES[number]]
    for outcome, again in zip(expected, go_on(found, numbers), strict=True):
        assert_equal(outcome, again) if len(numbers) < len(TRIALS) else assert_same_bits(outcome, again)


def assert_like(state: TrainingState, other: TrainingState) -> None:
    assert (state.epoch, state.histories) == (other.epoch, other.histories)
    for lane, another in zip(state.lanes, other.lanes, strict=True):
        assert (lane.indices, lane.sparse, lane.steps) == (another.indices, another.sparse, another.steps)
        assert lane.tensors.keys() == another.tensors.keys()
        assert all(torch.equal(tensor, another.tensors[name]) for name, tensor in lane.tensors.items())


def test_a_later_checkpoint_takes_the_place_of_the_packs_last_one(tmp_path: Path) -> None:
    kept = at(tmp_path)
    for epoch in (1, 3):
        kept.save(checkpoint(epoch))
    assert len(files(tmp_path)) == 1
    found = kept.find(list(TRIALS))
    assert found is not None
    assert_like(found.state, STATES[2])


def test_two_packs_do_not_disturb_each_other(place: str) -> None:
    one = checkpoint(begun=(12, 3, 7, 5))
    other = checkpoint(1).keep([3])
    other = replace(other, begun=(3,), trials={8: other.trials[3]})
    kept = at(place)
    kept.save(one)
    kept.save(other)
    found, another = kept.find([12, 3, 7]), kept.find([8])
    assert found is not None and another is not None
    assert (found.state.epoch, another.state.epoch) == (2, 1)
    assert kept.find([8, 3]) is None
    kept.remove([8])
    assert kept.find([8]) is None and kept.find([12, 3, 7]) is not None


def test_of_several_checkpoints_the_one_that_has_gone_furthest_is_found(tmp_path: Path) -> None:
    """A pack that was split, and came less far than the whole had."""
    kept = at(tmp_path)
    kept.save(checkpoint(3))
    kept.save(replace(checkpoint(1).keep([3]), begun=(3,)))
    found = kept.find([3])
    assert found is not None and found.state.epoch == 3 and found.begun == tuple(TRIALS)


def test_other_studies_in_the_same_place_are_not_seen(place: str) -> None:
    at(place, "one").save(checkpoint(1))
    at(place, "another").save(checkpoint(2))
    assert at(place, "a third").find([3]) is None
    found = at(place, "one").find([3])
    assert found is not None and found.state.epoch == 1
    at(place, "one").remove(list(TRIALS))
    assert at(place, "one").find([3]) is None and at(place, "another").find([3]) is not None


def test_a_pack_that_has_ended_leaves_nothing(tmp_path: Path) -> None:
    kept = at(tmp_path)
    kept.remove([1, 2])  # there was nothing
    kept.save(checkpoint())
    kept.save(replace(checkpoint().keep([3]), begun=(12, 3)))  # trial 12 has ended
    kept.remove([3])
    assert len(files(tmp_path)) == 1
    kept.remove(list(TRIALS))
    assert files(tmp_path) == []


# What is damaged, foreign or missing is not


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_no_checkpoint(tmp_path: Path, data: st.DataObject) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint())
    content = only(tmp_path).read_bytes()
    where = data.draw(st.one_of(st.integers(0, 7), st.integers(0, len(content) - 1)))
    if data.draw(st.booleans()):
        damaged = content[:where]
    else:
        damaged = content[:where] + bytes([content[where] ^ 1 << data.draw(st.integers(0, 7))]) + content[where + 1 :]
    only(tmp_path).write_bytes(damaged)
    found = kept.find(list(TRIALS))
    if found is not None:  # a blank that became another one
        assert_like(found.state, STATES[1])
        assert found.trials == checkpoint().trials
    kept.remove(list(TRIALS))
    assert files(tmp_path) == []


def test_a_damaged_header_is_no_checkpoint_wherever_the_damage_is(tmp_path: Path) -> None:
    # Keys of the document that were misread ended the search for a checkpoint, where damage was drawn at random.
    kept = at(tmp_path)
    kept.save(checkpoint())
    content = only(tmp_path).read_bytes()
    for where in range(8, 8 + int.from_bytes(content[:8], "little")):
        only(tmp_path).write_bytes(content[:where] + bytes([content[where] ^ 1 << where % 8]) + content[where + 1 :])
        found = kept.find(list(TRIALS))
        assert found is None or found.trials == checkpoint().trials  # a blank that became another one


def rewritten(content: bytes, changes: dict[str, Any]) -> bytes:
    """With another document and a checksum that fits."""
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = load(content)
    text = json.dumps(json.loads(metadata["checkpoint"]) | changes)
    sums = {"checkpoint_sha256": module._digest(text), "sha256": module._checksum(text, tensors)}
    return save(tensors, {"checkpoint": text} | sums)


def said(text: str) -> bytes:
    """A file with this document, whatever it is."""
    return save(
        {"weight": torch.zeros(2)}, {"checkpoint": text, "checkpoint_sha256": module._digest(text), "sha256": ""}
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0",
        b"\xff" * 100,
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x13\0\0\0\0\0\0\0{"__metadata__": 1}',
        save({"weight": torch.zeros(2)}),
        save({"weight": torch.zeros(2)}, {"checkpoint": "{}", "checkpoint_sha256": "", "sha256": ""}),
        said("{}"),
        said("{not json"),
        said("[" * 100_000),
        said("[]"),
    ],
)
def test_foreign_files_are_no_checkpoints_and_stay(tmp_path: Path, content: bytes) -> None:
    kept = at(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(content)
    assert kept.find([3]) is None
    kept.save(checkpoint())
    assert kept.find([3]) is not None
    kept.remove(list(TRIALS))
    assert files(tmp_path) == ["other.safetensors"]


def test_one_of_a_newer_format_is_no_checkpoint(tmp_path: Path) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint())
    content = only(tmp_path).read_bytes()
    only(tmp_path).write_bytes(rewritten(content, {"seconds": 2.5}))
    found = kept.find([3])
    assert found is not None and found.seconds == 2.5
    for changes in ({"version": 2}, {"format": "another"}, {"identity": "another"}):
        only(tmp_path).write_bytes(rewritten(content, changes))
        assert kept.find([3]) is None


def test_a_damaged_file_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint(3))
    path = only(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    kept.save(replace(checkpoint(1), begun=(3,)))
    found = kept.find([3])
    assert found is not None and found.state.epoch == 1


def test_a_place_that_does_not_exist_holds_none_and_neither_does_a_folder(tmp_path: Path) -> None:
    assert at(tmp_path / "nowhere").find([3]) is None
    at(tmp_path / "nowhere").remove([3])
    (tmp_path / "folder.safetensors").mkdir()
    assert at(tmp_path).find([3]) is None
    assert at("nosuchscheme://x").find([3]) is None
    at("nosuchscheme://x").remove([3])


def test_one_that_vanishes_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint())
    real = module._content

    def vanishing(system: Any, path: str, *part: int) -> bytes:
        if not part:
            Path(path).unlink()
        return real(system, path, *part)

    monkeypatch.setattr(module, "_content", vanishing)
    assert kept.find([3]) is None


def test_only_headers_of_other_packs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint())
    whole: list[str] = []
    real = module._content

    def watched(system: Any, path: str, *part: int) -> bytes:
        if not part:
            whole.append(path)
        return real(system, path, *part)

    monkeypatch.setattr(module, "_content", watched)
    assert kept.find([99]) is None and whole == []
    assert kept.find([3]) is not None and len(whole) == 1


# Writing


def test_what_cannot_be_written_is_told_and_the_last_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    reason = at(tmp_path / "file" / "checkpoints").save(checkpoint())
    assert (reason is not None and "cannot write" in reason) or "Not a directory" in str(reason)
    kept = at(tmp_path)
    kept.save(checkpoint(1))

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        reason = kept.save(checkpoint(2))
    assert reason is not None and "No space left on device" in reason
    found = kept.find([3])
    assert found is not None and found.state.epoch == 1
    assert len(files(tmp_path)) == 2  # nor is anything left of the attempt


def _killed(folder: str) -> None:
    real = Path.write_bytes

    def dying(self: Path, content: bytes) -> int:
        real(self, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    Path.write_bytes = dying  # type: ignore[method-assign]
    at(folder).save(checkpoint(2))


def test_a_process_killed_while_it_writes_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    kept = at(tmp_path)
    kept.save(checkpoint(1))
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(str(tmp_path),))
    process.start()
    process.join(LONGEST)
    assert process.exitcode == -signal.SIGKILL
    assert len(files(tmp_path)) > 1
    found = kept.find(list(TRIALS))
    assert found is not None and found.state.epoch == 1
    kept.remove(list(TRIALS))
    assert files(tmp_path) == []


def test_a_store_that_fails_ends_nothing_and_tells_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class StoreError(Exception):
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("no route to https://user:secret@store/bucket\nand much more")

    for name in ("pipe_file", "ls", "cat_file", "rm"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    kept = at("memory://bucket")
    assert kept.save(checkpoint()) == "StoreError: no route to https://store/bucket"
    assert kept.find([3]) is None
    kept.remove([3])


def test_trials_that_do_not_fit_the_state_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 models, the state 5"):
        at(tmp_path).save(checkpoint(trials={12: {"models": 4}}))


def test_it_is_written_as_often_as_wanted_and_never_for_more_than_a_fiftieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, took = 1000.0, 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    real = module._written

    def slow(*given: Any) -> bytes:
        nonlocal now
        now += took
        return real(*given)

    monkeypatch.setattr(module, "_written", slow)
    kept = at(tmp_path, every=60)

    def due_after() -> float:
        nonlocal now
        start = now
        while not kept.due():
            now += 1
        return now - start

    assert due_after() == 60
    kept.save(checkpoint())
    assert due_after() == 60
    took = 3
    kept.save(checkpoint())
    assert due_after() == 150
    now += 1e6
    assert not pickle.loads(pickle.dumps(kept)).due()  # a clock of another machine says nothing here


# Places


def test_a_worker_gets_the_same_place_whatever_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = at("checkpoints")
    kept.save(checkpoint())
    sent = pickle.dumps(kept)
    assert len(sent) < 300
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).find([3]) is not None


def test_a_place_that_is_good_is_not_refused(place: str, tmp_path: Path) -> None:
    at(place).check()
    assert files(tmp_path) == ["a study"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nosuchscheme://user:secret@host/x", r"'nosuchscheme://host/x'.*Protocol not known.*s3://bucket/folder"),
        ("s3://key:secret@bucket/x", r"'s3://bucket/x'.*`pip install s3fs`"),
    ],
)
def test_a_place_that_is_none_is_refused_with_a_remedy(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)  # wherever it is installed
    with pytest.raises(SettingsError, match=said) as caught:
        at(given).check()
    assert "secret" not in str(caught.value)


def test_a_machine_that_does_not_see_the_study_gets_no_folder_of_its_own(tmp_path: Path) -> None:
    missing = tmp_path / "not mounted here"
    reason = Checkpoints(str(missing / "checkpoints"), 0.0, "a").save(checkpoint(1))
    assert reason is not None and "No such file" in reason
    assert not missing.exists()


def test_a_file_is_no_folder_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is no folder"):
        at(tmp_path / "file").check()
