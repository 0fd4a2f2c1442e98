"""The log is plain in its file, coloured on a terminal only, and survives what a terminal cannot take."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from utils.logger import build_logger, wants_colour

ROOT = Path(__file__).resolve().parent.parent.parent


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch) -> Terminal:
    """Put a terminal in the place of standard output."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    return sys.stdout


def test_terminal_gets_colour_and_the_file_does_not(monkeypatch, tmp_path):
    terminal = open_terminal(monkeypatch)
    logger = build_logger("Vanilla", tmp_path / "log.txt")
    logger.info("epoch 1")
    logger.warning("no GPU")
    assert "epoch 1" in terminal.getvalue() and "\033[33mno GPU" in terminal.getvalue()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO epoch 1", "WARNING no GPU"]  # after date and time


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", ""), ("TERM", "dumb")])
def test_colour_can_be_refused(monkeypatch, name, value):
    terminal = open_terminal(monkeypatch)
    assert wants_colour(terminal)
    monkeypatch.setenv(name, value)
    assert not wants_colour(terminal)
    build_logger("Vanilla").error("failed")
    assert terminal.getvalue() == "failed\n"


def test_redirected_output_is_plain_and_printed_once(capsys):
    logger = build_logger("Vanilla")
    logging.basicConfig(stream=sys.stdout, force=True)
    try:
        logger.info("accuracy 0.9 ± 0.1")
        logger.debug("too fine")
    finally:
        logging.basicConfig(force=True)
    assert capsys.readouterr() == ("accuracy 0.9 ± 0.1\n", "")


def test_two_runs_of_one_name_do_not_share_a_file(tmp_path, capsys):
    first, second = (build_logger("Vanilla", tmp_path / name) for name in ("a.txt", "b.txt"))
    first.info("first")
    second.info("second")
    assert "second" not in (tmp_path / "a.txt").read_text() and "first" not in (tmp_path / "b.txt").read_text()
    assert capsys.readouterr().out == "first\nsecond\n"


def test_resumed_run_appends(tmp_path):
    for text in ("before", "after"):
        build_logger("Vanilla", tmp_path / "log.txt").info(text)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["before", "after"]


def test_file_is_made_with_the_first_line(tmp_path):
    logger = build_logger("Vanilla", tmp_path / "log.txt")
    assert not (tmp_path / "log.txt").exists()
    logger.info("now")
    assert (tmp_path / "log.txt").exists()


def test_terminal_that_cannot_show_a_letter_gets_a_question_mark(monkeypatch, tmp_path):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    build_logger("Vanilla", tmp_path / "log.txt").info("0.9 ± 0.1")
    assert raw.getvalue() == b"0.9 ? 0.1\n"
    assert "0.9 ± 0.1" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_reader_that_goes_away_stops_neither_the_run_nor_the_file(tmp_path):
    program = f"""
import sys
from utils.logger import build_logger
logger = build_logger("Vanilla", {str(tmp_path / "log.txt")!r})
sys.stdin.readline()
for number in range(3):
    logger.info(f"line {{number}}")
"""
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run.stdout.close()  # as `| head` does
    run.stdin.write("go\n")
    run.stdin.close()
    errors = run.stderr.read()
    assert run.wait(timeout=60) == 0 and "Traceback" not in errors
    assert "line 2" in (tmp_path / "log.txt").read_text()


def test_log_on_a_full_disk_is_told_once_and_ends_nothing(capsys):
    logger = build_logger("Vanilla", "/dev/full")
    logger.info("one")
    logger.info("two")
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert captured.err.count("lacks lines: No space left") == 1 and "Traceback" not in captured.err


def test_what_a_terminal_would_obey_is_escaped_in_the_log_and_on_the_terminal(monkeypatch, tmp_path):
    terminal = open_terminal(monkeypatch)
    build_logger("run", tmp_path / "log.txt").info("a\x1b[2Jb.png\nnext line é")
    for text in ((tmp_path / "log.txt").read_text(), terminal.getvalue()):
        assert "a\\x1b[2Jb.png\nnext line é" in text and "\x1b[2J" not in text
