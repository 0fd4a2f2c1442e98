"""The log of a run: coloured on a terminal, plain in a file, and in step with progress bars."""

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
DIM, RESET = "\033[2m", "\033[0m"


def wants_colour(stream: TextIO) -> bool:
    """Return whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class EscapingFormatter(logging.Formatter):
    r"""Escapes what a terminal would obey instead of show, such as the ESC in a file's name; lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class TerminalHandler(logging.Handler):
    """Writes to standard output, above a progress bar if one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        text, stream = self.format(record), sys.stdout
        if wants_colour(stream):
            clock = logging.Formatter().formatTime(record, "%H:%M:%S")
            text = f"{DIM}{clock}{RESET} {COLOURS.get(record.levelno, '')}{text}{RESET}"
        try:
            with tqdm.external_write_mode(stream):
                print(text, file=stream, flush=True)
        except OSError:  # `... | head` has gone, or a disk is full; the log file goes on
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        except UnicodeEncodeError:  # a terminal that cannot show ± or ×
            print(text.encode("ascii", "replace").decode(), file=stream, flush=True)


def open_own(path: str | Path) -> TextIO:
    """Open a text file to append to it. A link is refused, since the lines would go into a file elsewhere."""
    no_links = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, no_links, 0o666))


class LogFileHandler(logging.FileHandler):
    """Appends to a file that is no link. If that fails, it prints one message, and the run goes on."""

    has_failed = False

    def _open(self) -> TextIO:
        return open_own(self.baseFilename)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            print(f"The log {self.baseFilename} lacks lines: {error.strerror}.", file=sys.stderr)


def build_logger(name: str, path: str | Path | None = None) -> logging.Logger:
    """Return a logger that writes to the terminal and, when `path` is given, appends to that file.

    It does not pass records to the root logger, so nothing is printed twice.
    """
    logger = logging.Logger(name, level=logging.INFO)
    terminal = TerminalHandler()
    terminal.setFormatter(EscapingFormatter())
    logger.addHandler(terminal)
    if path is not None:
        handler = LogFileHandler(path, encoding="utf-8", delay=True, errors="backslashreplace")
        handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    return logger


def build_stderr_logger(name: str, prefix: str) -> logging.Logger:
    """Return a logger of warnings and errors on standard error, with a prefix, for one of several processes."""
    logger = logging.Logger(name, level=logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter(f"{prefix}%(message)s"))
    logger.addHandler(handler)
    return logger
