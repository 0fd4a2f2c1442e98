"""A trace shows every difference between two updates, and nothing else."""

import json
import random
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tools.trace import Trace, plain, short_digest
from utils.errors import UserError

Pair = namedtuple("Pair", "image label")


@dataclass
class Sample:
    image: torch.Tensor
    name: str


class Unknown:
    pass


def update_of(*micro_batches):
    return SimpleNamespace(micro_batches=list(micro_batches), indices=[0])


def last_line(path):
    return json.loads(path.read_text().splitlines()[-1])


def note(trace, trainer, micro_batch=None, **values):
    """One update as the trainer tells of it; returns its line."""
    trace.on_update_start(trainer, update_of(torch.ones(2) if micro_batch is None else micro_batch))
    trainer.progress.finish_update(2)
    trace.on_update_end(trainer, {name: torch.tensor(value) for name, value in values.items()})
    return last_line(trace.path)


def differing(a, b):
    return {name for name in a if a[name] != b[name]} - {"update", "sample"}


def test_a_line_says_where_the_run_stands_and_its_values_exactly(trainer, tmp_path):
    trace = Trace(tmp_path / "trace.txt")
    assert note(trace, trainer, loss=0.1, grad_norm=float("nan"))["values"]["grad_norm"] == "nan"
    line = note(trace, trainer, loss=0.1, grad_norm=2.5)
    assert [line[name] for name in ("update", "epoch", "sample")] == [2, 0, 4]
    assert float.fromhex(line["values"]["loss"]) == float(torch.tensor(0.1)) != 0.1


def test_the_same_update_gives_the_same_line(trainer, tmp_path):
    trace = Trace(tmp_path / "trace.txt")
    assert differing(note(trace, trainer, loss=1.0), note(trace, trainer, loss=1.0)) == set()


def other_weight(trainer):
    with torch.no_grad():
        trainer.networks["model"][0].weight[0, 0] += 1e-7


def other_buffer(trainer):
    trainer.networks["model"][1].running_mean[0] += 1


def other_rate(trainer):
    trainer.optimizers["model"].param_groups[0]["lr"] *= 2


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (other_weight, "networks"), (other_buffer, "networks"), (other_rate, "optimizers"),
        (lambda trainer: random.random(), "random"), (lambda trainer: np.random.rand(), "random"),
        (lambda trainer: torch.rand(1), "random"),
    ],
)  # fmt: skip
def test_what_has_changed_is_seen_in_its_entry(trainer, tmp_path, change, entry):
    trace = Trace(tmp_path / "trace.txt")
    before = note(trace, trainer, loss=1.0)
    change(trainer)
    assert differing(before, note(trace, trainer, loss=1.0)) == {entry}


def test_the_data_is_what_went_in_even_when_the_step_overwrites_it(trainer, tmp_path):
    trace, batch = Trace(tmp_path / "trace.txt"), torch.ones(2)
    before = note(trace, trainer, batch)
    trace.on_update_start(trainer, update_of(batch))
    batch.zero_()
    trace.on_update_end(trainer, {})
    after = last_line(trace.path)
    assert before["data"] == after["data"]
    assert note(trace, trainer, batch)["data"] != after["data"]


BATCHES = [
    torch.zeros(2), torch.ones(2), torch.ones(2, 1), torch.ones(2).int(), [torch.ones(2), "a"], [torch.ones(2), "b"],
    {"image": torch.ones(2)}, {"image": torch.ones(2), 3: None}, Pair(torch.ones(2), 1), Pair(torch.ones(2), 2),
    Sample(torch.ones(2), "a"), Sample(torch.ones(2), "b"), np.zeros(2), np.ones(2), np.ones(2, np.uint16),
    np.array(["a", "b"]), np.array(["a", "c"]), np.array([{"a": 1}]), np.array([{"a": 2}]), np.float32(1),
    np.float32(2), torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse(), b"ab", Unknown(),
]  # fmt: skip


def test_batches_of_any_kind_are_told_apart():
    digests = [short_digest(plain(batch)) for batch in BATCHES]
    assert len(set(digests)) == len(BATCHES)
    assert short_digest(plain(Unknown())) == digests[-1]  # not by its address, which is another in each process


def test_lines_are_appended_and_one_that_was_cut_short_stays_alone(trainer, tmp_path):
    path = tmp_path / "trace.txt"
    note(Trace(path), trainer, loss=1.0)
    with open(path, "a") as file:
        file.write('{"upd')
    trace = Trace(path)
    note(trace, trainer, loss=1.0)
    Trace(path)
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and lines[1] == '{"upd' and json.loads(lines[2])["update"] == 2


def test_a_file_that_cannot_be_written_is_named_before_the_run_begins(tmp_path):
    with pytest.raises(UserError, match=r"Cannot write the trace .*none/trace\.txt: No such file"):
        Trace(tmp_path / "none" / "trace.txt")
