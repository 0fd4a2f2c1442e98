"""Arguments of a class as an option: checked, typed, and changed one by one."""

from argparse import ArgumentTypeError

import pytest

from engine.options.files import argument
from engine.options.parser import OptionParser, mapping, number, setting, with_value
from utils.errors import UserError


def parser() -> OptionParser:
    parser = OptionParser(prog="program")
    parser.add_argument("--model_args", type=mapping, default={})
    parser.add_argument("--lr", type=number(float, above=0), default=1.0)
    parser.add_argument("--names", nargs="+", default=None)
    parser.add_argument("--config", action="extend", nargs="+", default=None)
    parser.add_argument("--set", type=setting, action="extend", nargs="+", default=None)
    return parser


def test_a_mapping_is_a_json_object():
    assert mapping('{"width": 64, "sizes": [1, 2], "up": null}') == {"width": 64, "sizes": [1, 2], "up": None}
    wrong = ("", "1", "[]", "{", "{'a': 1}", '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 1}', '{"a b": 1}', "[" * 999)
    for text in wrong:
        with pytest.raises(ArgumentTypeError):
            mapping(text)


@pytest.mark.parametrize("text", ["", "a", "=1", "a b=1", "a.=1", ".a=1", "a..b=1", "-a=1", "a-b=1"])
def test_a_setting_is_a_name_and_a_value(text):
    with pytest.raises(ArgumentTypeError, match="NAME=VALUE"):
        setting(text)


def test_a_setting_may_hold_anything_behind_its_first_sign():
    assert setting("a.b=c=d") == ("a.b", "c=d") and setting("a=") == ("a", "")


@pytest.mark.parametrize("text", ["[1", '{"a"', '"a', "NaN", "[1e999]", "9" * 5000, "a\x1b"])
def test_what_begins_as_json_must_be_json_of_finite_numbers(text):
    with pytest.raises(ValueError):
        argument(text)


def test_a_value_is_changed_in_a_copy():
    before = {"a": {"b": 1, "c": 2}, "d": 3}
    assert with_value(before, ["a", "b"], 9) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert with_value(before, ["d", "e"], 9) == {"a": {"b": 1, "c": 2}, "d": {"e": 9}}
    assert before == {"a": {"b": 1, "c": 2}, "d": 3}


def test_set_changes_single_values_on_top_of_files_and_flags(tmp_path):
    (tmp_path / "a.yaml").write_text("model_args: {width: 1, depth: 1, norm: {eps: 1}}\nlr: 2")
    (tmp_path / "b.yaml").write_text("model_args.width: 2")
    files = ["--config", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    resolve = lambda *argv: parser().resolve([*files, *argv])  # noqa: E731
    assert resolve().model_args == {"width": 2, "depth": 1, "norm": {"eps": 1}}
    sets = ("--set", "model_args.norm.eps=1e-3", "model_args.up=bilinear", "lr=3", "--set", "model_args.on=True")
    changed = resolve(*sets)
    assert changed.model_args == {"width": 2, "depth": 1, "norm": {"eps": 1e-3}, "up": "bilinear", "on": True}
    assert changed.lr == 3
    assert resolve("--model_args", '{"a": 1}').model_args == {"a": 1}  # as a whole it takes the place of the other
    assert resolve("--set", "model_args.b=2", "--model_args", '{"a": 1}').model_args == {"a": 1, "b": 2}
    assert resolve("--set", 'model_args={"c": 3}', 'names=["a", "b"]').names == ["a", "b"]
    assert parser().resolve([]).model_args == {}  # the default of the next parser is as it was


@pytest.mark.parametrize(
    ("argv", "in_line"),
    [
        ("--set lr", ["--set", "'lr' is not NAME=VALUE"]),
        ("--set modle_args.width=3", ["unknown option 'modle_args.width'", "did you mean 'model_args'"]),
        ("--set lr.x=3", ["'lr' is flat"]),
        ("--set lr=-1", ["--set", "'-1'", "> 0"]),
        ("--set lr=[1]", ["--set", "'lr' takes one value"]),
        ("--set model_args=3", ["--set", "object"]),
        ("--set model_args.a=[1", ["'[1' is not JSON"]),
        ("--set model_args.a=NaN", ["nan"]),
        ("--set config=a.yaml", ["belongs on the command line, as --config"]),
        ("--model_args 3", ["--model_args", "'3'"]),
    ],
)
def test_a_wrong_setting_ends_in_one_line(argv, in_line, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().resolve(argv.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    for part in in_line:
        assert part in said


@pytest.mark.parametrize(
    ("text", "in_line"),
    [
        ("lr: {a: 1}", ["a.yaml", "'lr' is flat"]), ("\nlr.a: 1", ["a.yaml", "'lr' is flat"]),
        ("model_args: [1]", ["takes one value"]), ("modle_args.a: 1", ["unknown option 'modle_args.a'"]),
        ("model_args.a b: 1", ["not the name of an argument"]), ("set: [a=1]", ["belongs on the command line"]),
        ("model_args: null", ["cannot be null"]),
    ],
)  # fmt: skip
def test_a_wrong_mapping_in_a_file_is_named_with_its_file(text, in_line, capsys, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parser().resolve(["--config", str(tmp_path / "a.yaml")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    for part in in_line:
        assert part in said


def test_a_mapping_in_a_file_holds_arguments(tmp_path):
    for text, words in (("model_args: {a: NaN}", "nan is not a finite"), ("model_args: {'': 1}", "'' is not the name")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(UserError, match=f"a.yaml: {words}"):
            parser().resolve(["--config", str(tmp_path / "a.yaml")])
