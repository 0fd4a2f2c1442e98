"""--print_config: every option with where it came from, as a file that gives the same options again."""

import pytest

from engine.options.parser import saved_options
from tools.show_options import as_yaml
from trainer_vanilla import TrainerVanilla

OPTIONS = ("--batch_size", "7", "--seed", "3", "--set", "optim_args.betas=[0.9,0.95]", "--description", 'a "b": # c\\')


@pytest.fixture
def shown(capsys):
    """A function that returns what a command line with --print_config prints."""

    def shown(*argv) -> str:
        with pytest.raises(SystemExit) as stop:
            TrainerVanilla.parse_options([*argv, "--print_config"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return shown


def test_it_says_where_each_value_came_from(shown, tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1e-2\nn_epoch: 3\n")
    path = tmp_path / "mine.json"
    path.write_text('{\n"base": "base.yaml", // comment\n\n"n_epoch": 4, "model_args": {"size": 28}}')
    text = " ".join(shown("--config", str(path), *OPTIONS, "--debug", "--set", "optim_args.eps=1e-6").split())
    for part in (
        "proj_name: Vanilla # defaults of TrainerVanilla", "momentum: 0.9 # default", "batch_size: 7 # command line",
        f"lr: 0.01 # {tmp_path}/base.yaml", "n_epoch: 1 # --debug", f"size: 28 # {path}",
        "betas: [0.9, 0.95] # command line, --set", "eps: 1e-06 # command line, --set",
    ):  # fmt: skip
        assert part in text, part
    assert f"# --config {path} # command line" in text


def test_what_it_prints_gives_the_same_options(shown, tmp_path):
    path = tmp_path / "printed.yaml"
    flags = (*OPTIONS, "--set", 'model_args.size="28"')
    path.write_text(shown(*flags))
    again = TrainerVanilla.parse_options(["--config", str(path)])
    assert saved_options(again) == saved_options(TrainerVanilla.parse_options([*flags]))
    assert again.model_args == {"size": "28"}


def test_it_writes_and_builds_nothing(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainerVanilla, "__init__", None)
    assert "seed: " in shown() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.1, "0.1"), ("plain/text-1.0", "plain/text-1.0"), ("none", '"none"'), ("", '""'),
     ("1", '"1"'), ("a: b", '"a: b"'), ([1.5, 2.0], "[1.5, 2.0]"), (["a:b"], '["a:b"]')],
)  # fmt: skip
def test_values_stand_as_a_file_takes_them(value, text):
    assert as_yaml(value) == text
