"""--help shows the usual options in any width, and how to see the others."""

import pytest

from eval_vanilla import EvaluatorVanilla
from extras.help import EVALUATION, TRAINING
from options import test_parser as parser_of_test
from options import train_parser
from tools import kill
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla


def help_of(parser, *what: str, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help", *what])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("task", [TrainerVanilla, TrainerSeg, EvaluatorVanilla])
def test_the_usual_options_fit_the_terminal(task, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = help_of((parser_of_test if task is EvaluatorVanilla else train_parser)(task), capsys=capsys)
    lines = text.splitlines()
    assert lines[0].startswith("usage: ") and lines[0].endswith("[options]") and lines[1] == ""
    assert max(map(len, lines)) <= width
    shown = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert 15 <= len(shown) <= 30 and len(lines) < (85 if width == 60 else 65)
    assert "--help all shows all" in text and "MODULE:NAME" not in text


def test_the_names_of_the_usual_options_exist():
    known = train_parser(TrainerVanilla).known | train_parser(TrainerSeg).known
    assert {name for names in TRAINING.values() for name in names} <= set(known)
    assert {name for names in EVALUATION.values() for name in names} <= set(parser_of_test(EvaluatorVanilla).known)


def test_help_all_has_every_option_and_the_usage_in_one_line(capsys):
    parser = train_parser(TrainerVanilla)
    text = help_of(parser, "all", capsys=capsys)
    assert text.splitlines()[0].endswith("[options]")
    assert all(f"--{name}" in text for name in parser.known)


def test_every_group_named_in_the_help_is_shown_and_all_of_them_are_everything(capsys):
    groups = help_of(train_parser(TrainerSeg), capsys=capsys).replace("\n", " ").partition("of a group:")[2].split(",")
    texts = [help_of(train_parser(TrainerSeg), group.strip(), capsys=capsys) for group in groups]
    assert all(f"--{name}" in "".join(texts) for name in train_parser(TrainerSeg).known)
    assert "--warmup_multiplier" in help_of(train_parser(TrainerVanilla), "schedule", capsys=capsys)


@pytest.mark.parametrize("what", ["lr_min", "--lr_min", "lr-min"])
def test_one_option_is_explained(what, capsys):
    text = help_of(train_parser(TrainerVanilla), f"{what}".removeprefix("--"), capsys=capsys)
    assert "lowest learning rate after warm-up" in text and "--lr_decay_rate" not in text


def test_options_of_an_own_task_are_among_the_usual_ones(capsys):
    parser = train_parser(TrainerVanilla)
    parser.add_argument("--spin", type=int, default=3, help="turns")
    assert "of this task:\n  --spin SPIN" in help_of(parser, capsys=capsys)


def test_an_unknown_group_is_one_line_with_the_groups(capsys):
    with pytest.raises(SystemExit) as end:
        train_parser(TrainerVanilla).parse_args(["--help", "epochs"])
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1
    assert "did you mean 'n_epoch'" in line and "schedule, fine-tuning" in line


def test_a_small_program_shows_all_its_options(capsys):
    with pytest.raises(SystemExit):
        kill.main(["--help"])
    assert "--at N" in capsys.readouterr().out
