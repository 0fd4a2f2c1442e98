"""Recognize the runs of this user, whose checkpoints may name code again.

A checkpoint is data, and so is every record beside it: a run directory from elsewhere may say anything. So a run that
names code signs what a person has named (HMAC, RFC 2104), with a key that lies in the user's home and nowhere else. The
signatures are in `provenance.json`. They hold for the copy of a run on this machine, and for no changed value.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import PROVENANCE, read_record
from utils.files import write_json

KEY_SIZE = 32  # bytes


def key_path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "plainloop" / "key"


def read_key() -> bytes | None:
    """Return the key of this user; None when there is none, or others may have written it."""
    try:
        status = key_path().stat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o077 if hasattr(os, "getuid") else True
        key = key_path().read_bytes() if is_own else b""
    except OSError:
        return None
    return key if len(key) == KEY_SIZE else None


def make_key() -> bytes | None:
    """Return the key of this user, made if there is none yet; None where it cannot be written."""
    path = key_path()
    with contextlib.suppress(OSError):  # also: there is one
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_SIZE))
    return read_key()


def signature(key: bytes, name: str, value: Any) -> str:
    text = json.dumps([name, value], sort_keys=True, default=str)
    return hmac.new(key, text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()


def sign(run_dir: str | Path, values: Mapping[str, Any]) -> None:
    """Sign values of a run, such as its options, in its record.

    Nothing is signed where the record is missing or the key cannot be written: a person then names the code again.

    Args:
        run_dir: the directory of the run.
        values: by name, values of JSON.
    """
    path = Path(run_dir) / PROVENANCE
    record, key = read_record(path), make_key()
    if record and key:
        signatures = record.get("signatures")
        kept = signatures if isinstance(signatures, dict) else {}
        new = {name: signature(key, name, value) for name, value in values.items()}
        write_json(path, record | {"signatures": kept | new})


def signed_values(checkpoint: str | Path, values: Mapping[str, Any]) -> set[str]:
    """Return the names of those values of a checkpoint that this user's run has signed.

    Args:
        checkpoint: the file, in the directory of its run.
        values: what it says, by name: its options, or anything else that `sign` got.
    """
    signatures = read_record(Path(checkpoint).parent / PROVENANCE).get("signatures")
    key = read_key() if isinstance(signatures, dict) else None
    if not key:
        return set()
    return {
        name
        for name, value in values.items()
        if hmac.compare_digest(str(signatures.get(name)).encode(), signature(key, name, value).encode())
    }
