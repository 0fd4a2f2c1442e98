"""The values of a sweep are read strictly."""

import pytest

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution as Choice  # noqa: E402
from optuna.distributions import FloatDistribution as Float  # noqa: E402
from optuna.distributions import IntDistribution as Int  # noqa: E402

from tools.sweep.plan import extreme_settings, grid_settings, parse_grid, parse_search  # noqa: E402
from utils.errors import UserError  # noqa: E402


def test_a_grid_has_every_combination_and_the_last_name_changes_fastest():
    grid = parse_grid(["lr=1e-3,3e-4", "optim=adamW,sgd"])
    assert [tuple(each.values()) for each in grid_settings(grid)] == [
        ("1e-3", "adamW"), ("1e-3", "sgd"), ("3e-4", "adamW"), ("3e-4", "sgd"),
    ]  # fmt: skip


def test_the_spaces_of_a_search():
    entries = ["a=log:1e-5..1e-1", "b=0..0.1", "c=int:16..128", "d=x,y", "e=int:log:1..9", "f=../a,../b", "g=-1..1"]
    assert list(parse_search(entries).values()) == [
        Float(1e-5, 0.1, log=True), Float(0, 0.1), Int(16, 128), Choice(("x", "y")),
        Int(1, 9, log=True), Choice(("../a", "../b")), Float(-1, 1),
    ]  # fmt: skip


def test_the_parser_of_the_task_sees_both_ends_of_each_range():
    assert extreme_settings(parse_search(["lr=1e-3..1", "n=int:1..9", "optim=a,b"])) == [
        {"lr": lr, "n": n, "optim": optim}
        for lr, n, optim in [("0.001", "1", "a"), ("1.0", "1", "a"), ("0.001", "1", "a"), ("0.001", "9", "a"),
                             ("0.001", "1", "a"), ("0.001", "1", "b")]
    ]  # fmt: skip


def test_arguments_of_classes_have_dotted_names_and_their_values_may_hold_commas():
    entries = ["optim_args.betas=[0.9,0.95],[0.9,0.999]", 'loss_args={"a":1,"b":2},{"a":2}', 'd.e="x,y","]"']
    assert [space.choices for space in parse_grid(entries).values()] == [
        ("[0.9,0.95]", "[0.9,0.999]"), ('{"a":1,"b":2}', '{"a":2}'), ('"x,y"', '"]"'),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("lr.=1", "NAME=VALUES"), ("a..b=1", "NAME=VALUES"), ("a.0=1", "NAME=VALUES"), ("--lr=1", "NAME=VALUES"),
        ("a.b=[1,2", "without its other half"), ('a.b="x', "other half"),
        ("a.b=[1,2],[1,2]", "a value twice"), ("lr=", "empty value"), ("lr=1,,2", "empty value"),
        ("lr=1,2,1", "a value twice"),
    ],
)  # fmt: skip
def test_a_wrong_entry_of_a_grid_is_named(entry, message):
    with pytest.raises(UserError) as error:
        parse_grid([entry])
    assert message in str(error.value) and repr(entry)[1:-1] in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("lr=lgo:1e-5..1", "'lgo' is not one of int, log .did you mean 'log'"), ("lr=log:0..1", "`low > 0` must hold"),
        ("lr=2..1", "must hold"), ("lr=a..1", "not a finite number"),
        ("lr=1..nan", "not a finite number"), ("n=int:1.5..3", "not an integer"), ("lr=..", "not a finite number"),
        ("lr=3:1..2", "'3' is not one of int, log"), ("lr=", "empty"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_named(entry, message):
    with pytest.raises(UserError, match=message) as error:
        parse_search([entry])
    assert entry in str(error.value)


def test_a_name_that_comes_twice_and_too_many_combinations_are_refused():
    with pytest.raises(UserError, match="names lr twice"):
        parse_grid(["lr=1", "lr=2"])
    hundred = ",".join(map(str, range(100)))
    with pytest.raises(UserError, match="1,000,000 combinations"):
        grid_settings(parse_grid([f"{name}={hundred}" for name in "abc"]))
