"""The command line is strict, files mean the same as a command line, and what is saved gives the same options back."""

import copy
import errno
import json
import pickle
import signal
import sys
import threading
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import yaml

from engine.options.files import read_options
from engine.options.parser import (
    NOT_SAVED,
    BoolAction,
    ListAction,
    OptionParser,
    Options,
    as_flags,
    changed,
    device_ids,
    end_at_once_on_ctrl_c,
    file_name,
    file_path,
    list_of,
    number,
    one_of,
    run_main,
    saved_options,
)
from engine.registry import names
from extras.functional import resolve
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError
from utils.files import write_json

DEFAULTS = {
    "lr": 1e-3, "seed": None, "batch_size": 64, "viz": True, "debug": False, "optim": "adamW", "decay": None,
    "name": "run", "text": "", "config": None, "resume": None,
}  # fmt: skip


def small_parser() -> OptionParser:
    """A parser with one option of every kind."""
    parser = OptionParser(prog="program")
    add = parser.add_argument
    add("--lr", type=number(float, above=0), default=1e-3)
    add("--seed", type=number(int, low=0, high=2**63 - 1), default=None)
    add("--batch_size", type=number(int, low=1), default=64)
    add("--viz", action=BoolAction, default=True)
    add("-d", "--debug", action=BoolAction, default=False)
    add("--optim", type=one_of(("adam", "adamW", "sgd"), {"stochastic": "sgd"}), default="adamW")
    add("--decay", type=list_of(number(float, above=0)), action=ListAction, nargs="+", default=None)
    add("--name", type=file_name, default="run")
    add("--text", default="")
    add("--config", action="extend", nargs="+", default=None)
    add("--resume", default=None)
    return parser


def parse(*argv, **layers) -> dict:
    """Return the options that differ from the defaults."""
    options = vars(small_parser().resolve(list(map(str, argv)), **layers))
    return {name: value for name, value in options.items() if value != DEFAULTS[name]}


@pytest.fixture
def refusal(capsys):
    """A function that calls a program, which must end with status 2 and one line, and returns the line."""

    def refusal(program) -> str:
        with pytest.raises(SystemExit) as stop:
            run_main(program)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.endswith("\n")
        return captured.err

    return refusal


@pytest.fixture
def option_file(tmp_path):
    """A function that writes a file and returns its path."""

    def option_file(text: str, name: str = "options.json") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return option_file


# ---- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "given"),
    [
        ("", {}),
        ("--lr 1e-2", {"lr": 0.01}),
        ("--lr=3 --seed 0", {"lr": 3.0, "seed": 0}),
        ("--batch_size 1 --seed 9223372036854775807", {"batch_size": 1, "seed": 2**63 - 1}),
        ("--viz", {}),
        ("--viz True", {}),
        ("--viz=true", {}),
        ("--viz False", {"viz": False}),
        ("--no-viz", {"viz": False}),
        ("--debug", {"debug": True}),
        ("-d", {"debug": True}),
        ("-d False", {}),
        ("--no-debug", {}),
        ("--viz --debug", {"debug": True}),
        ("--decay 3", {"decay": [3.0]}),
        ("--decay 3 6.5", {"decay": [3.0, 6.5]}),
        ("--decay 3,6.5", {"decay": [3.0, 6.5]}),
        ("--decay 3, 6.5", {"decay": [3.0, 6.5]}),
        ("--decay 3,6 9 --viz", {"decay": [3.0, 6.0, 9.0]}),
        ("--optim stochastic", {"optim": "sgd"}),
        ("--lr 1 --lr 2", {"lr": 2.0}),
    ],
)
def test_what_may_be_written_on_the_command_line(argv, given):
    assert parse(*argv.split()) == given


@pytest.mark.parametrize(
    ("argv", "in_line"),
    [
        ("--learning_rate 3", ["--learning_rate"]),
        ("--batchsize 3", ["--batchsize", "did you mean '--batch_size'"]),
        ("--batch-size=3", ["--batch-size", "did you mean '--batch_size'"]),
        ("--batch_siz 3", ["--batch_siz'", "did you mean '--batch_size'"]),  # no abbreviations
        ("--deb", ["--deb'", "did you mean '--debug'"]),
        ("--no-vis", ["--no-vis", "did you mean '--no-viz'"]),
        ("-x", ["-x"]),
        ("stray", ["unexpected argument 'stray'"]),
        ("--lr", ["--lr", "expected one argument"]),
        ("--lr zero", ["--lr", "'zero'", "finite number > 0"]),
        ("--lr 0", ["--lr", "'0'", "> 0"]),
        ("--lr -1e-3", ["--lr", "'-1e-3'", "> 0"]),
        ("--lr nan", ["--lr", "'nan'", "finite"]),
        ("--lr inf", ["--lr", "'inf'", "finite"]),
        ("--lr -inf", ["--lr", "'-inf'", "finite"]),
        ("--batch_size 0", ["--batch_size", "'0'", "an integer >= 1"]),
        ("--batch_size 1.5", ["--batch_size", "'1.5'", "an integer"]),
        ("--batch_size 1e2", ["--batch_size", "'1e2'", "an integer"]),
        ("--seed -1", ["--seed", "'-1'", ">= 0"]),
        ("--seed " + "9" * 400, ["--seed", "999", "<= 9223372036854775807"]),
        ("--viz maybe", ["--viz", "'maybe'", "True or False"]),
        ("--no-viz True", ["--no-viz takes no value"]),
        ("--optim adamw", ["--optim", "'adamw'", "adam, adamW, sgd", "did you mean 'adamW'"]),
        ("--decay 3,zero", ["--decay", "'zero'", "> 0"]),
        ("--decay 3,,6", ["--decay", "''"]),
        ("--batch_size=--", ["--batch_size", "'--'"]),
        ("--text=--", ["--text", "'--'"]),
        ("--decay -1e-3", ["--decay", "'-1e-3'"]),
        ("--name a/b", ["--name", "'a/b'", "letters"]),
        ("--name ..", ["--name", "'..'"]),
    ],
)
def test_what_is_refused_is_named_in_one_line(refusal, argv, in_line):
    line = refusal(lambda: parse(*argv.split()))
    assert line.startswith("program: error: ")
    for part in in_line:
        assert part in line


def test_only_what_is_given_is_returned_as_given():
    assert small_parser().parse_given(["--lr", "1e-3", "--no-viz"]) == {"lr": 1e-3, "viz": False}


def test_message_of_several_lines_becomes_one(refusal):
    assert "a b" in refusal(lambda: small_parser().error("a\n  b"))


def test_error_for_people_and_interruption_end_with_their_status(refusal):
    def give_up():
        raise UserError("no such thing")

    def interrupt():
        raise KeyboardInterrupt

    assert refusal(give_up).endswith("error: no such thing\n")
    with pytest.raises(SystemExit) as stop:
        run_main(interrupt)
    assert stop.value.code == 130


def test_fault_of_the_programmer_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)
    with pytest.raises(FileNotFoundError):
        run_main(lambda: Path("nowhere/file").read_text())


def test_disk_that_is_full_ends_with_a_line_for_people(refusal):
    def fill():
        with open("/dev/full", "w") as file:
            file.write("x")

    assert "No space left on device. Make room" in refusal(fill)


def test_output_that_is_closed_is_done_without(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    run_main(lambda: print(sys.stdout.isatty(), flush=True))


def test_line_of_an_error_cannot_command_a_terminal(refusal):
    def give_up():
        raise UserError("no file a\x1b[31m\rb")

    assert refusal(give_up).endswith("no file a\\x1b[31m\\rb\n")


@pytest.mark.parametrize("text", ["cpu", "CPU", "0", "1,0", "2, 0"])
def test_ids_of_devices(text):
    assert device_ids(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "-1", "0,", "0 1", "cpu,0", "1.0", "1_0", "٣", "99999"])
def test_what_is_no_id_of_a_device_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="is not a list of GPU ids"):
        device_ids(text)


@pytest.mark.parametrize("text", [".", "a~/runs", "größe 日本/x", "a=b", "x" * 255])
def test_names_of_files(text):
    assert file_path(text) == text


def test_the_home_directory_may_be_written_short_in_every_path_option(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.json").write_text('{"data_dir": "~/data", "output_dir": "~", "data_type": "FashionMNIST"}')
    opt = TrainerVanilla.parse_options(["--config", "~/own.json", "--seed", "0"])
    assert (opt.data_dir, opt.output_dir) == (f"{tmp_path}/data", str(tmp_path))
    assert resolve("fit", {"output_dir": Path("~/runs")}, {}).output_dir == f"{tmp_path}/runs"


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\0b", "\x1b[31m", "\udcff", "x" * 256, "日" * 86, "a/" * 2048])
def test_what_cannot_name_a_file_is_refused(text):
    with pytest.raises(ArgumentTypeError):
        file_path(text)


@pytest.mark.parametrize("text", ["1_000", "٣", " 1", "1 ", "1\n", "0x1", "1e999", "inf", "nan", ".", "1e", "--1"])
def test_numbers_are_plain(text):
    for kind in (int, float):
        with pytest.raises(ArgumentTypeError):
            number(kind)(text)


@pytest.mark.parametrize("text", ["1", "+1", "-1.", ".5", "1e-3", "1E+5", "007"])
def test_what_is_a_number(text):
    assert number(float)(text) == float(text)


def test_long_value_is_cut_in_the_message(refusal):
    for argv in (["--lr", "x" * 10**5], ["--" + "x" * 10**5], ["--optim", "x" * 10**5], ["--viz", "x" * 10**5]):
        assert len(refusal(lambda argv=argv: parse(*argv))) < 300


# ---- files -----------------------------------------------------------------------------------------------------------
def test_later_sources_win(option_file):
    first, second = option_file('{"lr": 4}', "first.json"), option_file("lr: 5", "second.yaml")
    parser = small_parser()
    assert parser.resolve([]).lr == 1e-3
    parser.apply({"lr": 2}, "defaults of the task")
    assert parser.resolve([]).lr == 2
    layers = [({"lr": 2.5}, "older"), ({"lr": 3, "of_another_program": 1}, "checkpoint")]
    assert parser.resolve([], layers).lr == 3
    assert parser.resolve(["--config", first], layers).lr == 4
    assert parser.resolve(["--config", first, second], layers).lr == 5
    assert parser.resolve(["--config", first, "--config", second], layers).lr == 5
    assert parser.resolve(["--config", second, "--config", first], layers).lr == 4
    assert parser.resolve(["--config", second, first], layers).lr == 4
    assert parser.resolve(["--config", first, second, "--lr", "6"], layers).lr == 6


def test_file_sets_only_what_it_names(option_file):
    first, second = option_file('{"lr": 4, "seed": 1}', "first.json"), option_file('{"seed": 2}', "second.json")
    assert parse("--config", first, second, "--no-viz") == {
        "lr": 4.0, "seed": 2, "viz": False, "config": [first, second],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ('{"lr": 1e-2, "seed": 0, "viz": false}', {"lr": 0.01, "seed": 0, "viz": False}),
        ('\ufeff{"lr": "1e-2", "debug": "True"}', {"lr": 0.01, "debug": True}),
        ('{"decay": [3, 6.5], "text": "--lr=3 -d\\n\\"a\\""}', {"decay": [3.0, 6.5], "text": '--lr=3 -d\n"a"'}),
        ('{"decay": "3,6"}', {"decay": [3.0, 6.0]}),
        ('{"seed": null, "decay": null}', {}),
        ("{}", {}),
    ],
)
def test_json(option_file, text, given):
    path = option_file(text)
    assert parse("--config", path) == given | {"config": [path]}


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("lr: 1e-2", {"lr": 0.01}),  # PyYAML alone reads a text
        ("lr: .5\nseed: 010", {"lr": 0.5, "seed": 10}),  # PyYAML alone reads 8
        ("viz: false\ndebug: True", {"viz": False, "debug": True}),
        ("text: no", {"text": "no"}),
        ("text: 2024-01-31", {"text": "2024-01-31"}),
        ("text: 12:30:45", {"text": "12:30:45"}),
        ("text: 1.10\nname: 2024_01", {"text": "1.10", "name": "2024_01"}),
        ("decay: [3, 6.5]", {"decay": [3.0, 6.5]}),
        ("decay:\n  - 3  # a comment\n  - 6", {"decay": [3.0, 6.0]}),
        ("decay: 3,6", {"decay": [3.0, 6.0]}),
        ("seed: null\ndecay: ~\n", {}),
        ('text: "null"', {"text": "null"}),
        ("seed:\ntext: ''", {}),
    ],
)
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml_means_what_the_command_line_means(option_file, text, given, suffix):
    path = option_file(text, "options" + suffix)
    assert parse("--config", path) == given | {"config": [path]}


@pytest.mark.parametrize(
    ("name", "text", "in_line"),
    [
        ("a.json", '{"lrr": 1}', ["unknown option 'lrr'", "did you mean 'lr'"]),
        ("a.yaml", "batch-size: 1", ["unknown option 'batch-size'", "did you mean 'batch_size'"]),
        ("a.json", '{"no-viz": true}', ["unknown option 'no-viz'"]),
        ("a.json", '{"help": true}', ["unknown option 'help'"]),
        ("a.json", '{"lr": -1}', ["--lr", "'-1'", "> 0"]),
        ("a.json", '{"lr": NaN}', ["--lr", "'nan'"]),
        ("a.json", '{"lr": true}', ["--lr", "'True'"]),
        ("a.json", '{"lr": null}', ["'lr' cannot be null"]),
        ("a.yaml", "lr:", ["'lr' cannot be null"]),
        ("a.yaml", "viz: yes", ["--viz", "'yes'", "True or False"]),
        ("a.json", '{"viz": []}', ["'viz' takes one value, not the list []"]),
        ("a.json", '{"lr": [1]}', ["'lr' takes one value, not the list [1]"]),
        ("a.json", '{"decay": []}', ["--decay", "expected at least one argument"]),
        ("a.json", '{"decay": [1, null]}', ["--decay", "'None'"]),
        ("a.json", '{"resume": "x"}', ["'resume' belongs on the command line"]),
        ("a.json", '{"config": "x"}', ["'config' belongs on the command line"]),
        ("a.json", '{"lr": 1, "lr": 2}', ["'lr' is given twice"]),
        ("a.yaml", "lr: 1\nseed: 3\nlr: 2", ["'lr' is given twice"]),
        ("a.json", '{"lr": {"lr": 1}}', ["'lr' is flat"]),
        ("a.yaml", "lr:\n  lr: 1", ["'lr' is flat"]),
        ("a.json", "", ["Cannot read"]),
        ("a.yaml", "", ["not a mapping"]),
        ("a.yaml", "# nothing but a comment", ["not a mapping"]),
        ("a.json", "[1]", ["not a mapping"]),
        ("a.yaml", "- lr", ["not a mapping"]),
        ("a.json", "{lr: 1}", ["Cannot read"]),
        ("a.yaml", "decay: [1", ["Cannot read"]),
        ("a.yaml", "lr: 1\n---\nlr: 2", ["Cannot read"]),
        ("a.yaml", "? [a]\n: 3", ["Cannot read"]),
        ("a.yaml", "decay: &a [*a]", ["Cannot read"]),
        ("a.json", "[" * 100_000, ["Cannot read"]),
    ],
)
def test_what_is_refused_in_a_file_is_named_with_the_file(refusal, option_file, name, text, in_line):
    path = option_file(text, name)
    line = refusal(lambda: parse("--config", path))
    for part in [path, *in_line]:
        assert part in line


def test_file_that_is_missing_or_no_text_is_named(refusal, tmp_path):
    assert "No such file" in refusal(lambda: parse("--config", tmp_path / "missing.json"))
    assert "Is a directory" in refusal(lambda: parse("--config", tmp_path))
    (tmp_path / "latin.json").write_bytes(b'{"text": "\xe9"}')
    assert "latin.json" in refusal(lambda: parse("--config", tmp_path / "latin.json"))


def test_yaml_makes_no_objects(option_file, tmp_path):
    path = option_file(f"text: !!python/object/apply:os.mkdir ['{tmp_path}/made']", "options.yaml")
    with pytest.raises(UserError, match="tag"):
        read_options(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "in_line"),
    [
        ("lr: &x 1\nseed: *x", "aliases"), ("text: !local x", "tag"), ("text: !!binary eA==", "tag"),
        ("lr: 1\n---\nlr: 2", "single document"), ("lr: {a: 1}", "is flat"), ("lr: [[1]]", "one value"),
        ("- " * 5000, "options.yaml"),
    ],
)  # fmt: skip
def test_yaml_is_plain_and_flat(refusal, option_file, text, in_line):
    assert in_line in refusal(lambda: parse("--config", option_file(text, "options.yaml")))


def test_file_that_is_large_or_no_file_is_refused(refusal, option_file, tmp_path):
    assert "more than 65,536 bytes" in refusal(lambda: parse("--config", option_file(" " * 70_000)))
    assert "not a regular file" in refusal(lambda: parse("--config", "/dev/zero"))


@pytest.mark.parametrize("entry", ["--debug", "-d", "--", "--text=x"])
def test_entry_of_a_list_is_not_a_flag(refusal, option_file, entry):
    assert repr(entry) in refusal(lambda: parse("--config", option_file(json.dumps({"decay": [3, entry]}))))


def test_option_of_the_launch_is_refused_in_a_file_even_where_others_are_passed_over(refusal, option_file):
    parser = small_parser()
    parser.passed_over = {"resume"}
    path = option_file('{"resume": "x"}')
    assert "belongs on the command line" in refusal(lambda: parser.resolve(["--config", path]))


def test_default_of_a_task_is_checked_like_a_flag(refusal):
    line = refusal(lambda: small_parser().apply({"lr": -1}, "defaults of TrainerMine"))
    assert "defaults of TrainerMine" in line and "'-1'" in line


def test_option_that_starts_as_none_stays_nullable(option_file):
    parser = small_parser()
    parser.apply({"seed": 3})
    assert parser.resolve(["--config", option_file('{"seed": null}')]).seed is None


def test_option_of_another_program_is_passed_over_only_where_it_is_expected(refusal, option_file):
    path, parser = option_file('{"n_epoch": 3, "lr": 2}'), small_parser()
    assert "unknown option 'n_epoch'" in refusal(lambda: parser.resolve(["--config", path]))
    parser = small_parser()
    parser.passed_over = {"n_epoch"}
    assert parser.resolve(["--config", path]).lr == 2


# ---- saved and read again --------------------------------------------------------------------------------------------
CANDIDATES = (
    *("json", '{"a": 1}', "callbacks.callback:Callback", "epoch"),
    *("7", "64", "90s", "skip", "cpu", "0.5", "1.5", "bf16", "value", "min", "max", "dp", "padding", "transposed"),
    *("sharded", "kaiming", "csv", "f1", "iou", "bias=1e-3", "bias=2", "balanced", "1/5"),
    *(name for kind in ("optimizer", "scheduler", "data", "model", "loss") for name in names(kind)),
)


def another_value(action) -> list[str]:
    """Flags that give an option another value than its default, if it can have another."""
    flag = f"--{action.dest}"
    if isinstance(action, BoolAction):
        return [f"{flag}={not action.default}"]
    if action.type is None:
        return [f"{flag}=--no 'quotes', \\ and = é"]
    for text in CANDIDATES:
        try:
            value = action.type(text)
        except Exception:
            continue
        if value != action.default:
            is_number = action.nargs == "+" and isinstance(value, float)  # what is a name need not be taken twice
            return [flag, text, text] if is_number else [flag, text]
    return []


@pytest.fixture(params=[TrainerVanilla, TrainerSeg])
def task(request, monkeypatch):
    """A task, and its parser as `parse_options` builds it."""
    seen = []

    def resolve(parser, argv, layers=(), original=OptionParser.resolve):
        seen.append(parser)
        return original(parser, argv, layers)

    monkeypatch.setattr(OptionParser, "resolve", resolve)
    request.param.parse_options([])
    return request.param, seen[0]


def test_saved_options_of_a_real_trainer_give_the_same_options(task, tmp_path, monkeypatch):
    monkeypatch.setattr("extras.without_effect.NEEDS", {})  # all options at once, whether they have an effect or not
    task, parser = task
    # --swa_start excludes --ema, and other components do not take the options of these.
    left_out = (*NOT_SAVED, "swa_start", "data_type", "model_type", "loss_type", "shuffle_shards", "deep_supervision",
                "image_size")  # fmt: skip
    changed = [text for name, action in parser.known.items() if name not in left_out
               for text in another_value(action)]  # fmt: skip
    for argv in ([], changed):
        opt = task.parse_options(argv)
        saved = saved_options(opt)
        write_json(tmp_path / "options.json", saved)
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(saved, allow_unicode=True), encoding="utf-8")
        for name in ("options.json", "options.yaml"):
            assert saved_options(task.parse_options(["--config", str(tmp_path / name)])) == saved
        flags = [text for name, value in saved.items() if value is not None for text in as_flags(name, value)]
        assert saved_options(task.parse_options(flags)) == saved
    same = [name for name, value in saved_options(task.parse_options([])).items() if value == saved[name]]
    assert set(same) <= {*left_out}  # the rest was really changed


def test_saved_options_leave_out_how_the_run_was_launched(option_file, tmp_path):
    opt = small_parser().resolve(["--config", option_file('{"lr": 2}'), "--resume", "somewhere"])
    write_json(tmp_path / "saved.json", saved_options(opt))
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["lr"] == 2.0 and not saved.keys() & {"config", "resume"}


@pytest.mark.parametrize("task_class", [TrainerVanilla, TrainerSeg])
def test_help_lists_every_option(task_class, capsys):
    with pytest.raises(SystemExit) as stop:
        task_class.parse_options(["--help", "all"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--batch_size" in text and "(default: adamW)" in text
    assert "(default: None)" not in text


@pytest.mark.parametrize(("number", "is_told"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_thread_that_finds_the_disk_full_leaves_it_to_the_main_thread(number, is_told, capsys, monkeypatch):
    def fail():
        raise OSError(number, "in a thread")

    def main():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    run_main(main)
    assert ("in a thread" in capsys.readouterr().err) == is_told


# ---- renamed, and read-only ------------------------------------------------------------------------------------------
def test_an_old_name_is_taken_everywhere_and_listed_nowhere(option_file, capsys):
    path = option_file("save_every_steps: 7", "old.yaml")
    for argv in ("--save_every_steps 7", "--save_every_steps=7", "--set save_every_steps=7", f"--config {path}"):
        opt = TrainerVanilla.parse_options([*argv.split(), "--seed", "0"])
        assert opt.save_every_updates == 7 and not hasattr(opt, "save_every_steps")
    with pytest.raises(SystemExit):
        TrainerVanilla.parse_options(["--help", "all"])
    assert "save_every_steps" not in capsys.readouterr().out


def test_resolved_options_are_read_only_and_a_copy_may_differ():
    opt = Options(lr=0.1, seed=0)
    for change in (lambda: setattr(opt, "lr", 1), lambda: setattr(opt, "new", 1), lambda: delattr(opt, "lr")):
        with pytest.raises(AttributeError, match=r"changed\(opt"):
            change()
    other = changed(opt, lr=0.2)
    assert (vars(opt), vars(other)) == ({"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0})
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert copied == other
        with pytest.raises(AttributeError):
            copied.lr = 3


def test_an_integer_that_torch_cannot_take_is_refused():
    assert number(int)(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(ArgumentTypeError, match=r"'9{20}' is too large: an integer may be 9223372036854775807 at most"):
        number(int, low=1)("9" * 20)
    with pytest.raises(ArgumentTypeError, match=r"'9{60}'\.\.\. is not an integer >= 1"):
        number(int, low=1)("9" * 5000)


def test_ctrl_c_in_the_imports_ends_without_a_traceback_and_later_raises_again():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        end_at_once_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        run_main(lambda: None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
        end_at_once_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
