"""Calls with what a person has given: what a class does not take, or cannot do with, is named in one line."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from engine.options.arguments import call, split_arguments, taken
from utils.errors import UserError


class Net:
    def __init__(self, width: int, depth: int = 2, *, up: str = "a"):
        if width < 1:
            raise ValueError("too narrow")
        self.given = (width, depth, up)


def test_what_a_person_gives_counts():
    assert call(Net, {"width": 1, "depth": 3}, {"depth": 4, "up": "b"}, "--args").given == (1, 4, "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 1, "dept": 1}, ["--args", "Net takes no argument 'dept'", "mean 'depth'", "width, depth, up"]),
        ({}, ["needs the argument width", "--args"]),
        ({"width": 0}, ["Net cannot be made", "'width': 0", "ValueError: too narrow", "test_arguments.py"]),
        ({"width": "x"}, ["--args: width of Net is a whole number", "x"]),
        ({"self": 1, "width": 1}, ["'self'"]),
    ],
)
def test_what_does_not_fit_is_named(arguments, words):
    with pytest.raises(UserError) as error:
        call(Net, {}, arguments, "--args")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_what_takes_nothing_cannot_be_called():
    with pytest.raises(UserError, match="cannot be called with what it is given: too many positional arguments"):
        call(lambda: None, {}, {}, "--args", first=[1])


def test_a_class_that_is_at_fault_itself_keeps_its_traceback():
    with pytest.raises(ValueError, match="too narrow") as error:
        call(Net, {"width": 0}, {}, "--args")
    assert not isinstance(error.value, UserError)


def test_what_torch_refuses_is_told_even_without_arguments():
    with pytest.raises(UserError, match="Muon cannot be made: ValueError"):
        call(torch.optim.Muon, {}, {}, "--args", first=[[nn.Parameter(torch.ones(3))]])


def test_only_what_is_named_is_offered():
    assert taken(Net, {"width": 1, "other": 2}) == {"width": 1}
    assert taken(lambda a, **more: None, {"a": 1, "b": 2}) == {"a": 1}
    assert call(lambda a, **more: (a, more), {"a": 1}, {"b": 2}, "--args") == (1, {"b": 2})
    assert call(lambda first, b: (first, b), {}, {"b": 2}, "--args", first=[1]) == (1, 2)
    with pytest.raises(UserError, match="takes no argument 'first'"):
        call(lambda first, b=1: (first, b), {}, {"first": 2}, "--args", first=[1])


class Typed:
    def __init__(self, count: int, share: float = 0.5, name: str | None = "a", ends: list[int] = (), on: "bool" = True,
                 places: "Sequence[int] | None" = None):  # fmt: skip
        self.given = (count, share, name, ends, on)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 1.5}, "count of Typed is a whole number, not '1.5'"), ({"count": True}, "a whole number"),
        ({"count": None}, "not 'null'"), ({"share": "x"}, "share of Typed is a number"), ({"share": False}, "a number"),
        ({"name": 3}, "a text or null"), ({"ends": "x"}, "a list"), ({"ends": 3}, "a list"),
        ({"places": "x"}, "a list"), ({"on": "no"}, "true or false"), ({"on": 1}, "true or false"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(arguments, words):
    with pytest.raises(UserError) as error:
        call(Typed, {"count": 1}, arguments, "--args")
    assert f"--args: {next(iter(arguments))} of Typed is" in str(error.value) and words in str(error.value)


def test_values_of_the_kind_that_is_named_are_taken():
    arguments = {"count": 2, "share": 1, "name": None, "ends": [1, 2], "on": False}
    assert call(Typed, {}, arguments, "--args").given == (2, 1, None, [1, 2], False)
    assert call(torch.optim.AdamW, {}, {"betas": [0.1, 0.2]}, "--args", first=[[nn.Parameter(torch.ones(2))]])


def test_the_arguments_of_several_go_by_their_names():
    assert split_arguments({"b": {"x": 1}}, ["a", "b"], "--args", "loss") == {"a": {}, "b": {"x": 1}}
    with pytest.raises(UserError, match=r"--args: there is no loss 'bb' \(did you mean 'b\w+'\?\); there are a, bbb"):
        split_arguments({"bb": {}}, ["a", "bbb"], "--args", "loss")
    with pytest.raises(UserError, match="b has a mapping of its arguments"):
        split_arguments({"b": 3}, ["a", "b"], "--args", "loss")
