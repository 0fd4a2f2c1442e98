"""The program that looks at checkpoints: digests, contents, integrity."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoints.file import FORMAT, make_footer, save_checkpoint
from tools.checkpoint import main

WHOLE = {
    "format": FORMAT, "exact": True, "networks": {"model": nn.Linear(3, 2).state_dict()},
    "optimizers": {"model": torch.optim.AdamW(nn.Linear(3, 2).parameters(), lr=0.25).state_dict()},
    "progress": {"epoch": 3, "update": 1204, "sample": 64}, "seconds": {"train": 1.5},
    "score": {"update": 1200, "num_samples": 1000, "results": {"accuracy": 0.875, "loss": 0.5}},
    "options": {"model_type": "Vanilla", "optim": "adamW", "monitor": "accuracy", "note": "x\x1b[31m", **{
        f"option_{number}": number for number in range(40)
    }},
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "UNet_last_ckpt.pth"
    save_checkpoint({"format": FORMAT, "exact": True, "weight": torch.arange(6.0), "options": {"lr": 1e-3}}, path)
    return path


def run(capsys, *argv) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, argv)))
    return left.value.code, *capsys.readouterr()


def test_hash_prints_a_line_for_each_part(tmp_path, capsys):
    for name, state in (("a", WHOLE), ("b", {**WHOLE, "seconds": {"train": 2.5}}), ("c", {**WHOLE, "score": None})):
        save_checkpoint(state, tmp_path / f"{name}.pth")
    status, out, err = run(capsys, "hash", *(tmp_path / f"{name}.pth" for name in "abc"))
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= max(80, len(str(tmp_path / "a.pth")))
    a, b, c = (dict(map(str.split, part.splitlines()[1:])) for part in out.split(str(tmp_path))[1:])
    assert a.keys() == WHOLE.keys() | {"run"} and all(len(text) == 64 for text in a.values())
    assert {name for name in a if a[name] != b[name]} == {"seconds"}
    assert {name for name in a if a[name] != c[name]} == {"score", "run"}


def test_show_says_what_a_checkpoint_holds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(WHOLE, "a.pth")
    status, out, err = run(capsys, "show", "a.pth")
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 80 and "\x1b" not in out
    for text in (f"a.pth, {Path('a.pth').stat().st_size:,} bytes", "3 epochs, 1,204 updates, 64 samples", "(Vanilla)",
                 "8 numbers in 2 tensors", "(adamW): learning rate 0.25, 2 parameter tensors",
                 "accuracy 0.8750 on 1,000 samples, after update 1,200", "option_39=39"):  # fmt: skip
        assert text in " ".join(out.split()), text


@pytest.mark.parametrize("part", [{"networks": 3}, {"optimizers": {"m": {}}}, {"progress": {}}, {"score": {"a": 1}}])
def test_show_of_strange_content_is_an_error_for_people(tmp_path, capsys, part):
    torch.save({"format": FORMAT, **part}, tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data + make_footer(data))
    status, out, err = run(capsys, "show", tmp_path / "a.pth")
    assert (status, out, len(err.splitlines())) == (2, "", 1) and "does not have the contents" in err


def test_verify_goes_through_all_files(checkpoint, capsys):
    bad, gone = checkpoint.with_name("bad.pth"), checkpoint.with_name("gone.pth")
    bad.write_bytes(checkpoint.read_bytes()[:-1])
    assert run(capsys, "verify", checkpoint)[:2] == (0, f"{checkpoint}: good\n")
    status, out, err = run(capsys, "verify", bad, gone, checkpoint)
    assert status == 3 and out == f"{checkpoint}: good\n" and "bad.pth is damaged" in err and "gone.pth" in err
    assert run(capsys, "verify", gone)[0] == 2


@pytest.mark.parametrize("command", ["hash", "show", "verify"])
def test_damaged_file_ends_each_command_with_status_3(checkpoint, capsys, command):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    status, out, err = run(capsys, command, checkpoint)
    assert (status, out) == (3, "") and "damaged" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "usage: python -m tools.checkpoint"), (["hash"], "FILE"),
     (["show", "--al", "a"], "unknown option '--al'"),
     (["hsah", "a"], "did you mean 'hash'"), (["-1", "a"], "not one of")],
)  # fmt: skip
def test_wrong_usage_ends_with_status_2(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "") and message in err


def test_it_is_a_program(command, checkpoint):
    done = command("-m", "tools.checkpoint", "verify", checkpoint, checkpoint.with_name("gone.pth"))
    assert done.returncode == 2 and done.stdout == f"{checkpoint}: good\n" and len(done.stderr.splitlines()) == 1


def test_a_run_stands_for_its_best_checkpoint(vanilla_run, capsys):
    with pytest.raises(SystemExit):
        main(["verify", str(vanilla_run)])
    assert capsys.readouterr().out == f"{vanilla_run / 'Vanilla_best_ckpt.pth'}: good\n"
