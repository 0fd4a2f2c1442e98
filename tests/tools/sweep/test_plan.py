"""What a sweep is to try is read strictly."""

import pytest

from tools.sweep.plan import Choice, Range, combinations, parse_grid, parse_search
from utils.errors import UserError


def test_a_grid_has_every_combination_and_the_last_name_changes_fastest():
    grid = parse_grid(["lr=1e-3,3e-4", "optim=adamW,sgd"])
    assert [tuple(each.values()) for each in combinations(grid)] == [
        ("1e-3", "adamW"), ("1e-3", "sgd"), ("3e-4", "adamW"), ("3e-4", "sgd"),
    ]  # fmt: skip


def test_the_spaces_of_a_search():
    entries = ["a=log:1e-5..1e-1", "b=0..0.1", "c=int:16..128", "d=x,y", "e=int:log:1..9", "f=../a,../b", "g=-1..1"]
    assert list(parse_search(entries).values()) == [
        Range(1e-5, 0.1, is_log=True), Range(0, 0.1), Range(16, 128, is_int=True), Choice(("x", "y")),
        Range(1, 9, True, True), Choice(("../a", "../b")), Range(-1, 1),
    ]  # fmt: skip


def test_arguments_of_classes_go_by_dotted_names_and_their_values_may_hold_commas():
    entries = ["model_args.width=32,64", "optim_args.betas=[0.9,0.95],[0.9,0.999]", 'loss_args={"a":1,"b":2},{"a":2}']
    assert parse_grid(entries) == {
        "model_args.width": ["32", "64"], "optim_args.betas": ["[0.9,0.95]", "[0.9,0.999]"],
        "loss_args": ['{"a":1,"b":2}', '{"a":2}'],
    }  # fmt: skip
    spaces = parse_search(["optim_args.eps=log:1e-9..1e-6", "a.b.c=[1,2],[3,4]", 'd.e="x,y","]"'])
    assert [*spaces.values()] == [
        Range(1e-9, 1e-6, is_log=True), Choice(("[1,2]", "[3,4]")), Choice(('"x,y"', '"]"')),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("lr.=1", "NAME=VALUES"), (".lr=1", "NAME=VALUES"), ("a..b=1", "NAME=VALUES"), ("a.0=1", "NAME=VALUES"),
        ("a.b=[1,2", "without its other half"), ("a.b=1],[2", "without its other half"), ('a.b="x', "other half"),
        ("a.b=[1,2],[1,2]", "[1,2] twice"), ("a.b=[1],", "empty value"),
        ("lr", "NAME=VALUES"), ("=1", "NAME=VALUES"), ("--lr=1", "NAME=VALUES"), ("lr=", "empty value"),
        ("lr=1,,2", "empty value"), ("lr=1,2,1", "1 twice"), ("lr=1, ", "empty value"),
    ],
)  # fmt: skip
def test_a_wrong_entry_of_a_grid_is_named(entry, said):
    with pytest.raises(UserError) as error:
        parse_grid([entry])
    assert said in str(error.value) and repr(entry)[1:-1] in str(error.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("lr=lgo:1e-5..1", "'lgo' is none of int, log .did you mean 'log'"), ("lr=normal:0..1", "'normal' is none"),
        ("lr=log:0..1", "above 0"), ("lr=log:1,2", "comes LOW..HIGH"), ("lr=1..1", "not below"),
        ("lr=2..1", "not below"),
        ("lr=a..1", "not a finite number"), ("lr=1..nan", "not a finite number"), ("n=int:1.5..3", "not an integer"),
        ("lr=..", "not a finite number"), ("lr=log:log:1..2", "at most"), ("lr=3:1..2", "at most"), ("lr=", "empty"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_named(entry, said):
    with pytest.raises(UserError, match=said) as error:
        parse_search([entry])
    assert entry in str(error.value)


def test_a_name_that_comes_twice_and_too_many_combinations_are_refused():
    with pytest.raises(UserError, match="names lr twice"):
        parse_grid(["lr=1", "lr=2"])
    with pytest.raises(UserError, match="1,000,000 combinations"):
        combinations({name: [*map(str, range(100))] for name in "abc"})
