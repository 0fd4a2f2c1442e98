"""A resume that is exact passes the check; each kind of planted fault is caught, and its cause is named."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fork_server import Program
from tools.verify_resume import (
    KILLED,
    REPEATED,
    WORKERS,
    Run,
    Runs,
    compare,
    explain,
    main,
    prove,
    read_trace,
    verify_resume,
)
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import PeerError, UserError

KILL_AT = 12  # in the second epoch, three updates after a save
FAULTS = {  # what the fault shows in, the first difference, and a word of the cause
    "innocent": (KILLED, None, ""),
    "global_draw": (WORKERS, "data and random", "is_random = False"),
    "counted_calls": (WORKERS, "data", "keeps something from one sample to the next"),
    "trainer_attribute": (KILLED, "step", "an attribute of the trainer"),
    "module_attribute": (KILLED, "step", "a plain attribute of a network"),
    "callback_attribute": (KILLED, "length", "the callback"),
    "evaluator_attribute": (KILLED, "end", "the validation"),
    "lazy_draw": (KILLED, "random", "once per process"),
}
PROGRAMS = {  # by name: the program, how often it is killed, and the status with which its proof ends
    "segmentation": (["trainer_seg_on_carvana.py", "--augment"], 1, 0),
    "not repeatable": (["tests.planted_faults:SystemRandomness"], 1, 1),
}


def line(update, **entries):
    return {"update": update, "data": "d", "values": {"loss": "0x1p0"}, "networks": "n", "random": "r", **entries}


def make_run(*lines, **parts):
    return Run(list(lines), {"networks": "n", "score": "s", **parts})


# ---- real runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pool(root):
    """Two at a time. The runs are forked off a process that has imported everything."""
    forked = SimpleNamespace(Popen=lambda words, **_: Program(words[1:], root), DEVNULL=None, STDOUT=None)
    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.verify_resume.subprocess", forked)
        patch.chdir(root)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield pool


@pytest.fixture(scope="module")
def faults(pool, tmp_path_factory, small):
    """The uninterrupted run of each task with a planted fault, and the run in which the fault shows."""

    def train(name):
        directory = tmp_path_factory.mktemp(name)
        task = f"tests.planted_faults:{''.join(map(str.title, name.split('_')))}"
        runs = Runs(task, [*small(TrainerVanilla), "--batch_size", "32"], directory, seed=0)
        whole = runs.train("whole", 0)
        comparison = FAULTS[name][0]
        if comparison == KILLED:
            return whole, runs.train_and_kill("other", [KILL_AT], iter([0, 0]))
        return whole, runs.train("other", 2 if comparison == WORKERS else 0)

    return {name: pool.submit(train, name) for name in FAULTS}


@pytest.fixture(scope="module")
def proofs(pool, faults, tmp_path_factory, small, command):
    """The ends of whole proofs, with the directories for what they leave."""

    def prove(name):
        directory, (program, num_kills, _) = tmp_path_factory.mktemp("proof"), PROGRAMS[name]
        flags = small(TrainerSeg if name == "segmentation" else TrainerVanilla)
        flags = [*flags, "--seed", "3", "--debug", "--n_epoch", "1"]
        tool = ["-m", "tools.verify_resume", "--kills", num_kills]
        return command(*tool, *program, *flags, TMPDIR=str(directory), timeout=600), directory

    return {name: pool.submit(prove, name) for name in PROGRAMS}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_its_cause_is_named(faults, name):
    whole, other = faults[name].result()
    comparison, kind, word = FAULTS[name]
    difference = compare(whole, other)
    assert (difference and difference.kind) == kind
    assert not difference or word in explain(comparison, difference).replace("\n ", "")


def test_what_is_lost_by_a_kill_is_made_again(faults):
    whole, killed = faults["innocent"].result()
    assert sorted(whole.updates) == list(range(1, 25)) and len(whole.lines) == 24
    assert [line["update"] for line in killed.lines] == [*range(1, 13), *range(10, 25)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_proof_as_a_user_runs_it(proofs, name):
    done, directory = proofs[name].result()
    status = PROGRAMS[name][2]
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    kept = list(directory.glob("verify_resume_*"))
    if status == 0:
        assert "The resume is exact: killed once, the run" in done.stdout and "differs" not in done.stdout
        assert "updates lost and repeated" in done.stdout and kept == []
    else:
        assert "os.urandom" in done.stdout and "The resume is exact" not in done.stdout
        left = Path(re.search(r"their output are in (\S+)", done.stdout)[1])
        assert {path.name for path in left.iterdir()} >= {"whole_trace.txt", "again_trace.txt", "again_output.txt"}
        shutil.rmtree(left)


# ---- comparison ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "parts", "kind", "where"),
    [
        ([line(1), line(2), line(3)], {}, None, ""),
        ([line(1), line(2), line(2), line(3)], {}, None, ""),
        ([line(1), line(2, data="x", values={"loss": "0x1p1"}), line(3)], {}, "data", "update 2 is the first"),
        ([line(1), line(2, data="x", random="x"), line(3)], {}, "data and random", "data, random"),
        ([line(1), line(2), line(3, random="x", networks="x")], {}, "random", "update 3"),
        ([line(1), line(2, networks="x"), line(2), line(3)], {}, "step", "update 2 is the first, in networks"),
        ([line(1), line(2)], {}, "length", "update 3 is not made"),
        ([line(1), line(2), line(3), line(4)], {}, "length", "update 4 is made"),
        ([line(1), line(2), line(3)], {"score": "x"}, "end", "at the end score"),
        ([line(1), line(2), line(3)], {"more": "x"}, "end", "at the end more"),
    ],
)  # fmt: skip
def test_the_first_difference_is_found_in_the_order_in_which_it_was_made(lines, parts, kind, where):
    difference = compare(make_run(line(1), line(2), line(3)), make_run(*lines, **parts))
    assert (difference and difference.kind) == kind
    if difference:
        assert where in difference.where
        told = [explain(comparison, difference) for comparison in (REPEATED, WORKERS, KILLED)]
        assert all(f"Where: {difference.where}" in text and "Likely: " in text for text in told)


def test_a_kill_of_one_of_several_processes_is_a_kill(monkeypatch, tmp_path):
    statuses = iter([PeerError.status, 0])
    monkeypatch.setattr(Runs, "start", lambda *arguments, **settings: next(statuses))
    monkeypatch.setattr(Runs, "run_dir", lambda self, name: tmp_path)
    monkeypatch.setattr(Runs, "read", lambda self, name: name)
    assert Runs("task.py", [], tmp_path, seed=0).train_and_kill("killed", [5], itertools.repeat(0)) == "killed"


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "trace.txt"
    path.write_text('{"update": 1}\n{"upda\n{"update": 2}\n')
    assert read_trace(path) == [{"update": 1}, {"update": 2}]


# ---- the report ------------------------------------------------------------------------------------------------------
@pytest.fixture
def report(monkeypatch, capsys, tmp_path):
    """A function that gives a proof these runs instead of real ones, and returns its report and what it asked for."""

    def report(again, workers, killed):
        asked, made = {}, {"whole": make_run(*lines), "again": again, "workers": workers, "killed": killed}

        def train(self, name, num_workers):
            return made[name]

        def train_and_kill(self, name, kills, num_workers):
            asked.update(kills=kills, workers=[next(num_workers) for _ in range(5)])
            return made[name]

        monkeypatch.setattr(Runs, "train", train)
        monkeypatch.setattr(Runs, "train_and_kill", train_and_kill)
        asked["is_exact"] = prove(Runs("unused", [], tmp_path, seed=5), num_kills=9, num_workers=3)
        return capsys.readouterr().out, asked

    lines = [line(update) for update in range(1, 25)]
    good, bad = make_run(*lines), make_run(*lines[:20], line(21, data="x"), *lines[21:], networks="x")
    report.good, report.bad = good, bad
    return report


def test_kills_come_after_the_first_save_and_every_number_of_processes_gets_its_turn(report):
    text, asked = report(report.good, report.good, report.good)
    assert asked["is_exact"] and asked["workers"] == [3, 0, 1, 2, 3]
    assert asked["kills"] == sorted(asked["kills"]) and len(asked["kills"]) == 9
    assert min(asked["kills"]) >= 4 and max(asked["kills"]) <= 24 and len(set(asked["kills"])) > 4
    assert "The resume is exact: killed 9 times" in text and "differs" not in text


def test_nothing_is_killed_when_the_run_cannot_be_repeated(report):
    text, asked = report(report.bad, report.good, report.good)
    assert asked == {"is_exact": False} and "the resume is not to blame" in text


def test_a_fault_of_the_loading_processes_is_told_from_one_of_the_resume(report):
    text, asked = report(report.good, report.bad, report.good)
    assert not asked["is_exact"] and asked["workers"] == [3] * 5
    assert "(--num_workers) changes the result" in text and "stays the same: killed 9 times" in text
    text, asked = report(report.good, report.bad, report.bad)
    assert "(--num_workers) changes the result" in text and "resumed ends differently" in text


def test_a_resume_that_is_not_exact_is_told_with_its_parts(report):
    text, asked = report(report.good, report.good, report.bad)
    assert not asked["is_exact"] and "The resume is exact" not in text
    table = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.startswith("  ") and row.split()}
    assert table["networks"] == ["same", "same", "differs"] and table["score"] == ["same", "same", "same"]
    assert table["the"] == ["updates", "same", "same", "differs"] and "update 21 is the first, in data" in text


# ---- what ends it ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [["--resume", "x"], ["--resume=auto"], ["--max_time", "1h"]])
def test_options_that_contradict_the_check_are_refused_in_one_line(flags):
    with pytest.raises(UserError, match=rf"leave {flags[0].split('=')[0]} out"):
        main(["trainer_vanilla.py", *flags])


@pytest.mark.parametrize(("last", "status"), [("sys.exit(4)", 4), ("os.abort()", 1)])
def test_a_run_that_fails_by_itself_ends_the_check_with_its_last_lines(last, status, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tools.verify_resume.subprocess", subprocess)  # not that of `pool`
    program = tmp_path / "unlucky.py"
    program.write_text(f"import os, sys\nprint('out of luck', flush=True)\n{last}\n")
    with pytest.raises(SystemExit) as error:
        verify_resume(str(program), [], 1, seed=0)
    assert error.value.code == status
    said = capfd.readouterr().err
    assert "  out of luck" in said and str(tmp_path) in said and len(list(tmp_path.glob("verify_resume_*"))) == 1


def test_a_run_with_too_few_updates_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Runs, "train", lambda self, name, num_workers: make_run(line(1), line(2), line(3)))
    with pytest.raises(UserError, match=r"only 3 updates: give a smaller --batch_size"):
        verify_resume("unused", [], 1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_nobody_reads_ends_quietly_and_leaves_nothing(root, tmp_path):
    program = (
        "from tools import verify_resume; from engine.options.parser import run_main; "
        "verify_resume.prove = lambda *_: [print(number, flush=True) for number in range(99_999)] == []; "
        "run_main(lambda: verify_resume.verify_resume('unused', [], 1, seed=0))"
    )
    (tmp_path / "left").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, env=os.environ | {"TMPDIR": str(tmp_path / "left")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=20), said) == (141, b"") and list((tmp_path / "left").iterdir()) == []
    process.stderr.close()


def test_a_signal_ends_the_run_under_way_too_and_leaves_nothing(root, tmp_path):
    note = tmp_path / "child"
    child = tmp_path / "child.py"
    child.write_text(f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    (tmp_path / "left").mkdir()
    program = (
        "from tools.verify_resume import verify_resume; from engine.options.parser import run_main; "
        f"run_main(lambda: verify_resume({str(child)!r}, [], 1, seed=0))"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "left")}
    process = Program(["-c", program], root, environment)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert list((tmp_path / "left").iterdir()) == []
