"""Tasks of one's own: they read their files, and a run of this user names their code."""

import csv
import shutil

import pytest
import torch

from engine.checkpoints.file import load_checkpoint
from tools.prediction.files import find_files
from tools.prediction.opening import open_evaluator
from tools.prediction.run import Report, write_all
from utils.errors import UserError


@pytest.fixture(scope="module")
def waves(command, tmp_path_factory):
    """A run of examples/new_task.py, its home, and a file of waves."""
    place = tmp_path_factory.mktemp("waves")
    flags = ["--n_epoch", 1, "--gpu_devices", "cpu", "--output_dir", place / "runs", "--seed", 0]
    done = command("-m", "examples.new_task", *map(str, flags), XDG_CONFIG_HOME=str(place / "home"))
    assert done.returncode == 0, done.stderr
    values = torch.sin(torch.linspace(0, 6, 64)).tolist()
    lines = [",".join(map(str, values)), ",".join(map(str, values[::-1]))]
    (place / "good.csv").write_text("\n".join(lines))
    (place / "bad.csv").write_text("1,2,x")
    return place


def test_a_task_of_ones_own_predicts_its_files(command, waves):
    (run,) = (waves / "runs").iterdir()
    state = load_checkpoint(run / "wave_net_best_ckpt.pth")
    assert state["evaluator"] == "examples.new_task:EvaluatorWaves"
    rows = []
    for flags in ([], ["--task", "examples/new_task.py"]):
        out = waves / f"out{len(flags)}"
        files = [waves / "bad.csv", waves / "good.csv"]
        done = command("predict.py", run, *files, "--output_dir", out, *flags, XDG_CONFIG_HOME=str(waves / "home"))
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "bad.csv: ValueError" in done.stderr
        with open(next(out.iterdir()) / "predictions.csv", newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert rows[0] == rows[1]
    assert [row["name"] for row in rows[0]] == ["line 1", "line 2"]
    assert float(rows[0][0]["value"]) != float(rows[0][1]["value"])


def test_a_copy_elsewhere_names_no_code(waves, tmp_path, monkeypatch):
    """Neither for another user, nor without the record of the run."""
    (run,) = (waves / "runs").iterdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="whose code is used only when you name it"):
        open_evaluator(run)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(waves / "home"))
    shutil.copy(run / "wave_net_best_ckpt.pth", tmp_path / "wave_net_best_ckpt.pth")
    with pytest.raises(UserError, match="whose code is used only when you name it"):
        open_evaluator(tmp_path / "wave_net_best_ckpt.pth")


def test_a_task_of_ones_own_is_exported(command, waves, tmp_path):
    """Its inputs are no images: their shape is that of the data."""
    (run,) = (waves / "runs").iterdir()
    flags = ["--to", "pt2", "--output", tmp_path / "a.pt2"]
    done = command("-m", "tools.export", run, *flags, XDG_CONFIG_HOME=str(waves / "home"))
    assert done.returncode == 0, done.stderr
    assert "16 samples of the test part, 16 x 64" in done.stdout
    assert torch.export.load(tmp_path / "a.pt2").module()(torch.rand(5, 64)).shape == (5,)


class Doubled:
    """Stands for the evaluator of a task whose files are tables with a column x, and for its predictor."""

    classes = ()

    def __init__(self):
        self.evaluator = self

    def texts_of(self, path):
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    def read_samples(self, path):
        return [(f"row {number}", torch.tensor(float(row["x"]))) for number, row in enumerate(self.texts_of(path))]

    def predict(self, samples):
        return [(key, {"values": 2 * inputs[None]}) for key, inputs in samples]


def test_a_row_stands_beside_its_own_prediction_also_after_one_that_has_none(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("x,who\nnan,a\n3,b\n")
    (tmp_path / "b.csv").write_text("who,x,more\nc,4,m\n")  # other columns, in another order
    files, _ = find_files([str(tmp_path)])
    (tmp_path / "out").mkdir()
    report = Report()
    assert write_all(Doubled(), files, tmp_path / "out", report) == ["predictions.csv"]
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = [(row["who"], row["x"], row["name"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("b", "3", "row 1", "6"), ("c", "4", "row 0", "8")]
    assert (report.num_predicted, report.num_failed) == (2, 1)
    assert "a.csv: what the network predicts for it is not a number" in capsys.readouterr().err


def test_a_link_to_a_file_is_a_file_of_its_own_and_the_same_path_is_one(tmp_path):
    (tmp_path / "b.csv").write_text("x\n1\n")
    (tmp_path / "a.csv").symlink_to("b.csv")
    files, _ = find_files([str(tmp_path), str(tmp_path / "b.csv")])
    assert [found.path.name for found in files] == ["a.csv", "b.csv"]
