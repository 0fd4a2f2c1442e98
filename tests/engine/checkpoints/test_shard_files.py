"""What is written to shards is what is read, whatever happens to the tensors meanwhile."""

import os
import pickle
import threading

import pytest
import torch

from engine.checkpoints.shard_files import ShardWriter, read_shards, wait_for, write_shards
from engine.checkpoints.shard_record import Shards, file_digest
from utils.errors import DamagedError, UserError

TENSORS = {
    "['networks']['a']": torch.randn(4, 3), "['networks']['b']": torch.randn(5).to(torch.bfloat16),
    "['networks']['c']": torch.arange(6).reshape(1, 2, 3), "['networks']['d']": torch.zeros(0, 3),
    "['optimizers']['e']": torch.randn(6, 4)[::2, 1:],
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """A function that writes tensors and returns the record, for a checkpoint `tmp_path / "a.pth"`."""

    def written(tensors=TENSORS) -> Shards:
        records: list[Shards] = []
        wait_for(write_shards(tmp_path / "shards" / "7", tensors, records.append, None))
        (shards,) = records
        return Shards.of({"shards": shards.state_dict()}, "a.pth")

    return written


def test_what_is_written_is_read(written, tmp_path):
    shards = written()
    shards.check_files(tmp_path / "a.pth")
    found = read_shards(shards, tmp_path / "a.pth", {})
    assert found.keys() == TENSORS.keys()
    for place, tensor in TENSORS.items():
        assert found[place].dtype == tensor.dtype and torch.equal(found[place], tensor)


def test_only_what_is_asked_for_is_read(written, tmp_path):
    found = read_shards(written(), tmp_path / "a.pth", {}, ["['networks']['c']"])
    assert list(found) == ["['networks']['c']"]


def test_tensors_are_laid_out_as_their_models(written, tmp_path):
    weight = torch.randn(2, 3, 4, 4)
    model = torch.empty(2, 3, 4, 4, requires_grad=True).to(memory_format=torch.channels_last)
    shards = written({"['networks']['w']": weight})
    (found,) = read_shards(shards, tmp_path / "a.pth", {"['networks']['w']": model}).values()
    assert torch.equal(found, weight) and found.stride() == model.stride() and not found.requires_grad
    (found,) = read_shards(shards, tmp_path / "a.pth", {"['networks']['w']": torch.zeros(5)}).values()
    assert torch.equal(found, weight)  # what does not fit is told when the state is checked


def test_training_may_change_the_tensors_at_once(monkeypatch, tmp_path):
    gate, plain, records = threading.Event(), ShardWriter.write_data, []
    monkeypatch.setattr(ShardWriter, "write_data", lambda *arguments: gate.wait(20) and plain(*arguments))
    weight = torch.ones(1000)
    future = write_shards(tmp_path / "shards" / "7", {"['networks']['w']": weight}, records.append, None)
    weight.fill_(2)
    assert not future.done() and records == []
    gate.set()
    wait_for(future)
    (found,) = read_shards(records[0], tmp_path / "a.pth", {}).values()
    assert torch.equal(found, torch.ones(1000))


def test_the_pickle_beside_them_is_not_opened(written, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    shards = written()
    (tmp_path / "shards" / "7" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    assert len(read_shards(shards, tmp_path / "a.pth", {})) == len(TENSORS)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [pickle.dumps(print), b"PK\3\4" + bytes(2000)])
def test_a_shard_that_is_no_tensor_is_refused(content, written, tmp_path):
    shards = written({"['networks']['w']": torch.ones(10)})
    ((name, (size, _)),) = shards.files.items()
    path = tmp_path / "shards" / "7" / name
    path.write_bytes(content.ljust(size, b"\0")[:size])
    shards.files = {name: (size, file_digest(path))}  # by somebody who can make the digest fit
    shards.check_files(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"shards/7/__0_0.distcp"):
        read_shards(shards, tmp_path / "a.pth", {})


def test_a_piece_of_another_shape_is_refused(written, tmp_path):
    shards = written({"['networks']['w']": torch.ones(10), "['networks']['v']": torch.ones(2, 5)})
    w, v = shards.tensors["['networks']['w']"], shards.tensors["['networks']['v']"]
    w.pieces[0, 1:3] = v.pieces[0, 1:3]
    with pytest.raises(UserError, match="does not hold the tensors"):
        read_shards(shards, tmp_path / "a.pth", {})


def test_a_file_that_is_gone_since_it_was_checked(written, tmp_path):
    shards = written()
    for path in (tmp_path / "shards" / "7").glob("*.distcp"):
        path.unlink()
    with pytest.raises(DamagedError, match="shards cannot be read"):
        read_shards(shards, tmp_path / "a.pth", {})


@pytest.mark.parametrize(("error", "message"), [
    (OSError(28, "No space left on device"), "^Process 0 cannot write its shard of the checkpoint: No space left"),
    (UserError("Cannot write a.pth: no room."), "^Cannot write a.pth: no room.$"),
])  # fmt: skip
def test_what_goes_wrong_in_the_thread_is_told(error, message, monkeypatch, tmp_path):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(ShardWriter, "write_data", fail)
    records: list[Shards] = []
    future = write_shards(tmp_path / "shards" / "7", TENSORS, records.append, None)
    with pytest.raises(UserError, match=message):
        wait_for(future)
    assert records == []
