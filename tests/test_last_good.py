"""A resume takes the newest unfinished run of the same options, and its newest intact checkpoint."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from trainer_vanilla import TrainerVanilla
from utils.errors import DamagedError, LoadingError, UserError

UPDATES_PER_EPOCH = 8  # of the small vanilla run


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


class StopsEarly(TrainerVanilla):
    """Ends before its twelfth update."""

    def compute_loss(self, batch):
        if self.progress.update == 11:
            raise Interrupted
        return super().compute_loss(batch)


@pytest.fixture
def stopped(build):
    """A run that ended in its second epoch; its last checkpoint is of update 8."""
    trainer = build(task=StopsEarly)
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


def damage(path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def auto(build, runs, *flags, **settings):
    small = ("--train_val_sample_rate", 600, "--batch_size", 64, "--n_epoch", 2, "--gpu_devices", "cpu", "--seed", 0)
    return build("--resume", "auto", "--output_dir", runs, *small, *flags, **settings)


# ---- --resume auto ---------------------------------------------------------------------------------------------------
def test_auto_goes_on_with_the_unfinished_run(stopped, build, train, weights, differences):
    resumed = auto(build, stopped.run_dir.path.parent)
    assert resumed.run_dir.path == stopped.run_dir.path
    resumed.train()
    assert differences(weights(resumed), weights(train())) == []
    log = next(resumed.run_dir.path.glob("*_log.txt")).read_text()
    assert f"--resume auto: goes on with {resumed.run_dir.path}" in log


def test_auto_begins_anew_where_there_is_no_unfinished_run(train, build):
    finished = train()
    runs = finished.run_dir.path.parent
    again = auto(build, runs)
    assert again.run_dir.path != finished.run_dir.path and again.progress.update == 0
    assert "no unfinished run of Vanilla" in again.opt.resume_notes[0]


def rename_run(path, project: str, timestamp: int) -> None:
    """Make a copy of a run another run: its name is in two files' names, in the provenance and the checkpoints."""
    old, new = next(path.glob("config_*.json")).stem.removeprefix("config_"), f"{project}_{timestamp}"
    (path / f"config_{old}.json").rename(path / f"config_{new}.json")
    (path / f"{old}_log.txt").rename(path / f"{new}_log.txt")
    record = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(record | {"run_name": new}))
    for checkpoint in path.glob("*_ckpt.pth"):
        save_checkpoint(load_checkpoint(checkpoint) | {"run_name": new}, checkpoint)


def test_auto_takes_the_newest_of_its_own_project(stopped, build, tmp_path):
    runs = stopped.run_dir.path.parent
    timestamp = int(stopped.run_dir.path.name) + 100
    other = runs / str(timestamp)
    shutil.copytree(stopped.run_dir.path, other)
    rename_run(other, "Other", timestamp)
    assert auto(build, runs).run_dir.path == stopped.run_dir.path
    rename_run(other, "Vanilla", timestamp)
    assert auto(build, runs).run_dir.path == other


# ---- a run has a name ------------------------------------------------------------------------------------------------
def test_run_that_was_renamed_or_lost_files_goes_on_under_its_name(stopped, build):
    name, timestamp = stopped.run_dir.name, stopped.run_dir.path.name
    moved = stopped.run_dir.path.rename(stopped.run_dir.path.with_name("my_baseline"))
    (moved / f"config_{name}.json").unlink()
    (moved / "finished.json").write_text("")  # as after a full disk; nobody knows whether it has ended
    for resumed in (auto(build, moved.parent), build("--resume", moved)):
        assert resumed.run_dir.path == moved and resumed.run_dir.name == name and resumed.opt.resume
    assert sorted(path.name for path in moved.glob("*_log.txt")) == [f"Vanilla_{timestamp}_log.txt"]
    assert (moved / f"config_{name}.json").exists()


def test_copy_of_a_run_is_passed_over_beside_the_run(stopped, build):
    shutil.copytree(stopped.run_dir.path, stopped.run_dir.path.with_name("zz_backup"))
    shutil.copytree(stopped.run_dir.path, stopped.run_dir.path.with_name("1"))
    assert auto(build, stopped.run_dir.path.parent).run_dir.path == stopped.run_dir.path


def test_checkpoint_of_another_run_is_refused(stopped, build, train):
    other = train("--n_epoch", 1, "--seed", 1)
    shutil.copy(other.checkpointer.path("last"), stopped.checkpointer.path("InT"))
    of_two = f"is of the run {other.run_dir.name}, but in the directory of {stopped.run_dir.name}"
    with pytest.raises(UserError, match=of_two):
        build("--resume", stopped.run_dir.path)


def test_recorded_name_counts_beside_a_file_of_another(stopped, build):
    (stopped.run_dir.path / "config_Vanilla_1.json").write_text("{}")
    for source in (stopped.run_dir.path, stopped.checkpointer.path("InT")):
        assert build("--resume", source).run_dir.name == stopped.run_dir.name


def test_auto_does_not_begin_a_run_beside_checkpoints_of_an_unknown_one(stopped, build):
    for path in stopped.run_dir.path.iterdir():
        if path.is_file() and not path.name.endswith(".pth"):
            path.unlink()
    with pytest.raises(UserError, match="has checkpoints, but not the files that say of which run"):
        auto(build, stopped.run_dir.path.parent)


def test_auto_never_begins_anew_because_of_damage(stopped, build):
    runs = stopped.run_dir.path.parent
    for path in stopped.run_dir.path.glob("*_ckpt.pth"):
        damage(path)
    before = sorted(runs.iterdir())
    with pytest.raises(DamagedError, match="no intact checkpoint is left"):
        auto(build, runs)
    assert sorted(runs.iterdir()) == before


def test_auto_reads_where_to_look_from_option_files_too(stopped, build, tmp_path):
    config = tmp_path / "options.json"
    config.write_text(f'{{"output_dir": "{stopped.run_dir.path.parent}"}}')
    opt = TrainerVanilla.parse_options(["--resume", "auto", "--config", str(config)])
    assert opt.resume == str(stopped.checkpointer.path("InT"))  # of the same update as the last


def test_finished_run_that_is_lengthened_is_unfinished_again(train):
    finished = train("--n_epoch", 1)
    assert (finished.run_dir.path / "finished.json").exists()
    seen = []

    class Looks(Callback):
        def on_epoch_end(self, trainer, row):
            seen.append((trainer.run_dir.path / "finished.json").exists())

    train("--resume", finished.run_dir.path, "--n_epoch", 3, callbacks=[Looks()])
    assert seen == [False, False]
    assert (finished.run_dir.path / "finished.json").exists()


# ---- damage ----------------------------------------------------------------------------------------------------------
def test_run_with_a_damaged_checkpoint_ends_with_the_same_bits(build, train, weights, differences):
    trainer = build("--save_every_updates", 2, task=StopsEarly)
    with pytest.raises(Interrupted):
        trainer.train()
    damage(trainer.checkpointer.path("last"))
    damage(trainer.checkpointer.path("InT"))
    resumed = train("--resume", trainer.run_dir.path, callbacks=None)
    log = next(resumed.run_dir.path.glob("*_log.txt")).read_text()
    assert "Vanilla_InT_ckpt.pth is damaged" in log and "The newest intact one is used" in log
    assert "after update 8:" in log  # the last was of update 10
    assert differences(weights(resumed), weights(train("--save_every_updates", 2))) == []


def test_exit_status_when_all_are_damaged(stopped, command):
    for path in stopped.run_dir.path.glob("*_ckpt.pth"):
        damage(path)
    done = command("trainer_vanilla.py", "--resume", stopped.run_dir.path)
    assert done.returncode == 3 and "no intact checkpoint is left" in done.stderr and "Traceback" not in done.stderr


# ---- how often, how many, how long -----------------------------------------------------------------------------------
def test_save_every_updates(train):
    saved = []

    class Noting(TrainerVanilla):
        def save(self, *kinds):
            if "last" in kinds:
                saved.append(self.progress.update)
            super().save(*kinds)

    trainer = train("--save_every_updates", 3, "--keep", 3, task=Noting)
    assert saved == [3, 6, 9, 12, 15, 16]
    kept = sorted(path.name for path in trainer.run_dir.path.glob("*_last*"))
    assert kept == ["Vanilla_last-12_ckpt.pth", "Vanilla_last-15_ckpt.pth", "Vanilla_last_ckpt.pth"]


def test_time_limit_stops_with_a_checkpoint_and_status_75(build, train, weights, differences, monkeypatch):
    trainer = build("--max_time", "10m")
    clock = lambda: 60.0 * trainer.progress.update  # noqa: E731 - a minute per update
    monkeypatch.setattr(trainer.session.stop_signal, "_clock", clock)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 75
    position = load_checkpoint(trainer.checkpointer.path("InT"))["progress"]["update"]
    assert 5 <= position < 10
    resumed = train("--resume", trainer.run_dir.path, "--max_time", "2h")
    assert differences(weights(resumed), weights(train())) == []


# ---- two runs --------------------------------------------------------------------------------------------------------
def test_second_run_in_a_directory_is_refused_until_the_first_is_dead(stopped, build, root):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from engine.runs.lock import DirectoryLock\n"
         "lock = DirectoryLock(sys.argv[1]); print('held', flush=True); time.sleep(60)", stopped.run_dir.path],
        cwd=root, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        stopped.run_dir.lock.release()
        assert holder.stdout.readline() == b"held\n" or holder.stdout
        with pytest.raises(UserError, match="in use by another run"):
            build("--resume", stopped.run_dir.path)
    finally:
        holder.kill()
        holder.wait()
    started = time.monotonic()
    build("--resume", stopped.run_dir.path)
    assert time.monotonic() - started < 30


# ---- what may be otherwise, and what may not -------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [
    ("--clip", 0.01), ("--amp", "bf16"), ("--lr_scheduler", "constant"), ("--label_smoothing", 0.4),
    ("--warmup_epoch", 1), ("--val_every", 2), ("--proj_name", "Other"),
])  # fmt: skip
def test_what_makes_it_another_run_is_refused(stopped, build, flags):
    with pytest.raises(UserError, match=f"{flags[0]} .* contradicts the run that is resumed"):
        build("--resume", stopped.run_dir.path, *flags)


def test_what_belongs_to_the_machine_may_change(stopped, build):
    flags = ("--num_workers", 1, "--micro_batch_size", 8, "--keep", 3, "--save_every_updates", 2, "--n_epoch", 5)
    assert build("--resume", stopped.run_dir.path, *flags).opt.n_epoch == 5


def test_auto_passes_over_a_run_with_other_options_and_says_so(stopped, build):
    other = auto(build, stopped.run_dir.path.parent, "--seed", 5)
    assert other.run_dir.path != stopped.run_dir.path
    assert "which has another --seed" in other.opt.resume_notes[0]


def test_auto_begins_anew_after_a_run_that_left_nothing_to_resume_from(build):
    class Fails(TrainerVanilla):
        def compute_loss(self, batch):
            raise Interrupted

    trainer = build(task=Fails)
    with pytest.raises(UserError, match="Failed in the first update: Interrupted"):
        trainer.train()
    assert not trainer.run_dir.path.exists()
    again = auto(build, trainer.run_dir.path.parent)
    assert again.opt.resume is None


def test_requeue_without_a_resume_is_refused(build):
    with pytest.raises(UserError, match="--requeue needs --resume auto"):
        build("--requeue")


def test_run_that_could_not_be_resumed_is_still_finished(train, build, monkeypatch):
    def unwilling(*arguments):
        raise UserError("cannot start")

    finished = train()
    monkeypatch.setattr("trainer.build_asked_for", unwilling)
    with pytest.raises(UserError):
        build("--resume", finished.run_dir.path).train()
    assert (finished.run_dir.path / "finished.json").exists()


def test_data_that_changed_is_told(stopped, build):
    path = stopped.run_dir.path / "provenance.json"
    record = json.loads(path.read_text())
    record["data"]["val"] = "another"
    path.write_text(json.dumps(record))
    build("--resume", stopped.run_dir.path)
    log = next(stopped.run_dir.path.glob("*_log.txt")).read_text()
    assert "The data is not what this run began with: val changed." in log
    path.write_text("rubbish")
    build("--resume", stopped.run_dir.path)


def test_what_was_seen_before_a_resume_and_after_it_counts(stopped, build):
    before = stopped.seen_groups["train"]
    resumed = build("--resume", stopped.run_dir.path)
    resumed.seen_groups.data = {part: torch.tensor([1, 2]) for part in ("train", "val")}  # as of other data
    resumed.load_state_dict(load_checkpoint(resumed.opt.resume))
    assert set(resumed.seen_groups["train"].tolist()) == {1, 2, *before.tolist()}


def test_weights_that_a_callback_spoiled_are_not_resumed_from(build):
    class Spoils(Callback):
        def on_update_end(self, trainer, values):
            if trainer.progress.update == 11:
                with torch.no_grad():
                    next(trainer.model.parameters()).zero_()

    trainer = build(callbacks=[Spoils()])
    with pytest.raises(RuntimeError, match="changed weights"):
        trainer.train()
    assert not trainer.checkpointer.path("InT").exists()
    assert TrainerVanilla.parse_options(["--resume", str(trainer.run_dir.path)]).resume.endswith("last_ckpt.pth")


def test_signal_that_ended_the_loading_processes_is_what_ends_the_run(build):
    class LosesItsLoader(TrainerVanilla):
        def compute_loss(self, batch):
            if self.progress.update == 3:
                self.session.stop_signal.signum = signal.SIGTERM
                raise LoadingError("A loading process was ended by SIGTERM.")
            return super().compute_loss(batch)

    with pytest.raises(SystemExit) as caught:
        build(task=LosesItsLoader).train()
    assert caught.value.code == 143
