"""Option files: comments, files that build on others, and what is refused."""

import json
import time

import pytest

from engine.options.files import read_json, read_options, read_with_bases, typed, without_comments
from utils.errors import UserError


@pytest.fixture
def write(tmp_path):
    """A function that writes a file, in a directory below, too, and returns its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def merged(path) -> dict:
    values = {}
    for _, own in read_with_bases(path):
        values |= own
    return values


# ---- comments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"lr": 1 // one\n}', {"lr": 1}),
        ('// first\n{"lr": /* in\nbetween */ 1}', {"lr": 1}),
        ('{"a": "http://x.org/*", "b": "*/ // \\" // "}', {"a": "http://x.org/*", "b": '*/ // " // '}),
        ('{"a": "\\\\"} // "', {"a": "\\"}),
        ('{"a": 1 /**/ /* // */}', {"a": 1}),
    ],
)
def test_comments_are_passed_over_but_not_inside_of_strings(text, values):
    assert read_json(without_comments(text)) == values


def test_a_comment_without_an_end_is_told_with_its_line():
    with pytest.raises(ValueError, match="line 2 is never closed"):
        without_comments('{\n/* "a": 1 }')


def test_many_quotes_and_comments_take_no_time():
    started = time.perf_counter()
    for text in ('\\"' * 30_000, '"' + '\\"' * 30_000, "/" * 60_000, "/*/" * 20_000 + "*/", '"a":' * 15_000):
        with pytest.raises(ValueError):
            read_json(without_comments(text))
    assert time.perf_counter() - started < 3


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("1e-3", 1e-3), ("[0.9, 0.95]", [0.9, 0.95]), ("True", True), ("null", None), ("None", None),
     ("no", "no"), ("010", "010"), ("1_000", "1_000"), ('"64"', "64"), ("", ""), ('{"a": [1]}', {"a": [1]})],
)  # fmt: skip
def test_an_argument_is_json_if_it_can_be(text, value):
    assert typed(text) == value and type(typed(text)) is type(value)


def test_inside_of_a_mapping_yaml_is_typed_and_outside_it_is_text(write):
    text = "lr: 1e-3\nmodel_args: {width: 64, eps: 1e-3, up: bilinear, name: '64', on: true, sizes: [1, 2]}\na.b: 3\n"
    assert read_options(write("a.yaml", text)) == {
        "lr": "1e-3", "a.b": 3,
        "model_args": {"width": 64, "eps": 1e-3, "up": "bilinear", "name": "64", "on": True, "sizes": [1, 2]},
    }  # fmt: skip


# ---- files that build on others --------------------------------------------------------------------------------------
def test_a_file_builds_on_others_relative_to_itself(write):
    write("bases/first.yaml", "lr: 1\nseed: 1\nkeep: 1")
    write("bases/second.json", '{"base": "first.yaml", "lr": 2, "seed": 2}')
    path = write("mine.yaml", "base: bases/second.json\nlr: 3")
    assert merged(path) == {"lr": "3", "seed": 2, "keep": "1"}
    names = [file.rpartition("/")[2] for file, _ in read_with_bases(path)]
    assert names == ["first.yaml", "second.json", "mine.yaml"]


def test_of_several_bases_later_ones_win_and_one_may_come_twice(write):
    write("root.yaml", "lr: 0\nkeep: 1")
    write("a.yaml", "base: root.yaml\nlr: 1")
    write("b.yaml", "base: root.yaml\nseed: 2")
    assert merged(write("c.yaml", "base: [a.yaml, b.yaml]")) == {"lr": "0", "keep": "1", "seed": "2"}
    assert merged(write("d.json", '{"base": ["b.yaml", "a.yaml"]}'))["lr"] == "1"


@pytest.mark.parametrize("name", ["a.yaml", "./a.yaml", "../{}/a.yaml"])
def test_a_file_that_builds_on_itself_is_an_error_which_shows_the_way(write, tmp_path, name):
    write("b.yaml", f"base: {name.format(tmp_path.name)}")
    with pytest.raises(UserError, match=r"a.yaml builds on itself: .*/a.yaml -> .*/b.yaml -> .*/a.yaml"):
        read_with_bases(write("a.yaml", "base: b.yaml"))


def test_a_missing_base_is_named_with_the_file_that_wants_it(write):
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file or directory. It is a base of .*a.yaml"):
        read_with_bases(write("a.yaml", "base: nowhere.yaml"))


def test_bases_upon_bases_come_to_an_end(write):
    write("0.json", "{}")
    for level in range(1, 9):
        path = write(f"{level}.json", json.dumps({"base": [f"{level - 1}.json"] * 9}))
    with pytest.raises(UserError, match="more than 100 files"):
        read_with_bases(path)


@pytest.mark.parametrize("base", ['{"a": 1}', "3", '[["a"]]', '""', '"a\\nb"', "[null]", "null"])
def test_a_base_is_a_name_or_a_list_of_names(write, base):
    with pytest.raises(UserError, match="base is the name of a file"):
        read_with_bases(write("a.json", f'{{"base": {base}}}'))


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 9 + "]" * 9 + "}", "[" * 3000])
def test_what_is_nested_too_deeply_is_refused(write, text):
    with pytest.raises(UserError, match="nested too deeply"):
        read_options(write("a.json", text + ("]" * 3000 if text[0] == "[" else "")))
    with pytest.raises(UserError, match="nested too deeply"):
        read_options(write("a.yaml", text))
