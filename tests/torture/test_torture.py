"""A small part of each script of tests/torture, and that what they compare by can fail."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
from torch.nn import functional as F

from data import dataloader
from engine.checkpoints.checkpointer import Checkpointer
from tests.torture import __main__ as torture
from tests.torture import (
    damage,
    full_disk,
    harness,
    io_boundaries,
    kills,
    malicious_programs,
    one_signal,
    restarts,
    sigterm,
    two_runs,
    workers,
)
from tests.torture.harness import Row
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.seed import GlobalGenerators

REAL = {  # with processes of their own
    "kills": lambda: kills.run(1, only="vanilla"),
    "sigterm": lambda: sigterm.run(1),
    "workers": lambda: workers.run(1),
    "full_disk": lambda: full_disk.run(1),
    "two_runs": lambda: two_runs.run(1),
    "restarts": lambda: restarts.run(1),
    "one_signal": lambda: one_signal.run(1),
    "malicious_programs": lambda: malicious_programs.run(1, programs=("resume",)),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """The figures of all that starts processes, two at a time, with short runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(harness.SHORT, "1")
        return dict(zip(REAL, harness.side_by_side(lambda run: run(), list(REAL.values())), strict=True))


class WithDropout(TrainerVanilla):
    def compute_loss(self, batch):
        images, labels = batch
        return self.criterion(self.model(F.dropout(images, 0.2)), labels)


# ---- a small part of each --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REAL)
def test_a_small_part_holds(rows, name):
    row = rows[name]
    assert row.failures == [] and row.tried == row.passed > 0


def test_a_save_may_die_at_any_boundary(monkeypatch):
    monkeypatch.setattr(io_boundaries, "KEEPS", (2,))
    monkeypatch.setattr(io_boundaries, "EARLIER", (0, 3))
    monkeypatch.setattr(io_boundaries, "LINKS", (True,))
    row = io_boundaries.run()
    assert row.failures == [] and row.tried == row.passed > 40


@pytest.mark.parametrize(
    ("task", "flags", "switches"),
    [
        (WithDropout, (), [(GlobalGenerators, "load_state_dict", lambda generators, state: None)]),
        (TrainerSeg, ("--augment", "--num_workers", 2, "--no-cache"),
         [(dataloader, "seed_cpu", lambda seed: None), (dataloader, "preserved_random_state", contextlib.nullcontext)]),
    ],
)  # fmt: skip
def test_what_is_switched_off_is_seen(build, train, monkeypatch, task, flags, switches):
    for module, name, instead in switches:
        monkeypatch.setattr(module, name, instead)
    flags = (*flags, "--save_every_updates", 1, "--n_epoch", 3)
    whole = train(*flags, task=task)
    broken = build(*flags, task=task)
    broken.train_update, plain = lambda update: stop_at(6, broken, plain, update), broken.train_update
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    ends = []
    for run_dir in (whole.run_dir.path, train("--resume", broken.run_dir.path, task=task).run_dir.path):
        ends.append(harness.digests_of(run_dir, "last"))
    assert ends[0]["networks"] != ends[1]["networks"]


def stop_at(number, trainer, train_update, update):
    if trainer.progress.update == number:
        raise KeyboardInterrupt
    train_update(update)


# ---- what is compared, and what is counted ---------------------------------------------------------------------------
def test_a_boundary_that_loses_the_old_checkpoint_is_seen(monkeypatch):
    def save_in_place(path, *parts):
        with open(path, "wb") as file:
            for part in parts:
                file.write(part)

    monkeypatch.setattr("engine.checkpoints.file.write_atomically", save_in_place)
    for name, values in (("KEEPS", (1,)), ("KINDS", (("last",),)), ("LINKS", (True,)), ("EARLIER", (1,))):
        monkeypatch.setattr(io_boundaries, name, values)
    row = io_boundaries.run()
    assert row.tried > 3 and not row.is_good and "nothing was found" in "".join(row.failures)


@pytest.fixture
def three_saves(tmp_path):
    """A directory with the checkpoints of three updates."""
    checkpointer = Checkpointer(tmp_path / "run", "Net", keep=3)
    (tmp_path / "run").mkdir()
    for update in (1, 2, 3):
        checkpointer.save(io_boundaries.state_after(update), "last")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", damage.DAMAGES)
def test_damage_is_noticed_and_the_checkpoint_before_is_used(three_saves, kind):
    for number in range(3):
        copy = three_saves.with_name(str(number))
        shutil.copytree(three_saves, copy)
        assert damage.try_damage(copy, kind, harness.draw(number)) == []


def test_damage_that_is_not_noticed_is_seen(three_saves, monkeypatch):
    monkeypatch.setattr(damage, "verify", lambda path: None)
    assert "is not noticed" in damage.try_damage(three_saves, damage.flip_anywhere, harness.draw(0))[0]


def test_the_use_of_another_checkpoint_than_the_one_before_is_seen(three_saves, monkeypatch):
    monkeypatch.setattr(damage, "find_checkpoint", lambda source, warn: (None, io_boundaries.state_after(1)))
    assert "update 1 is resumed, not 2" in damage.try_damage(three_saves, damage.flip_anywhere, harness.draw(0))


@pytest.fixture
def end(vanilla_run):
    return harness.end_of(vanilla_run)


def test_two_ends_are_the_same_only_in_all_parts(end):
    assert harness.differences(end, end) == []
    tag, points = next((tag, points) for tag, points in end.curves.items() if len(points) > 1)
    for changed, said in [
        (replace(end, last=end.last | {"networks": "0"}), "the last checkpoint differs in networks"),
        (replace(end, best=end.best | {"random": "0"}), "the best checkpoint differs in random"),
        (replace(end, rows=[*end.rows, end.rows[-1]]), "metrics.csv differs: epochs ['1', '2', '2']"),
        (replace(end, curves=end.curves | {tag: [*points, points[-1]]}), f"TensorBoard's {tag} has a step twice"),
        (replace(end, curves=end.curves | {tag: points[1:]}), f"TensorBoard's {tag} differs, at [{points[0][0]}]"),
    ]:
        (found,) = harness.differences(end, changed)
        assert found.startswith(said)


def test_all_parts_are_compared(end):
    parts = {"networks", "criterion", "optimizers", "schedulers", "scaler", "random", "progress", "stopper"}
    assert end.last.keys() >= parts and end.best.keys() >= parts


def test_a_checkpoint_that_was_left_damaged_is_seen(tmp_path):
    Checkpointer(tmp_path, "Net", keep=2).save(io_boundaries.state_after(7), "best", "last")
    assert harness.newest_update(tmp_path) == (7, [])
    path = tmp_path / "Net_best_ckpt.pth"
    path.write_bytes(path.read_bytes()[:-1])
    newest, faults = harness.newest_update(tmp_path)
    assert newest == 7 and len(faults) == 1 and "Net_best_ckpt.pth was left damaged" in faults[0]


def test_a_row_without_tries_or_with_a_failure_is_not_good():
    row = Row()
    assert not row.is_good
    row.add("first", [])
    assert row.is_good and (row.tried, row.passed) == (1, 1)
    row.add("second", ["lost"])
    assert not row.is_good and (row.tried, row.passed) == (2, 1) and row.failures == ["second: lost"]


def test_traced_updates_are_read(tmp_path):
    path = tmp_path / "trace"
    assert sigterm.traced(path) == []
    path.write_text("".join(json.dumps({"update": number}) + "\n" for number in (1, 2, 2)))
    assert sigterm.traced(path) == [1, 2, 2]


# ---- the page --------------------------------------------------------------------------------------------------------
def test_the_table_is_written_and_the_text_around_it_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{torture.BEGIN}\n{torture.END}\nafter\n")
    line = torture.line_of("what", Row(tried=3, passed=3, note="note"), "python -m tests.torture.kills --count 3")
    torture.write_page(page, {"kills": line})
    other = torture.line_of("other", Row(tried=3, passed=2), "python -m tests.torture.damage --count 3")
    torture.write_page(page, {"damage": other})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert line in text and other in text and "**2**" in other and text.count(torture.HEADER) == 1
    assert text.index("torture.kills") < text.index("torture.damage")


def test_each_script_has_a_page_and_writes_only_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torture, "DOCS", tmp_path)
    pages = [tmp_path / "reliability.md", tmp_path / "distributed.md"]
    for page in pages:
        page.write_text(f"{torture.BEGIN}\n{torture.END}\n")
    commands = {name: f"python -m tests.torture.{name} --count 3" for name in ("kills", "resizing")}
    torture.write_pages({name: torture.line_of(name, Row(tried=3, passed=3), text) for name, text in commands.items()})
    assert [text in page.read_text() for page in pages for text in commands.values()] == [True, False, False, True]


def test_the_pages_have_a_line_for_each_script():
    texts = {page: page.read_text(encoding="utf-8") for page in set(map(torture.page_of, torture.SCRIPTS))}
    lacking = [n for n in torture.SCRIPTS if f"`python -m tests.torture.{n} " not in texts[torture.page_of(n)]]
    assert lacking == []
    rows = [line for text in texts.values() for line in text.splitlines() if "tests.torture." in line]
    assert "**" not in "".join(row.split("|")[3] for row in rows)
