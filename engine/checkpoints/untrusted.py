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
from typing import Any, BinaryIO

import torch

from utils.errors import DamagedError, UserError

UNFOLDED = 8  # times its size in the file: how large the content may become in memory
CONVERT = "To convert one that you trust: torch.save("
OLD_PICKLE = b"\x80"  # how a file begins that torch wrote before 1.6
NOT_DATA = "is not a checkpoint that can be opened as data only"


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
        check_content(content, UNFOLDED * size)
    except UserError as error:
        raise UserError(f"{path} {NOT_DATA}: {error}") from None
    except Exception as error:  # a file that was changed may lead torch's reader into an exception of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        if "weights_only" not in reason:
            raise DamagedError(f"The checkpoint {path} is damaged, or is none: {reason[:120]}") from None
        name = re.search(r"GLOBAL ([\w.]+)", reason)
        what = f"it names {name[1]!r}, which is not data" if name else "its pickle does more than hold data"
        raise UserError(f"{path} {NOT_DATA}: {what}. Save a state_dict(), not a whole object") from None
    return content


def refuse_if(is_bad: bool, reason: str) -> None:
    if is_bad:
        raise UserError(reason)


def read_structure(file: BinaryIO, size: int) -> bytes:
    """Return the pickle in an archive, if no entry of the archive can unfold to more than its bytes in the file."""
    file.seek(0)
    start = file.read(9)
    hint = f"it is a bare pickle, which torch wrote before 1.6. {CONVERT}torch.load(OLD, weights_only=True), NEW)"
    refuse_if(start.startswith(OLD_PICKLE), hint)
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") < size
    refuse_if(is_safetensors, f"it is a safetensors file. {CONVERT}safetensors.torch.load_file(OLD), NEW)")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        is_stored = all(entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 for entry in entries)
        refuse_if(not is_stored, "a part of it is compressed or encrypted")
        refuse_if(sum(entry.file_size for entry in entries) > size, "its parts are larger than the file")
        refuse_if(len({name.lower() for name in names}) < len(names), "a part of it is there twice")
        return archive.read(f"{names[0].partition('/')[0]}/data.pkl")


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


def check_content(content: Any, limit: int) -> None:
    """Refuse a content with more values or bytes than `limit`, for whoever walks through it or copies it."""
    num_values = 0
    num_bytes: dict[int, int] = {}  # of the largest tensor in each storage: tied weights are there once
    left = [content]
    while left and num_values <= limit:
        value = left.pop()
        num_values += 1
        if isinstance(value, dict):
            left += dict.values(value)
        elif isinstance(value, list | tuple):
            left += value
        elif torch.is_tensor(value) and value.layout is torch.strided:
            storage = value.untyped_storage().data_ptr()
            num_bytes[storage] = max(num_bytes.get(storage, 0), value.numel() * value.element_size())
    is_larger = max(num_values, sum(num_bytes.values())) > limit
    refuse_if(is_larger, f"it unfolds to more than {UNFOLDED} times its size")
