"""A run of this user may name its code again; a file from elsewhere may not, whatever it says of itself."""

import json
import shutil

import pytest

from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_vanilla import EvaluatorVanilla
from extras import own_runs
from extras.own_runs import key_path, sign, signed_values
from utils.errors import UserError

OWN = ["--import", "own_names", "--model_type", "signed_net", "--metrics", "accuracy", "own_names:Mine"]
CODE = """
from engine.registry import REGISTERED, register_model
from utils.metrics import Accuracy
from model.vanilla_model import VanillaModel
REGISTERED["model"].pop("signed_net", None)
register_model("signed_net")(type("SignedNet", (VanillaModel,), {"__module__": __name__}))
class Mine(Accuracy): ...
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@pytest.fixture
def own_run(train, tmp_path, monkeypatch):
    """The directory of a run with a network and a metric of the user's."""
    (tmp_path / "own_names.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return train(*OWN, "--max_updates", 1, "--n_epoch", 1).run_dir.path


def parse(run):
    return EvaluatorVanilla.parse_options([str(run)])


def test_a_run_of_this_user_needs_no_repetition_and_a_copy_of_another_one_does(own_run, tmp_path, monkeypatch):
    opt = parse(own_run)
    assert (opt.model_type, vars(opt)["import"], opt.metrics[1]) == ("signed_net", ["own_names"], "own_names:Mine")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(opt.model_path, alone)
    with pytest.raises(UserError, match=r"names user code.* repeat: --import own_names"):
        parse(alone)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))  # another user, or another machine
    with pytest.raises(UserError, match="names user code"):
        parse(own_run)


def test_a_changed_checkpoint_or_record_is_not_trusted(own_run):
    (path,) = own_run.glob("*_last_ckpt.pth")
    for best in own_run.glob("*_best_ckpt.pth"):
        best.unlink()
    state = load_checkpoint(path)
    others = {"model_type": "os:system"}, {"import": ["own_names", "antigravity"]}, {"loss_type": "own_names:Mine"}
    for changes in others:
        save_checkpoint(state | {"options": state["options"] | changes}, path)
        with pytest.raises(UserError, match="names user code"):
            parse(own_run)
    save_checkpoint(state, path)
    assert parse(own_run)
    record = json.loads((own_run / "provenance.json").read_text())
    for signatures in (None, [], {}, {"import": "é", "model_type": 3}, {"import": record["signatures"]["metrics"]}):
        (own_run / "provenance.json").write_text(json.dumps(record | {"signatures": signatures}))
        with pytest.raises(UserError, match="names user code"):
            parse(own_run)


def test_a_run_without_own_code_makes_no_key(vanilla_run, tmp_path):
    assert "signatures" not in json.loads((vanilla_run / "provenance.json").read_text())


def test_a_key_that_others_can_read_or_that_cannot_be_made_signs_nothing(tmp_path, monkeypatch):
    (tmp_path / "provenance.json").write_text('{"run_name": "A_1"}')
    sign(tmp_path, {"import": ["a"]})
    assert key_path().stat().st_mode & 0o777 == 0o600
    values = {"import": ["a"], "other": ["a"]}
    assert signed_values(tmp_path / "a.pth", values) == {"import"}
    key_path().chmod(0o644)
    assert signed_values(tmp_path / "a.pth", values) == set()
    monkeypatch.setattr(own_runs, "key_path", lambda: tmp_path / "provenance.json" / "key")
    sign(tmp_path, {"import": ["b"]})
    assert signed_values(tmp_path / "a.pth", {"import": ["b"]}) == set()
