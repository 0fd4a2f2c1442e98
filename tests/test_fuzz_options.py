"""Malformed command lines and option files are refused; valid values are read back unchanged. See tests/torture."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.options.files
import engine.options.parser
from engine.options.parser import OptionParser, as_flags, saved_options
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import TrainerGAN
from tests.torture import fuzz_options, malformed
from tests.torture.malformed import BASE, KINDS, Example, as_text, right_options
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

TASKS = {
    "trainer_vanilla": TrainerVanilla, "trainer_seg_on_carvana": TrainerSeg, "trainer_gan": TrainerGAN,
    "eval_vanilla": EvaluatorVanilla, "eval_seg_on_carvana": EvaluatorSeg, "eval_gan": EvaluatorGAN,
}  # fmt: skip
STABLE = settings(
    max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip


def known_options(task, monkeypatch) -> dict:
    """The options of a program's parser, by name."""
    parsers = []

    def stop(self, *arguments, **keywords):
        parsers.append(self)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(OptionParser, "parse_given", stop)
        patch.setattr(OptionParser, "apply", lambda *arguments, **keywords: None)
        with pytest.raises(SystemExit):
            task.parse_options([])
    return parsers[-1].known


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Where the command lines of `malformed` find what they name."""
    directory = tmp_path_factory.mktemp("scenery")
    fuzz_options.scenery(directory)
    return directory


@pytest.fixture
def complaint(place, monkeypatch):
    """A function that gives a command line to a program and returns what is wrong with how it is refused."""
    monkeypatch.chdir(place)

    def complaint(program, *flags, names=(), **files) -> str | None:
        contents = tuple((name.replace("_", "."), content) for name, content in files.items())
        return fuzz_options.complaint(Example(program, (*BASE[program], *flags), names, contents))

    return complaint


# ---- what is wrong ---------------------------------------------------------------------------------------------------
def test_malformed_command_lines_and_option_files_end_with_status_2():
    tried, failures = fuzz_options.attempt(count := 60, num_processes=1)
    assert (tried, failures) == (count, [])


SLOW = {"trainer_seg_on_carvana", "trainer_gan", "eval_seg_on_carvana", "eval_gan"}  # most options are those of vanilla


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in KINDS]
)
def test_every_option_is_held_to_its_limits_and_every_listed_fault_is_refused(place, monkeypatch, program):
    monkeypatch.chdir(place)
    if program in TASKS:  # an option that a program has not, is unknown to it, which would be an error, too
        known = known_options(TASKS[program], monkeypatch)
        monkeypatch.setitem(KINDS, program, {name: kind for name, kind in KINDS[program].items() if name in known})
    for example in malformed.wrong_one_by_one(program):
        assert fuzz_options.complaint(example) is None, example


@pytest.mark.parametrize("program", malformed.TASKS)
def test_a_command_line_that_is_right_is_not_refused(complaint, program):
    assert complaint(program) == "the work began"
    assert complaint(program, "--seed=3", "--config", "options.json", options_json=b'{"amp": "no"}') == "the work began"


@pytest.mark.parametrize("program", TASKS)
def test_every_option_is_among_those_that_are_tried(program, monkeypatch):
    known = known_options(TASKS[program], monkeypatch)
    untried = set(known) - set(malformed.flags_of(program)) - {"config", "run"}  # a run is named without a flag
    assert untried == set(), "say in malformed.KINDS what it takes"
    untyped = {name for name, action in known.items() if action.type is None}
    assert untyped <= {"description", "monitor"}, "an option that is no free text needs a type"


@pytest.mark.parametrize("name", ["description", "output_dir", "data_dir", "model_path"])
@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800", "\\u001b[2J", "\\udcff"])
def test_text_that_no_file_or_terminal_takes_is_refused(complaint, name, text):
    content = f'{{"{name}": "{text}"}}'.encode()
    assert complaint("trainer_vanilla", "--config", "options.json", names=(name,), options_json=content) is None


@pytest.mark.parametrize("flag", ["--resume", "--output_dir", "--config", "--model_path", "--data_dir"])
def test_an_empty_path_is_not_the_current_directory_or_none(complaint, flag):
    # as `--resume "$RUN"` with a variable that is not set
    assert complaint("trainer_vanilla", flag, "", names=(flag,)) is None
    assert complaint("trainer_vanilla", f"{flag}=", names=(flag,)) is None


def test_an_entry_of_a_list_in_a_file_cannot_be_another_flag(complaint):
    for entry in ('"--debug"', '"-d"', '"--seed=3"', '"--"'):
        content = f'{{"lr_scheduler": "step", "lr_decay_epochs": [3, {entry}]}}'.encode()
        names = ("lr_decay_epochs",)
        assert complaint("trainer_vanilla", "--config", "options.json", names=names, options_json=content) is None


def test_a_yaml_bomb_and_a_device_without_end_are_refused_at_once(place):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (place / "bomb.yaml").write_text("\n".join(["a0: &a0 [1, 1]", *levels]))
    for path in ("bomb.yaml", "/dev/zero", "fifo"):
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28)); "
            f"from engine.options.files import read_options; read_options({path!r})"
        )
        environment = os.environ | {"PYTHONPATH": str(fuzz_options.ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip
        assert "utils.errors.UserError: " in done.stderr and path in done.stderr


# ---- that it would be noticed ----------------------------------------------------------------------------------------
def plant(monkeypatch, fault):
    """Weaken the parser in one way."""
    original = OptionParser.__init__
    if fault == "abbreviations":
        monkeypatch.setattr(OptionParser, "__init__", lambda self, **kw: original(self, **kw, allow_abbrev=True))
    elif fault == "other ways to write a number":
        monkeypatch.setattr(engine.options.parser.math, "isfinite", lambda value: True)
        monkeypatch.setitem(engine.options.parser.NUMBERS, float, engine.options.parser.re.compile(".*"))
    elif fault == "digits of every script":
        monkeypatch.setitem(engine.options.parser.NUMBERS, int, engine.options.parser.re.compile(".*"))
    elif fault == "yaml.load":
        monkeypatch.setattr(engine.options.files, "read_yaml", yaml.unsafe_load)
    elif fault == "duplicates":
        monkeypatch.setattr(engine.options.files, "without_duplicates", dict)
    elif fault == "traceback":
        monkeypatch.setattr(engine.options.files, "UserError", ZeroDivisionError)


@pytest.mark.parametrize(
    ("fault", "flags", "files"),
    [
        ("abbreviations", ("--see", "1"), {}),
        ("other ways to write a number", ("--lr", "1_0"), {}),
        ("digits of every script", ("--seed", "٣"), {}),
        ("yaml.load", ("--config", "options.yaml"), {"options_yaml": b"seed: !!python/object/apply:os.getpid []"}),
        ("duplicates", ("--config", "options.json"), {"options_json": b'{"seed": 1, "seed": 2}'}),
        ("traceback", ("--config", "nowhere.json"), {}),
    ],
)
def test_a_fault_of_the_parser_is_seen(complaint, monkeypatch, fault, flags, files):
    assert complaint("trainer_vanilla", *flags, names=(flags[0], *flags[1:2]), **files) is None
    plant(monkeypatch, fault)
    assert complaint("trainer_vanilla", *flags, names=(flags[0], *flags[1:2]), **files) is not None


def test_what_is_left_behind_and_what_hangs_is_seen(complaint, monkeypatch):
    monkeypatch.setitem(fuzz_options.PROGRAMS, "trainer_vanilla", lambda: os.mkdir("left") or sys.exit(2))
    assert complaint("trainer_vanilla").startswith("left behind")
    monkeypatch.setattr(fuzz_options, "SECONDS", 0.1)
    monkeypatch.setitem(fuzz_options.PROGRAMS, "trainer_vanilla", lambda: [None for _ in iter(int, 1)])
    assert "it took more than" in complaint("trainer_vanilla")


NEED_OTHERS = ("pretrained", "model_path", "requeue", "swa_start", "gpu_devices")


# ---- what is right ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", ["trainer_vanilla", "trainer_seg_on_carvana"])
def test_options_that_are_right_come_back_from_the_command_line_and_from_files(program, tmp_path, monkeypatch):
    monkeypatch.setattr("extras.without_effect.NEEDS", {})  # drawn together, many options have no effect
    task = TASKS[program]
    known = known_options(task, monkeypatch)
    kinds = {name: kind for name, kind in KINDS[program].items() if name in known}

    @STABLE
    @given(st.data())
    def check(data):
        given = data.draw(right_options(kinds, without=NEED_OTHERS))
        opt = task.parse_options([f"--{name}={as_text(value)}" for name, value in given.items()])
        for name, value in given.items():
            assert getattr(opt, name) == value or (opt.debug and name in ("n_epoch", "limit_batches")), name
        saved = saved_options(opt)
        (tmp_path / "saved.json").write_text(json.dumps(saved))
        (tmp_path / "saved.yaml").write_text(yaml.safe_dump(saved, allow_unicode=True), encoding="utf-8")
        for name in ("saved.json", "saved.yaml"):
            assert saved_options(task.parse_options(["--config", str(tmp_path / name)])) == saved
        flags = [text for name, value in saved.items() if value is not None for text in as_flags(name, value)]
        assert saved_options(task.parse_options(flags)) == saved

    check()
