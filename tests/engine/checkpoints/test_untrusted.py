"""A checkpoint from a stranger executes nothing, fills nothing, takes no hours: it is refused in one line."""

import collections
import io
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoints import untrusted
from engine.checkpoints.file import load_checkpoint, load_file, make_footer
from engine.checkpoints.untrusted import inspect
from tests.torture.malicious import KINDS, a_tensor, archive, number, pickled, saved, text
from utils.errors import DamagedError, UserError

ROOT = Path(__file__).resolve().parents[3]
DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every malicious kind as a file, without and with a right SHA-256, and the canary that no kind may make."""
    directory = tmp_path_factory.mktemp("malicious")
    canary = directory / "canary"
    found = {}
    for kind, make in KINDS.items():
        data = make(canary)
        for ending, content in (("", data), (" with digest", data + make_footer(data))):
            found[kind + ending] = directory / f"{kind + ending}.pth"
            found[kind + ending].write_bytes(content)
    return found, canary


# ---- refused ---------------------------------------------------------------------------------------------------------
def test_there_are_at_least_ten_kinds():
    assert len(KINDS) >= 10


@pytest.mark.parametrize("open_it", [load_checkpoint, load_file])
@pytest.mark.parametrize("ending", ["", " with digest"])
@pytest.mark.parametrize("kind", KINDS)
def test_malicious_file_is_refused_in_one_line_and_does_nothing(files, kind, ending, open_it):
    paths, canary = files
    before = sorted(canary.parent.iterdir())
    with pytest.raises(UserError) as caught:
        open_it(paths[kind + ending])
    message = str(caught.value)
    assert paths[kind + ending].name in message and "\n" not in message and len(message) < 400
    assert caught.value.status == UserError.status  # an attack, not an accident
    assert not canary.exists() and sorted(canary.parent.iterdir()) == before


def test_all_malicious_files_together_take_little_memory_and_time(files):
    script = (
        "import resource, sys, time\n"
        "from engine.checkpoints.file import load_file\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, started = peak(), time.perf_counter()\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        load_file(path)\n"
        "    except ValueError:\n"
        "        continue\n"
        "    sys.exit('opened: ' + path)\n"
        "print(peak() - before, time.perf_counter() - started)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, files[0].values())], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mebibytes, seconds = map(float, done.stdout.split())
    assert mebibytes < 100 and seconds < 30


RUN_SOMETHING = ["os system", "builtins eval", "exec by getattr", "subprocess in the old format", "numpy objects",
                 "whole module", "stack global"]  # fmt: skip


@pytest.mark.parametrize("kind", RUN_SOMETHING)
def test_the_attacks_are_real(tmp_path, kind):
    data = KINDS[kind](tmp_path / "canary")
    torch.load(io.BytesIO(data), weights_only=False)
    assert (tmp_path / "canary").exists()


def test_the_attack_by_a_bare_pickle_is_real(tmp_path):
    pickle.loads(KINDS["bare pickle"](tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "kind",
    ["attributes of an allowed class", "list in itself", "reference bomb", "repeated number", "deep nesting",
     "path out of the archive", "zip bomb"],
)  # fmt: skip
def test_without_the_inspection_torch_opens_them(files, kind, monkeypatch):
    monkeypatch.setattr(untrusted, "inspect", lambda data, path: None)
    assert load_file(files[0][kind])["format"] == 1


# ---- refused, one rule at a time -------------------------------------------------------------------------------------
def refusal(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        inspect(data, "some.pth")
    return str(caught.value)


GLOBAL_DICT = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (a_tensor(17, 1), "larger than its storage"),
        (a_tensor(9, 2), "larger than its storage"),
        (a_tensor(-1, 1), "no proper shape"),
        (a_tensor(1, -1), "no proper shape"),
        (a_tensor(16, 1).replace(b"ccollections\nOrderedDict\n)R", b"N"), "no storage"),
        (a_tensor(16, 1).replace(b"_v2", b"_v9"), "_rebuild_tensor_v9"),
        (a_tensor(1, 1, stated=15), "states 60 bytes, but has 64"),
        (a_tensor(1, 1).replace(b"FloatStorage", b"LongStorage"), "states 128 bytes"),
        (a_tensor(1, 1).replace(b"torch\nFloatStorage", b"torch\nfloat32"), "a storage in it has no type"),
        (a_tensor(1, 1).replace(number(16), text("16")), "a storage in it has no size"),
        (a_tensor(1, 1).replace(b")RtR", b")RNtR"), "a tensor in it is not made as"),
        (a_tensor(1, 1).replace(b")RtR", b")RNtR").replace(b"_v2", b"_v3"), "a tensor in it has no type"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x89" + GLOBAL_DICT + b")R\x87R", "a parameter in it is none"),
        (GLOBAL_DICT + b"}(K\x01K\x02u\x85R", "filled by a call"),
        (b"}" + number(2**63) + b"Ns", "neither text nor a number"),
        (b"})Ns", "neither text nor a number"),
        (b"]K\x01K\x02s", "fills what is no list"),
        (b"K\x01K\x02\x86]b", "attributes"),
        (b"K\x01)R", "not to be called"),
        (b"K\x01Q", "does not fit"),
        (b"0", "operation POP"),
        (b"N2", "operation DUP"),
        (b"K\x01)\x81", "operation NEWOBJ"),
    ],
)
def test_pickle_that_torch_would_not_write_is_refused(payload, reason):
    assert reason in refusal(archive(pickled(payload)))


def test_what_is_right_about_those_pickles_is_taken():
    inspect(archive(pickled(a_tensor(16, 1))), "some.pth")
    inspect(archive(pickled(a_tensor(8, 2))), "some.pth")
    inspect(archive(pickled(GLOBAL_DICT + b")R")), "some.pth")
    inspect(archive(pickled(b"}" + number(2**63 - 1) + b"Ns")), "some.pth")


@pytest.mark.parametrize("payload", [b"h\x05", b"\x86", b"t", b"e", b"K", b"X\xff\xff\xff\x7fa", b"\xff", b"}Q"])
def test_pickle_that_is_cut_or_changed_is_an_error_for_people(payload):
    assert "some.pth" in refusal(archive(b"\x80\x02" + payload + b"."))
    assert "some.pth" in refusal(archive(b"\x80\x02" + payload))


def test_pickle_of_more_than_one_object_is_refused():
    assert "more than one object" in refusal(archive(b"\x80\x02NN."))
    assert "more than one object" in refusal(archive(b"\x80\x02(N."))


def test_pickle_and_directory_have_a_bound():
    assert "structure is larger" in refusal(archive(pickled(b"N" + b"0N" * 5_000_000)))
    names = {f"data/{number}{'x' * 60_000}": b"" for number in range(70)}
    assert "directory is larger" in refusal(archive(pickled(b"N"), more=names | {f"y{n}": b"" for n in names}))


def test_many_tensors_from_few_bytes_are_refused():
    one = a_tensor(1, 1)
    shared = one[:-1].replace(b"_v2\n(", b"_v2\nq\x01(") + b"q\x02R"
    data = archive(pickled(b"(" + shared + b"h\x01h\x02R" * 1000 + b"t"))
    assert "its tensors take more than" in refusal(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data + b"\0", "end is missing"),
        (lambda data: b"\0" + data, "does not begin"),
        (lambda data: data[:-1], "end is missing"),
        (lambda data: data[:-2] + b"\1\0", "end is missing"),
        (lambda data: data[: len(data) // 2], "end is missing"),
        (lambda data: data[:-6] + b"\0\0\0\0" + data[-2:], "two directories"),
        (lambda data: data.replace(b"PK\6\7", b"PK\6\0"), "directory is not before its end"),
    ],
)
def test_archive_has_one_beginning_and_one_end(change, reason):
    assert reason in refusal(change(saved({"a": torch.zeros(3)})))


def test_encrypted_archive_is_refused():
    data = bytearray(archive(pickled(b"N")))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert "encrypted" in refusal(bytes(data))


def test_size_that_is_larger_than_the_file_is_refused():
    data = archive(pickled(b"N"))
    place = data.rindex(b"PK\1\2") + 20
    data = data[:place] + 2 * (2**30).to_bytes(4, "little") + data[place + 8 :]
    assert "larger than the file" in refusal(data)


def test_zip_of_another_kind_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("word/document.xml", "<a/>")
    assert "torch.save did not write" in refusal(buffer.getvalue())
    with zipfile.ZipFile(empty := io.BytesIO(), "w"):
        pass
    assert "some.pth" in refusal(empty.getvalue())


def test_accident_is_told_from_attack():
    for data in (b"", b"a text", b"PK\3\4", saved({"a": torch.zeros(3)})[:-10]):
        with pytest.raises(DamagedError):
            inspect(data, "some.pth")


# ---- taken -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_all_types_and_shapes_are_taken(dtype):
    for shape in ((), (0,), (3,), (2, 3, 4)):
        tensor = torch.zeros(shape, dtype=dtype)
        content = [tensor, nn.Parameter(tensor, requires_grad=False), tensor.transpose(0, -1) if shape else tensor]
        data = saved([*content, tensor[..., 1:]] if shape else content)
        inspect(data, "some.pth")
        assert torch.load(io.BytesIO(data), weights_only=True)[0].dtype == dtype


def test_what_checkpoints_hold_is_taken():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LSTM(3, 4))
    module[2].weight_hh_l0 = module[2].weight_ih_l0  # a shared weight
    optimizer = torch.optim.Adam(module.parameters(), amsgrad=True)
    module[0](torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()
    content = {
        "module": module.state_dict(), "parameters": list(module.parameters()), "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 4]).state_dict(),
        "random": random.getstate(), "numbers": [0, -1, 255, 70000, -(2**40), 2**100, 1.5, float("nan")],
        "text": ["", "ü", "x" * 300, *["automobile"] * 3000], "none": None, "flags": [True, False],
        "ordered": collections.OrderedDict(a=1), "nested": [[[{"a": ((), [], {})}]]], "size": torch.Size([1, 2]),
        "device": torch.device("cuda", 1), "dtype": torch.bfloat16, "numbered": {1: 2}, "many": list(range(5000)),
        "twice": [module[0].weight, module[0].weight, module[0].weight[0]],
    }  # fmt: skip
    inspect(saved(content), "some.pth")


def test_archive_of_many_files_is_taken():
    inspect(saved([torch.zeros(1) for _ in range(3000)]), "some.pth")
