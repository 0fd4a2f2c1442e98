"""Open a file of `torch.save` as data only, whoever made it.

`torch.load(weights_only=True)` calls nothing but a short list of functions, so a file cannot run a program. A small
file could still ask for much memory or for hours, so the archive, its pickle and the content are measured.

The format: a zip archive, uncompressed, with NAME/data.pkl (the structure, a pickle of protocol 2) and one file
NAME/data/KEY for the numbers of each storage.
"""

import os
import pickletools
import re
import warnings
import zipfile
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch

from utils.errors import DamagedError, UserError

UNFOLDED = 8  # times its size in the file: how large the content may become in memory
MAX_DEPTH = 100  # of lists in lists
OLD_PICKLE = b"\x80"  # how a file begins that torch wrote before 1.6


def open_as_data(file: BinaryIO, path: Any) -> Any:
    """Open what `torch.save` wrote, onto the CPU. No other function of the core opens such files.

    Args:
        file: open for reading. Bytes behind the archive are ignored.
        path: its name, for the message of an error.

    Raises:
        DamagedError: when it looks like a file that was cut off or changed by accident.
        UserError: when no program would have written it by accident.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        check_pickle(read_structure(file, size))
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
        check_content(content, size)
    except UserError as error:
        raise UserError(f"{path} is not a checkpoint that can be opened as data only: {error}") from None
    except Exception as error:  # a file that was changed may lead torch's reader into an exception of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        if "weights_only" in reason:
            name = re.search(r"GLOBAL ([\w.]+)", reason)
            what = f"it names {name[1]!r}, which is not data" if name else "its pickle does more than hold data"
            hint = "Save a state_dict(), not a whole object"
            raise UserError(f"{path} is not a checkpoint that can be opened as data only: {what}. {hint}") from None
        raise DamagedError(f"The checkpoint {path} is damaged, or is none: {reason[:120]}") from None
    return content


def refuse_if(is_bad: bool, reason: str) -> None:
    if is_bad:
        raise UserError(reason)


def read_structure(file: BinaryIO, size: int) -> bytes:
    """Return the pickle in an archive, if no entry of the archive can unfold to more than its bytes in the file."""
    file.seek(0)
    hint = "To convert one that you trust: torch.save(torch.load(OLD, weights_only=True), NEW)"
    refuse_if(file.read(1) == OLD_PICKLE, f"it is a bare pickle, which torch wrote before 1.6. {hint}")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 for entry in entries)
        refuse_if(not is_stored, "a part of it is compressed or encrypted")
        refuse_if(sum(entry.file_size for entry in entries) > size, "its parts are larger than the file")
        refuse_if(len({name.lower() for name in names}) < len(names), "a part of it is there twice")
        directory = names[0].partition("/")[0]
        for name in names:
            parts = PurePosixPath(name).parts
            refuse_if(parts[0] != directory or ".." in parts, f"it holds a file named {name[:50]!r}")
        return archive.read(f"{directory}/data.pkl")


def check_pickle(pickled: bytes) -> None:
    """Refuse a pickle that takes much memory or time while it is opened.

    A `bytearray` may be of any size. A tuple that holds another one twice, which again holds one twice, and so on, is
    small itself, but Python walks through all of it to hash it, as the key of a dictionary. So this follows what stands
    on the stack of the pickle, each tuple as the number of values in it and all else as 1.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        refuse_if(argument in ("builtins bytearray", "__builtin__ bytearray"), "it makes a bytearray")
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in opcode.name:
            memo[argument] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[argument])
        else:
            taken = opcode.stack_before
            if pickletools.markobject in taken:
                first = marks.pop()
                below = first - taken.index(pickletools.markobject)
            else:
                below = first = len(stack) - len(taken)
            count = 1 + sum(stack[first:]) if "TUPLE" in opcode.name else 1
            refuse_if(count > UNFOLDED * len(pickled), f"a tuple in it unfolds to {count:,} values")
            del stack[below:]
            stack += [count] * len(opcode.stack_after)


def check_content(content: Any, size: int) -> None:
    """Refuse a content that is much larger than the file of `size` bytes, for whoever walks through it or copies it."""
    num_values = num_bytes = 0
    left = [(content, 0)]
    while left:
        value, depth = left.pop()
        inside: Any = ()
        if isinstance(value, dict):
            inside = dict.values(value)
        elif isinstance(value, list | tuple):
            inside = value
        elif torch.is_tensor(value):
            num_bytes += value.numel() * value.element_size()
        num_values += len(inside)
        refuse_if(depth > MAX_DEPTH, f"it is nested deeper than {MAX_DEPTH} levels")
        refuse_if(max(num_values, num_bytes) > UNFOLDED * size, f"it unfolds to more than {UNFOLDED} times its size")
        left += [(entry, depth + 1) for entry in inside]
