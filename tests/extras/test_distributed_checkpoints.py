"""Distributed checkpoints: the same numbers as one file, written while training continues, visible only when whole."""

import hashlib
import json
import os
import pickle
import re
import shutil
import threading
import time

import pytest
import torch

from callbacks.callback import Callback
from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import load_checkpoint, options_of, save_checkpoint
from engine.checkpoints.find import find_checkpoint
from eval_vanilla import EvaluatorVanilla
from extras.distributed_checkpoints import Writer, read_shards
from tools.digest import digests
from utils.errors import DamagedError, UserError

SHARDED = ("--checkpoint_format", "sharded", "--save_every_updates", 3)
SLOW = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from trainer_vanilla import TrainerVanilla
from extras.distributed_checkpoints import Writer

plain = Writer.write_data
def slow(self, plan, planner):
    written = plain(self, plan, planner)
    time.sleep(60 if Path(self.path).name == "9" else 0)
    return written

Writer.write_data = slow

class Killed(TrainerVanilla):
    def train_update(self, update):
        if self.progress.update == 11:  # then the checkpoint of 9 is still being written
            os.kill(os.getpid(), signal.SIGKILL)
        super().train_update(update)

if __name__ == "__main__":
    Killed.main()
"""


def shards_in(run_dir) -> list[str]:
    return sorted(path.name for path in (run_dir / "shards").iterdir())


def run_digest(path) -> str:
    return digests(load_checkpoint(path))["run"]


def shard_of(path):
    """The first file of a checkpoint's shards that holds tensors."""
    shards = load_checkpoint(path, tensors_of=())["shards"]
    return path.parent / "shards" / shards["directory"] / "__0_0.distcp"


def find(directory):
    said: list[str] = []
    path, state = find_checkpoint(directory, said.append)
    return path.name, state, said


class StopsAfter(Callback):
    """Raises an exception after an update."""

    def __init__(self, update, error=KeyboardInterrupt):
        self.update, self.error = update, error

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            raise self.error


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    """The directory of a finished run with two last checkpoints, after updates 15 and 16. Tests only read it."""
    flags = ("--train_val_sample_rate", 600, "--batch_size", 64, "--n_epoch", 2, "--gpu_devices", "cpu", "--seed", 0)
    output_dir = tmp_path_factory.mktemp("sharded")
    done = command("trainer_vanilla.py", *flags, *SHARDED, "--output_dir", output_dir)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return next(output_dir.iterdir())


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(finished, tmp_path / finished.name)


@pytest.fixture
def gate(monkeypatch):
    """An event without which no process writes its part."""
    event, plain = threading.Event(), Writer.write_data
    monkeypatch.setattr(Writer, "write_data", lambda *arguments: event.wait(20) and plain(*arguments))
    yield event
    event.set()


# ---- the same as one file --------------------------------------------------------------------------------------------
def test_numbers_are_those_of_one_file(finished, vanilla_run):
    assert run_digest(finished / "Vanilla_last_ckpt.pth") == run_digest(vanilla_run / "Vanilla_last_ckpt.pth")
    assert run_digest(finished / "Vanilla_best_ckpt.pth") == run_digest(vanilla_run / "Vanilla_best_ckpt.pth")
    assert (finished / "Vanilla_last_ckpt.pth").stat().st_size < 40_000 < 8e6 < shard_of(
        finished / "Vanilla_last_ckpt.pth"
    ).stat().st_size


def test_shards_are_shared_and_removed_with_the_last_that_needs_them(finished):
    of_kind = {
        path.name: load_checkpoint(path, tensors_of=())["shards"]["directory"] for path in finished.glob("*_ckpt.pth")
    }
    assert of_kind["Vanilla_last_ckpt.pth"] == "16" and of_kind["Vanilla_last-15_ckpt.pth"] == "15"
    assert shards_in(finished) == sorted(set(of_kind.values()))  # those of updates 3, 6, 9, 12 are gone


def test_an_interrupted_run_goes_on_with_the_same_bits(build, finished):
    first = build(*SHARDED, callbacks=[StopsAfter(11)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    path = first.checkpointer.path("InT")
    assert load_checkpoint(path)["progress"]["update"] == 11
    again = build("--resume", first.run_dir.path)
    assert again.opt.resume == str(path)
    again.train()
    assert run_digest(again.checkpointer.path("last")) == run_digest(finished / "Vanilla_last_ckpt.pth")


def test_the_format_may_change_at_a_resume(build, finished):
    first = build(*SHARDED, callbacks=[StopsAfter(11)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = build("--resume", first.run_dir.path, "--checkpoint_format", "file", "--save_every_updates", 2)
    again.train()
    last = again.checkpointer.path("last")
    assert "shards" not in load_checkpoint(last, tensors_of=())
    assert run_digest(last) == run_digest(finished / "Vanilla_last_ckpt.pth")
    assert shards_in(again.run_dir.path) == ["11"]  # of InT, which is kept; the others went with their checkpoints


def test_merged_it_is_an_ordinary_file(finished, tmp_path):
    save_checkpoint(load_checkpoint(finished / "Vanilla_last_ckpt.pth"), tmp_path / "one.pth")
    assert run_digest(tmp_path / "one.pth") == run_digest(finished / "Vanilla_last_ckpt.pth")
    assert "shards" not in load_checkpoint(tmp_path / "one.pth", tensors_of=())
    results = []
    for path in (tmp_path / "one.pth", finished / "Vanilla_last_ckpt.pth"):  # the shards can be evaluated as well
        flags = ["--no-viz", "--gpu_devices", "cpu", "--save_path", str(tmp_path / "test"), "--model_path", str(path)]
        evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options(flags))
        results.append(json.loads((evaluator.output_dir / "results.json").read_text())["results"])
    assert results[0] == results[1] and results[0]["accuracy"] > 0.5


def test_another_run_may_start_from_its_weights(build, finished):
    path = finished / "Vanilla_last_ckpt.pth"
    trainer = build("--pretrained", "--model_path", path)
    weights = load_checkpoint(path, tensors_of=("networks",))
    assert weights["optimizers"]["model"]["state"][0]["exp_avg"] is None  # what is not needed is not read
    for name, value in trainer.networks["model"].state_dict().items():
        assert torch.equal(value, weights["networks"]["model"][name])


# ---- there only when whole -------------------------------------------------------------------------------------------
def test_training_goes_on_while_it_is_written(build, gate):
    trainer = build(*SHARDED)
    trainer.save("last")
    last = trainer.checkpointer.path("last")
    before = trainer.state_dict()["networks"]["model"]
    before = {name: value.clone() for name, value in before.items()}
    trainer.train_update(next(iter(trainer.train_loader.updates(0, 0))))
    assert not last.exists()
    gate.set()
    trainer.checkpointer.finish()
    state = load_checkpoint(last)
    assert state["progress"]["update"] == 0 and trainer.progress.update == 1
    assert all(torch.equal(value, before[name]) for name, value in state["networks"]["model"].items())


def test_it_is_there_as_soon_as_it_is_whole(build, gate):
    trainer = build(*SHARDED)
    trainer.save("last", "best")
    gate.set()
    until = time.monotonic() + 20
    while not trainer.checkpointer.path("best").exists() and time.monotonic() < until:
        time.sleep(0.01)  # nobody asks for it
    assert load_checkpoint(trainer.checkpointer.path("best"))["progress"]["update"] == 0
    trainer.checkpointer.finish()


def test_what_could_not_be_written_is_told_and_the_one_before_stays(build, monkeypatch):
    trainer = build(*SHARDED)
    trainer.save("last")
    trainer.checkpointer.finish()
    good = trainer.checkpointer.path("last").read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "write_data", fail)
    trainer.progress.update = 3
    trainer.save("last")
    with pytest.raises(UserError, match="No space left"):
        trainer.checkpointer.finish()
    assert trainer.checkpointer.path("last").read_bytes() == good
    trainer.checkpointer.finish()  # the error is raised once
    assert trainer.checkpointer.begin(trainer.progress.position) == []
    assert shards_in(trainer.run_dir.path) == ["0"]  # what was begun is gone


def test_a_save_of_the_same_update_leaves_the_one_before_whole(build):
    trainer = build(*SHARDED)
    trainer.save("last")
    trainer.checkpointer.rescue(trainer.state_dict, trainer.logger)
    assert shards_in(trainer.run_dir.path) == ["0", "0-1"]
    for kind in ("last", "InT"):
        load_checkpoint(trainer.checkpointer.path(kind))


def test_shards_of_files_that_were_set_aside_stay(copied):
    checkpointer = Checkpointer(copied, "Vanilla")
    (copied / "shards" / "99").mkdir()
    assert len(checkpointer.begin((0, 15))) >= 1
    assert (copied / "Vanilla_last_ckpt.pth.aside").exists() and shards_in(copied) == ["15", "16"]


# ---- damage ----------------------------------------------------------------------------------------------------------
def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), cut, flip], ids=["missing", "cut", "flipped"])
def test_the_one_before_a_damaged_shard_is_used(damage, copied):
    damage(shard_of(copied / "Vanilla_last_ckpt.pth"))
    name, state, said = find(copied)
    assert name == "Vanilla_last-15_ckpt.pth" and state["progress"]["update"] == 15
    assert said and all(re.search(r"shard .* The newest intact one is used\.$", line) for line in said)
    with pytest.raises(DamagedError, match="Give the directory to resume"):
        find(copied / "Vanilla_last_ckpt.pth")
    with pytest.raises(DamagedError, match=r"is damaged: its shard"):
        load_checkpoint(copied / "Vanilla_last_ckpt.pth")


def test_without_any_intact_shards_nothing_is_resumed(copied):
    shutil.rmtree(copied / "shards")
    with pytest.raises(DamagedError, match="no intact checkpoint is left"):
        find(copied)


def test_a_damaged_one_does_not_count_as_kept(copied):
    checkpointer = Checkpointer(copied, "Vanilla", keep=2)
    cut(shard_of(copied / "Vanilla_last-15_ckpt.pth"))
    assert checkpointer.path("last-15").exists()
    state = load_checkpoint(copied / "Vanilla_last_ckpt.pth")
    state["progress"]["update"] = 17
    checkpointer.save(state, "last")  # 15 is damaged: not the second good one, but 16 is, and so 15 goes
    assert not checkpointer.path("last-15").exists() and checkpointer.path("last-16").exists()


def test_a_network_of_another_shape_is_refused(build, finished):
    trainer = build("--resume", finished)
    trainer.networks["model"] = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"The networks of the checkpoint .* does not fit"):
        trainer.load_state_dict(load_checkpoint(trainer.opt.resume, tensors_of=()))


def test_an_index_is_opened_as_data_only(copied):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(copied / "opened"),)

    path = copied / "Vanilla_last_ckpt.pth"
    state = load_checkpoint(path, tensors_of=())
    index = copied / "shards" / "16" / ".metadata"
    index.write_bytes(pickle.dumps(Bomb()))
    state["shards"]["files"][".metadata"] = [index.stat().st_size, hashlib.sha256(index.read_bytes()).hexdigest()]
    with pytest.raises(DamagedError, match=r"it names (posix|nt)\.mkdir"):
        read_shards(state, path)
    assert not (copied / "opened").exists()


@pytest.mark.parametrize("content", [pickle.dumps(print), b"PK\3\4" + bytes(2000)])
def test_a_shard_that_is_no_tensor_is_refused(content, copied):
    path = copied / "Vanilla_last_ckpt.pth"
    state = load_checkpoint(path, tensors_of=())
    shard = shard_of(path)
    shard.write_bytes(content.ljust(shard.stat().st_size, b"\0"))
    state["shards"]["files"][shard.name][1] = hashlib.sha256(shard.read_bytes()).hexdigest()
    with pytest.raises(DamagedError, match="shards cannot be read"):
        read_shards(state, path)


@pytest.mark.parametrize("record", [None, {}, {"directory": 3, "files": {}}, {"directory": "1", "files": {"a": [1]}}])
def test_a_record_of_another_kind_is_refused(record):
    with pytest.raises(UserError, match=r"a\.pth does not name the files of its tensors"):
        read_shards({"shards": record}, "a.pth")


def test_options_need_no_shards(copied):
    shutil.rmtree(copied / "shards")
    path = copied / "Vanilla_last_ckpt.pth"
    assert options_of(load_checkpoint(path, tensors_of=()), path)["checkpoint_format"] == "sharded"


# ---- with real processes ---------------------------------------------------------------------------------------------
def test_killed_while_writing_two_processes_go_on_with_the_same_bits(tmp_path, root, command):
    program = tmp_path / "slow.py"
    program.write_text(SLOW.format(root=str(root)))
    flags = ("--train_val_sample_rate", 600, "--batch_size", 64, "--n_epoch", 2, "--gpu_devices", "cpu", "--seed", 0)
    flags = (*flags, *SHARDED, "--nproc", 2, "--parallel", "fsdp")
    done = command("trainer_vanilla.py", *flags, "--output_dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    done = command(program, *flags, "--output_dir", tmp_path / "killed")
    assert done.returncode == 6, done.stderr
    (whole,), (killed,) = [list((tmp_path / name).iterdir()) for name in ("whole", "killed")]
    assert sorted(path.name for path in (killed / "shards" / "9").glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]
    assert find(killed)[1]["progress"]["update"] == 8  # the end of the first epoch
    done = command("trainer_vanilla.py", "--resume", killed, "--nproc", 2, "--parallel", "fsdp")
    assert done.returncode == 0, done.stderr
    assert shards_in(killed) == shards_in(whole)
    assert run_digest(killed / "Vanilla_last_ckpt.pth") == run_digest(whole / "Vanilla_last_ckpt.pth")
    for name in ("last", "best"):
        (killed / f"Vanilla_{name}_ckpt.pth").unlink()  # so that it resumes from the one before
    done = command("trainer_vanilla.py", "--resume", killed, "--nproc", 1, "--parallel", "none")
    assert done.returncode == 0, done.stderr
    one, two = [load_checkpoint(path / "Vanilla_last_ckpt.pth")["networks"]["model"] for path in (killed, whole)]
    assert all(torch.allclose(value, two[name], atol=1e-5) for name, value in one.items())
