"""Comparing the options of runs: what counts as a difference, how it is shown, and the exit status."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from tools.configcmp import MISSING, compare, main, printable, render, same

NAN = float("nan")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a config file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


# --- what is the same


@pytest.mark.parametrize(
    "a, b",
    [(1, 1.0), (0, -0.0), (NAN, NAN), (None, None), ([1, NAN], [1.0, NAN]), ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
)
def test_equal_values(a, b):
    assert same(a, b) and same(b, a)


@pytest.mark.parametrize(
    "a, b",
    [
        (1, True),
        (0, False),
        (1, "1"),
        (None, False),
        (None, 0),
        (NAN, 0.0),
        (NAN, None),
        ([1], [True]),
        ([1], [1, 2]),
        ([], {}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"b": 1}),
        (2**53, 2**53 + 1),
        (None, MISSING),
    ],
)
def test_different_values(a, b):
    assert not same(a, b) and not same(b, a)


def test_compare_keeps_only_the_differing_keys_in_order():
    first = {"lr": 0.1, "seed": 0, "gone": None, "nan": NAN}
    second = {"seed": 0.0, "new": 1, "lr": 0.2, "nan": NAN}
    assert compare([first, second]) == {"lr": [0.1, 0.2], "gone": [None, MISSING], "new": [MISSING, 1]}


def test_compare_finds_the_odd_one_of_many():
    assert compare([{"a": 1}, {"a": 1}, {"a": 2}]) == {"a": [1, 1, 2]}
    assert compare([{"a": 1}, {"a": 1}, {}]) == {"a": [1, 1, MISSING]}
    assert compare([{"a": 1}] * 3) == {}


# --- how it is shown


def test_two_files_are_shown_with_marks_in_aligned_columns():
    different = compare([{"lr": 0.1, "momentum": 0.9}, {"lr": "0.1", "viz": True}])
    assert render(["first", "second"], different).splitlines() == [
        "            first  second",
        '~ lr        0.1    "0.1"',
        "- momentum  0.9    .",
        "+ viz       .      true",
    ]


def test_more_files_are_shown_as_a_table_of_one_column_each():
    different = compare([{"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 1}, {"lr": 0.1}])
    assert render(["a", "b", "c"], different).splitlines() == ["      a  b  c", "seed  0  1  ."]


def test_narrow_terminal_gets_one_value_a_line_and_loses_nothing():
    different = compare([{"model_path": "x" * 60 + "1"}, {"model_path": "x" * 60 + "2"}])
    lines = render(["a", "bb"], different, width=80).splitlines()
    assert lines == ["~ model_path", f'    a   "{"x" * 60}1"', f'    bb  "{"x" * 60}2"']
    assert max(map(len, lines)) <= 80
    assert len(render(["a", "bb"], different, width=None).splitlines()) == 2


def test_table_is_kept_up_to_the_very_width():
    different = compare([{"lr": 0.1}, {"lr": 0.25}])
    table = render(["a", "b"], different)
    needed = max(map(len, table.splitlines()))
    assert render(["a", "b"], different, width=needed) == table
    assert render(["a", "b"], different, width=needed - 1) != table


def test_colours_do_not_move_the_columns():
    for count in (2, 3):
        different = compare([{"lr": 10.0**-i, "seed": 0, f"only{i}": "x" * i} for i in range(count)])
        names = ["a", "bb", "ccc"][:count]
        coloured = render(names, different, is_coloured=True)
        assert COLOUR.search(coloured)
        assert COLOUR.sub("", coloured).splitlines() == [
            line.rstrip() for line in render(names, different).splitlines()
        ]


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("a\x1b[31m\n\x9bb\u202e") == "a\\x1b[31m\\n\\x9bb\\u202e"
    assert printable("größe 大小") == "größe 大小"
    shown = render(["a\nb", "c"], compare([{"k\x1b": "v\x9b"}, {}]))
    assert len(shown.splitlines()) == 2
    assert "\x1b" not in shown and "\x9b" not in shown


# --- the command


def test_exit_status_says_same_or_different(write, capsys):
    a, b = write("a.json", {"lr": 1, "x": NAN}), write("b.json", {"x": NAN, "lr": 1.0})
    c = write("c.json", {"lr": True})
    assert main([a, b]) == 0
    assert main([a, a, b]) == 0
    assert "the same: 2 keys" in capsys.readouterr().out
    assert main([a, c]) == 1
    assert main([a, b, c]) == 1
    assert "\x1b" not in capsys.readouterr().out  # not a terminal


def test_run_directories_are_read_through_their_config(write, capsys):
    a, b = write("1663932921/config_Vanilla_1663932921.json", {"lr": 1}), write("other/config_x.json", {"lr": 2})
    write("1663932921/provenance.json", {"device": "cpu"})
    assert main([os.path.dirname(a), os.path.dirname(b)]) == 1
    assert main([os.path.dirname(a), a]) == 0


def test_json_is_for_programs(write, capsys):
    a, b = write("a.json", {"lr": 1, "gone": None, "s": 0}), write("b.json", {"lr": 2, "new": [1], "s": 0})
    assert main([a, b, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "files": [a, b],
        "different": {"lr": {a: 1, b: 2}, "gone": {a: None}, "new": {b: [1]}},
    }
    assert main([a, a, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [a, a], "different": {}}


def test_yaml_and_json_with_comments_are_read(write):
    a = write("a.json", b'{"lr": 1e-3, // a comment\n "url": "http://x", "list": [1, 2]}')
    b = write("b.yaml", b"lr: 1e-3  # a comment\nurl: http://x\nlist: [1, 2]\n")
    assert main([a, b]) == 0
    assert main([a, write("c.yaml", b"lr: [")]) == 2


def test_byte_order_mark_is_no_obstacle(write):
    assert main([write("a.json", b'\xef\xbb\xbf{"lr": 1}'), write("b.json", {"lr": 1})]) == 0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", b"", "not valid JSON"),
        ("a.json", b'{"lr": 1', "not valid JSON"),
        ("a.json", b"\xff\xfe\x00", "not valid JSON"),
        ("a.json", b"[" * 100000, "not valid JSON"),
        ("a.json", b'{"lr": ' + b"1" * 5000 + b"}", "not valid JSON"),
        ("a.json", b'{"lr": 1, "x": 0, "lr": 1}', "'lr' is given twice"),
        ("a.json", b'{"inner": {"lr": 1, "lr": 2}}', "'lr' is given twice"),
        ("a.json", b"[1, 2]", "one JSON object"),
        ("a.json", b"null", "one JSON object"),
        ("evil\n\x1b[31m.json", b"", "\\n\\x1b[31m.json"),
    ],
)
def test_unreadable_file_ends_with_status_two_and_one_line(write, capsys, name, content, message):
    good, bad = write("good.json", {"lr": 1}), write(name, content)
    assert main([good, bad]) == main([bad, good]) == main([good, good, bad, "--json"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 3 and error.count(message) == 3


def test_missing_file_and_unfit_directory_end_with_status_two(write, tmp_path, capsys):
    good = write("good.json", {})
    (tmp_path / "none").mkdir()
    write("several/config_a.json", {}), write("several/config_b.json", {})
    messages = {"nothing": "No such file", "none": "this one has 0", "several": "config_a.json, config_b.json"}
    for bad, message in messages.items():
        assert main([good, str(tmp_path / bad)]) == 2
        error = capsys.readouterr().err
        assert message in error and bad in error and error.count("\n") == 1


def test_one_config_is_not_enough(write, capsys):
    with pytest.raises(SystemExit) as ended:
        main([write("a.json", {})])
    assert ended.value.code == 2
    assert "two or more" in capsys.readouterr().err


def on_a_terminal(arguments, columns, **environment):
    """Run the command with its output on a pseudo-terminal; return what it wrote there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **environment}
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, "-m", "utils.configcmp", *arguments]
    status = subprocess.run(command, stdout=theirs, env=environment, timeout=30).returncode
    os.close(theirs)
    written = os.read(ours, 65536).decode()
    os.close(ours)
    return status, written


def test_colours_are_for_a_terminal_that_wants_them(write):
    files = [write("a.json", {"lr": 0.1, "old": 1}), write("b.json", {"lr": 0.2, "new": 1})]
    status, written = on_a_terminal(files, 200, NO_COLOR=None)
    assert status == 1 and all(colour in written for colour in ("\x1b[31m", "\x1b[32m", "\x1b[33m"))
    for environment in ({"NO_COLOR": "1"}, {"NO_COLOR": None, "TERM": "dumb"}):
        status, plain = on_a_terminal(files, 200, **environment)
        assert status == 1 and plain == COLOUR.sub("", written)


def test_terminal_width_chooses_the_layout(write):
    files = [write("a.json", {"lr": 0.1}), write("b.json", {"lr": 0.2})]
    assert len(on_a_terminal(files, 1000, NO_COLOR="1")[1].splitlines()) == 2
    assert len(on_a_terminal(files, 20, NO_COLOR="1")[1].splitlines()) == 3


@pytest.mark.parametrize("num_keys", [1, 20000])  # less and more than a pipe and a buffer hold
def test_reader_that_leaves_early_sees_no_traceback(write, num_keys):
    a, b = write("a.json", {f"key{i}": i for i in range(num_keys)}), write("b.json", {})
    program = ["utils/configcmp.py"] if num_keys == 1 else ["-m", "utils.configcmp"]  # as a user may start it
    command = [sys.executable, *program, a, b, "--json"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert error == b""
