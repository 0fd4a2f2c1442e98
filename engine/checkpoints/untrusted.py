"""Look at a file of `torch.save` before it is opened.

`torch.load(weights_only=True)` calls nothing but a list of functions. What it still lets through: a file of a kilobyte
that asks for gigabytes, data that unfold without end, attributes put into objects, and archives that two programs read
differently. So the archive and the pickle in it are walked through first, with nothing done that they ask for.

The format: a zip archive, uncompressed, with NAME/data.pkl (the structure, a pickle of protocol 2) and one file
NAME/data/KEY for the numbers of each storage.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from pathlib import PurePosixPath
from typing import Any

import torch

from utils.errors import DamagedError, UserError

MAX_STRUCTURE = 8 * 2**20  # bytes of data.pkl and of the archive's directory; 50,000 tensors take as much
MAX_DEPTH = 100  # of lists in lists
UNFOLDED = 8  # times the size of the file: how large its tensors, or its structure, may become
TENSOR_OVERHEAD = 512  # bytes of memory that a tensor takes besides its numbers

LOCAL_FILE, END, END_64, LOCATOR_64 = b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"
STORAGES = {
    "torch ByteStorage": 1, "torch CharStorage": 1, "torch BoolStorage": 1, "torch ShortStorage": 2,
    "torch HalfStorage": 2, "torch BFloat16Storage": 2, "torch IntStorage": 4, "torch FloatStorage": 4,
    "torch LongStorage": 8, "torch DoubleStorage": 8, "torch ComplexFloatStorage": 8, "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}  # fmt: skip
DTYPES = {f"torch {name}": value.itemsize for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
CALLS = {
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "collections OrderedDict", "collections Counter", "torch Size", "torch device",
}  # fmt: skip
ALLOWED = CALLS | STORAGES.keys() | DTYPES.keys()


def open_as_data(data: bytes, path: Any) -> Any:
    """Open what `torch.save` wrote, onto the CPU, after a look at it; nothing else in the house opens such files.

    Args:
        data: the content of the file.
        path: its name, for the message.

    Raises:
        DamagedError, UserError: see `inspect`.
    """
    inspect(data, path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a file that was changed may lead torch's reader into an exception of any type
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DamagedError(f"The checkpoint {path} is damaged, or is none: {reason}") from None


def inspect(data: bytes, path: Any) -> None:
    """Raise when a file is not what `torch.save` writes for tensors, numbers, text, lists and dictionaries.

    Args:
        data: its content.
        path: its name, for the message.

    Raises:
        DamagedError: when it looks like a file that was cut off or changed by accident.
        UserError: when it is anything else.
    """
    try:
        sizes = read_archive(data)
        start, size = sizes.pop("data.pkl")
        storages = {name.removeprefix("data/"): length for name, (_, length) in sizes.items()}
        Walk(storages, size, len(data)).follow(data[start : start + size])
    except Refused as error:
        raise UserError(f"{path} is not a checkpoint that can be opened as data only: {error}") from None
    except (ValueError, LookupError, TypeError, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DamagedError(f"The checkpoint {path} is damaged, or is none: {reason}") from None


class Refused(Exception):
    """What no program would write by accident."""


def refuse_if(is_bad: bool, reason: str) -> None:
    if is_bad:
        raise Refused(reason)


# ---- the archive -----------------------------------------------------------------------------------------------------
def read_archive(data: bytes) -> dict[str, tuple[int, int]]:
    """Return the start and the size of every file in the archive, by its name below the archive's own.

    Stricter than a zip may be: nothing before, between or behind its parts can be taken for another archive.
    """
    refuse_if(
        data[:1] == b"\x80",
        "it is a bare pickle, which torch wrote before 1.6. To convert one that you trust: "
        "torch.save(torch.load(OLD, weights_only=True), NEW)",
    )
    if not data.startswith(LOCAL_FILE):
        raise ValueError("it does not begin as a file of torch.save")
    check_end(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        end_of_files = archive.start_dir
    refuse_if(len({entry.filename.lower() for entry in entries}) < len(entries), "a file in it is there twice")
    own_name = entries[0].filename.partition("/")[0]
    found, free = {}, 0
    for entry in entries:
        name, offset = entry.filename, entry.header_offset
        prefix, _, rest = name.partition("/")
        is_plain = name == entry.orig_filename and name.isprintable() and "\\" not in name
        is_inside = prefix == own_name != "" and rest != "" and ".." not in PurePosixPath(name).parts
        refuse_if(not (is_plain and is_inside and prefix != ".."), f"it holds a file named {name[:50]!r}")
        refuse_if(rest == "constants.pkl" or rest.startswith("code/"), "it is a program (TorchScript), not data")
        is_bare = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        refuse_if(not is_bare or entry.flag_bits & 1, f"its part {rest[:50]!r} is compressed or encrypted")
        if data[offset : offset + 4] != LOCAL_FILE:
            raise ValueError(f"its part {rest[:50]!r} is not where it should be")
        name_length, extra_length = struct.unpack("<HH", data[offset + 26 : offset + 30])
        start = offset + 30 + name_length + extra_length
        same_name = data[offset + 30 : offset + 30 + name_length] == name.encode()
        refuse_if(offset < free or not same_name, f"its part {rest[:50]!r} overlaps another")
        found[rest] = (start, entry.file_size)
        free = start + entry.file_size
    refuse_if(free > end_of_files, "a part of it is larger than the file")
    refuse_if("data.pkl" not in found, "it is a zip archive that torch.save did not write")
    refuse_if(found["data.pkl"][1] > MAX_STRUCTURE, f"its structure is larger than {MAX_STRUCTURE:,} bytes")
    return found


def check_end(data: bytes) -> None:
    """Make sure that the archive ends where the file ends, and that its two end records say the same.

    Readers search for these records, each in its own way; here there is only one way to find them.
    """
    end = len(data) - 22
    if data[end : end + 4] != END or data[end + 20 :] != b"\0\0":
        raise ValueError("its end is missing")
    size, start = struct.unpack("<LL", data[end + 12 : end + 20])
    if data[end - 20 : end - 16] == LOCATOR_64:
        (at,) = struct.unpack("<Q", data[end - 12 : end - 4])
        end -= 76
        long_size, long_start = struct.unpack("<QQ", data[end + 40 : end + 56])
        is_same = size in (long_size, 2**32 - 1) and start in (long_start, 2**32 - 1)
        refuse_if(not is_same or at != end or data[end : end + 4] != END_64, "it has two directories")
        size, start = long_size, long_start
    refuse_if(start + size != end, "its directory is not before its end")
    refuse_if(size > MAX_STRUCTURE, f"its directory is larger than {MAX_STRUCTURE:,} bytes")


# ---- the pickle ------------------------------------------------------------------------------------------------------
class Thing:
    """Stands for an object that the pickle would make.

    Attributes:
        kind: "list", "dict", "tuple", "storage", "tensor" or "other".
        entries: of a tuple its entries, of a dictionary its keys, of a storage its bytes and the bytes of one number.
        num_values: how many values one meets on a walk through it, one that is referred to twice counted twice.
        num_bytes: of the tensors that one meets.
        depth: how many levels are below it.
        is_used: it was put into another, or referred to: then it must be complete.
    """

    __slots__ = ("depth", "entries", "is_used", "kind", "num_bytes", "num_values")

    def __init__(self, kind: str, entries: list | None = None, num_bytes: int = 0):
        self.kind = kind
        self.entries = [] if entries is None else entries
        self.num_values, self.num_bytes, self.depth, self.is_used = 1, num_bytes, 0, False


class Name(str):
    """A global of an allowed name."""


LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_TUPLE": "tuple"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
GROWS = {"APPEND": ("list", 1), "APPENDS": ("list", 0), "SETITEM": ("dict", 2), "SETITEMS": ("dict", 0)}


class Walk:
    """Follows the operations of a pickle with `Thing`s in the place of objects.

    Args:
        storages: bytes of each storage in the archive.
        size: of the pickle.
        file_size: of the whole file, bytes.
    """

    def __init__(self, storages: dict[str, int], size: int, file_size: int):
        self.storages = storages
        self.max_values, self.max_bytes = UNFOLDED * size, UNFOLDED * file_size
        self.made_bytes = 0  # of all tensors, those included that end up nowhere
        self.stack: list[Any] = []
        self.outer: list[list] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def follow(self, pickled: bytes) -> None:
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.use(self.memo[argument]))
            elif name == "MARK":
                self.outer.append(self.stack)
                self.stack = []
            elif name == "GLOBAL":
                self.stack.append(self.find_global(argument))
            elif name in EMPTY:
                self.stack.append(Thing(EMPTY[name]))
            elif name in TUPLES or name == "TUPLE":
                made = self.make_tuple(self.take(TUPLES.get(name, 0)))
                self.stack.append(made)
            elif name in GROWS:
                kind, count = GROWS[name]
                self.grow(kind, self.take(count))
            elif name == "BINPERSID":
                self.stack.append(self.find_storage(self.stack.pop()))
            elif name == "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self.call(function, arguments))
            elif name == "BUILD":
                self.build(self.stack.pop())
            else:
                refuse_if(name not in ("PROTO", "STOP"), f"its pickle has the operation {name}")
        refuse_if(len(self.stack) != 1 or bool(self.outer), "its pickle leaves more than one object")

    def take(self, count: int) -> list:
        """Take the last `count` from the stack; 0 for all since the last mark."""
        if count:
            return [self.stack.pop() for _ in range(count)][::-1]
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    @staticmethod
    def use(value: Any) -> Any:
        if isinstance(value, Thing):
            value.is_used = True
        return value

    def put(self, target: Thing, values: list) -> None:
        """Count what is put into a container."""
        for value in values:
            if isinstance(value, Thing):
                value.is_used = True
                target.num_values += value.num_values
                target.num_bytes += value.num_bytes
                target.depth = max(target.depth, value.depth + 1)
            else:  # a long text counts more, since it may be referred to many times
                target.num_values += 1 + (len(value) // 64 if type(value) is str else 0)
        is_large = target.num_values > self.max_values or target.num_bytes > self.max_bytes
        refuse_if(is_large, f"it unfolds to more than {UNFOLDED} times its size")
        refuse_if(target.depth > MAX_DEPTH, f"it is nested deeper than {MAX_DEPTH} levels")

    def make_tuple(self, entries: list) -> Thing:
        made = Thing("tuple", entries)
        self.put(made, entries)
        return made

    def grow(self, kind: str, values: list) -> None:
        """Put values into the list, or keys and values into the dictionary, on top of the stack."""
        target = self.stack[-1]
        refuse_if(not isinstance(target, Thing) or target.kind != kind, "it fills what is no list and no dictionary")
        refuse_if(target.is_used, "something in it holds itself")
        if kind == "dict":
            target.entries += values[::2]
            refuse_if(not all(map(is_key, values[::2])), "a key in it is neither text nor a number")
        self.put(target, values)

    @staticmethod
    def find_global(name: str) -> Name:
        shown = name.replace(" ", ".")[:80]
        hint = "Save a state_dict(), not a whole object"
        refuse_if(name not in ALLOWED, f"it names {shown!r}, which is not data. {hint}")
        return Name(name)

    def find_storage(self, name: Any) -> Thing:
        _, kind, key, _, count = entries_of(name, 5)
        refuse_if(type(kind) is not Name or kind not in STORAGES, "a storage in it has no type")
        refuse_if(type(count) is not int or type(key) is not str, "a storage in it has no size")
        if key not in self.storages:
            raise ValueError(f"the numbers {key[:50]!r} are missing")
        stated, there = count * STORAGES[kind], self.storages[key]
        refuse_if(stated != there, f"a storage in it states {stated:,} bytes, but has {there:,}")
        return Thing("storage", [there, STORAGES[kind]])

    def call(self, function: Any, arguments: Any) -> Thing:
        refuse_if(type(function) is not Name or function not in CALLS, "it calls what is not to be called")
        name = function.partition(" ")[2]
        given = entries_of(arguments)
        if name.startswith("_rebuild_tensor"):
            return self.make_tensor(given, has_dtype=name.endswith("v3"))
        if name == "_rebuild_parameter":
            tensor, _, hooks = entries_of(arguments, 3)
            refuse_if(kind_of(tensor) != "tensor" or not is_empty(hooks), "a parameter in it is none")
            return tensor
        if name == "OrderedDict":
            refuse_if(bool(given), "an ordered dictionary in it is filled by a call")
            return Thing("dict")
        made = Thing("other")  # Counter, Size, device: nothing large can come from a small argument
        self.put(made, given)
        return made

    def make_tensor(self, given: list, has_dtype: bool) -> Thing:
        """Check that a tensor lies within its storage: torch would make the storage larger."""
        refuse_if(len(given) != 6 + has_dtype, "a tensor in it is not made as torch.save does")
        storage, offset, size, stride, _, hooks = given[:6]
        refuse_if(kind_of(storage) != "storage" or not is_empty(hooks), "a tensor in it has no storage")
        size, stride = entries_of(size), entries_of(stride)
        are_whole = all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        refuse_if(not are_whole or len(size) != len(stride) or len(size) > 64, "a tensor in it has no proper shape")
        num_bytes, itemsize = storage.entries
        if has_dtype:
            refuse_if(type(given[6]) is not Name or given[6] not in DTYPES, "a tensor in it has no type")
            itemsize = DTYPES[given[6]]
        last = sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
        refuse_if((offset + last) * itemsize > num_bytes, "a tensor in it is larger than its storage")
        made = Thing("tensor", num_bytes=math.prod(size) * itemsize + TENSOR_OVERHEAD)
        self.made_bytes += made.num_bytes
        refuse_if(self.made_bytes > self.max_bytes, f"its tensors take more than {UNFOLDED} times its size")
        return made

    def build(self, state: Any) -> None:
        """A module's state dict has an attribute with the versions of its modules, and nothing else has attributes."""
        target = self.stack[-1]
        is_known = kind_of(target) == kind_of(state) == "dict" and state.entries == ["_metadata"]
        refuse_if(not is_known, "it puts attributes into an object")
        self.put(target, [state])


def is_key(value: Any) -> bool:
    """Text, or a number of 64 bits: among longer ones many have the same hash, and a dictionary of them takes hours."""
    return type(value) is str or (type(value) is int and -(2**63) <= value < 2**63)


def kind_of(value: Any) -> str:
    return value.kind if isinstance(value, Thing) else "value"


def is_empty(value: Any) -> bool:
    return kind_of(value) == "dict" and not value.entries


def entries_of(value: Any, count: int | None = None) -> list:
    """The entries of a tuple, `count` of them if that is given."""
    is_fit = kind_of(value) == "tuple" and count in (None, len(value.entries))
    refuse_if(not is_fit, "its pickle does not fit what torch.save writes")
    return value.entries
