"""A job goes back into the queue, and whatever SLURM answers ends up in the log, never in an exception."""

import logging
import os
from pathlib import Path

import pytest

from extras.callbacks import slurm
from extras.callbacks.slurm import job_id, requeue

VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.fixture
def outside(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scontrol(outside, monkeypatch, tmp_path) -> Path:
    """A fake scontrol that writes down how it was called; a test may append what it does then."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return path


@pytest.fixture
def logger() -> logging.Logger:
    """A logger that keeps its lines in `lines`, with their level."""
    logger = logging.Logger("test")
    logger.lines = []
    handler = logging.Handler()
    handler.emit = lambda record: logger.lines.append((record.levelname, record.getMessage()))
    logger.addHandler(handler)
    return logger


def test_job_is_requeued(scontrol, logger, tmp_path):
    assert requeue(logger)
    assert (tmp_path / "calls").read_text() == "requeue 17\n"
    assert logger.lines == [("INFO", "Requeued as job 17.")]


def test_only_the_task_of_an_array_is_requeued(scontrol, logger, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert requeue(logger)
    assert (tmp_path / "calls").read_text() == "requeue 15_0\n"


def test_outside_slurm_nothing_is_called(scontrol, logger, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "")
    assert job_id() is None and not requeue(logger)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert job_id() is None and not requeue(logger)
    assert not (tmp_path / "calls").exists()
    assert [level for level, _ in logger.lines] == ["WARNING"] * 2 and "SLURM_JOB_ID" in logger.lines[0][1]


@pytest.mark.parametrize(
    ("then", "named"),
    [
        ("echo 'slurm_requeue error: Requested operation\nis disabled' >&2; exit 1", "Requested operation is disabled"),
        ("exit 3", "status 3"),
        ("printf 'bad \\377 bytes' >&2; exit 1", "bad \ufffd bytes"),
        ("exec sleep 20", "no answer within 0.3 seconds"),
    ],
)
def test_what_fails_is_logged(scontrol, logger, monkeypatch, then, named):
    scontrol.write_text(scontrol.read_text() + then)
    monkeypatch.setattr(slurm, "TIMEOUT", 0.3)
    assert not requeue(logger)
    ((level, line),) = logger.lines
    assert level == "ERROR" and named in line and "scontrol requeue 17" in line and "\n" not in line


def test_missing_or_unfit_command_is_logged(scontrol, logger, monkeypatch):
    scontrol.write_text("no program")  # without a first line that names an interpreter
    assert not requeue(logger)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not requeue(logger)
    assert [level for level, _ in logger.lines] == ["ERROR"] * 2 and "no such command" in logger.lines[1][1]
