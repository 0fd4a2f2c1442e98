"""python -m tools.export: the file computes what the network does, and says how it is used."""

import contextlib
import io
import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.checkpoints.file import load_checkpoint, save_checkpoint
from engine.options.parser import Options
from extras.pretrained import load_pretrained
from extras.weights_from import scale_of
from tools.export import main
from tools.exporting.write import compare, describe
from tools.prediction.opening import open_evaluator
from utils.errors import UserError


@pytest.fixture
def export(tmp_path, capsys):
    """A function that exports as a user does, and returns the file and what was printed."""

    def export(run, kind, *flags):
        path = tmp_path / f"network.{kind}"
        main([str(run), "--to", kind, "--output", str(path), *flags])
        return path, capsys.readouterr().out

    return export


@pytest.fixture(scope="module")
def scaled_run(vanilla_run, tmp_path_factory):
    """A checkpoint with averaged weights and a normalization of the input."""
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    averages = {name: value * 0.5 for name, value in state["networks"]["model"].items()}
    options = state["options"] | {"input_mean": [0.25], "input_std": [0.5]}
    path = tmp_path_factory.mktemp("scaled") / "Scaled_ckpt.pth"
    averaging = {"networks": {"model": averages}, "num_averaged": 3}
    save_checkpoint(state | {"averaging": averaging, "options": options}, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(scaled_run, tmp_path_factory):
    """Its ONNX file, and what the export printed."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(scaled_run), "--to", "onnx", "--output", str(path)])
    return path, printed.getvalue()


def network_of(run):
    return open_evaluator(run, devices="cpu")[0].model.eval()


def differences(text):
    return [float(number) for number in re.findall(r"largest difference (\S+)", text)]


# ---- formats ---------------------------------------------------------------------------------------------------------
def test_onnx_of_a_classifier_has_any_batch_and_says_how_it_is_used(scaled_run, onnx_file):
    """Averaged weights and the normalization are in it."""
    import onnxruntime

    path, text = onnx_file
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(7, 1, 28, 28)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), network_of(scaled_run)(images), atol=1e-5)
    assert session.get_inputs()[0].shape == ["batch", 1, 28, 28]
    about = json.loads(session.get_modelmeta().custom_metadata_map["plainloop"])
    assert about["class_names"][9] == "Ankle boot" and about["output"]["activation"] == "softmax"
    assert about["input"]["is_normalized_inside"] and about["input_mean"] == [0.25]
    assert (about["input"]["resize"], about["input"]["range"], about["input"]["colour"]) == (28, [0, 1], "grey")
    assert len(differences(text)) == 3 and max(differences(text)) < 1e-4 and "16 samples of the test part" in text


@pytest.mark.slow
def test_onnx_of_a_unet_has_any_size(seg_run, export):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, _ = export(seg_run, "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, 80, 48)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), network_of(seg_run)(images), atol=1e-4)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]


def test_pt2_of_a_unet_has_any_size(seg_run, export):
    path, text = export(seg_run, "pt2")
    files = {"plainloop.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    images = torch.rand(3, 3, 80, 48)
    with torch.no_grad():
        assert torch.allclose(program(images), network_of(seg_run)(images), atol=1e-5)
    about = json.loads(files["plainloop.json"])
    assert about["mask_values"] == [0, 1] or about["mask_values"] == [0, 255]
    assert about["input"]["shape"] == [None, 3, None, None] and about["input"]["multiple_of"] == 16
    assert "4 samples of the test part, 4 x 3 x 32 x 32" in text


def test_safetensors_are_loaded_by_pretrained_with_the_scale(scaled_run, export):
    pytest.importorskip("safetensors")
    path, text = export(scaled_run, "safetensors")
    other = network_of(scaled_run)
    expected = {name: value.clone() for name, value in other.state_dict().items()}  # the averages
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert "6 of 6 tensors" in load_pretrained(other, str(path))
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert scale_of(str(path), None) == ([0.25], [0.5])
    assert differences(text) == [0, 0, 0]


def test_the_script_of_the_page_classifies_without_torch(scaled_run, onnx_file, tmp_path, root):
    path, _ = onnx_file
    (script,) = re.findall(r"```python\n(# classify\.py.*?)```", (root / "docs/export.md").read_text(), flags=re.DOTALL)
    (tmp_path / "classify.py").write_text(script + "\nassert 'torch' not in sys.modules\n")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = [sys.executable, "classify.py", path, "a.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    evaluator, _ = open_evaluator(scaled_run, devices="cpu")
    with torch.no_grad():
        best = int(evaluator.model(torch.from_numpy(pixels)[None, None] / 255).argmax())
    assert done.stdout.strip() == evaluator.classes[best]


# ---- what goes wrong -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_the_metadata_of_a_table_say_how_its_rows_become_inputs(kind):
    inputs = [{"name": "age", "mean": 50.0, "std": 10.0}, {"name": "smoker", "values": ["no", "yes"]}]
    usual = {"model_type": "MLP", "model_args": {}, "model_path": "a_ckpt.pth", "target": "risk"}
    of_run = Options(**usual, n_classes=2, columns={"inputs": inputs, "target": None})
    evaluator = Namespace(task="table", opt=of_run, classes=["low", "high"])
    about = describe(evaluator, Namespace(to=kind), torch.zeros(2, 3), None)
    assert about["columns"] == inputs and about["target"] == {"name": "risk"}
    assert about["class_names"] == ["low", "high"]
    assert about["output"] == {"name": "logits", "activation": "softmax"}
    scale = {"name": "risk", "mean": 3.0, "std": 2.0}
    evaluator.opt = Options(**usual, n_classes=1, columns={"inputs": inputs, "target": scale})
    about = describe(evaluator, Namespace(to=kind), torch.zeros(2, 3), None)
    assert about["target"] == scale and "class_names" not in about
    expected = {"name": "outputs", "activation": None, "is_in_unit_of_target": kind == "onnx"}
    assert about["output"] == expected


def test_a_file_that_computes_something_else_is_refused(capsys):
    network = nn.Linear(3, 2)
    inputs = torch.rand(4, 3)
    compare(lambda images: network(images) + 5e-5, network, inputs, "random input")
    assert "4 x 3: largest difference 5" in capsys.readouterr().out
    for wrong in (2e-4, float("nan")):
        with pytest.raises(UserError, match="does not compute what the network does"):
            compare(lambda images, wrong=wrong: network(images) + wrong, network, inputs, "random input")


def test_without_data_the_comparison_says_so(vanilla_run, export, tmp_path):
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    save_checkpoint(state | {"options": state["options"] | {"data_type": "nowhere:Data"}}, tmp_path / "a_ckpt.pth")
    with pytest.raises(UserError, match="give --image_size"):
        export(tmp_path / "a_ckpt.pth", "pt2")
    known = {"data_type": "FashionMNIST", "data_dir": str(tmp_path)}  # it would be downloaded
    save_checkpoint(state | {"options": state["options"] | known}, tmp_path / "b_ckpt.pth")
    path, text = export(tmp_path / "b_ckpt.pth", "pt2")
    assert path.exists() and len(differences(text)) == 2
    assert "Compared with random input only: The checkpoint" in text


def test_nothing_is_overwritten_and_a_failure_leaves_no_file(vanilla_run, export, tmp_path, monkeypatch):
    (tmp_path / "network.pt2").write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        export(vanilla_run, "pt2")
    assert (tmp_path / "network.pt2").read_text() == "mine"
    (tmp_path / "network.pt2").unlink()
    monkeypatch.setattr("tools.exporting.write.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="does not compute"):
        export(vanilla_run, "pt2")
    assert not list(tmp_path.glob("*network*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--to", "onxx"], "onnx, pt2, safetensors"), (["--to", "pt2", "--public"], "without --push"),
        (["--to", "pt2", "--mode", "padding"], "no effect on a network"),
        (["--to", "pt2", "--push", "x"], "OWNER/NAME"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_one_line(vanilla_run, capsys, flags, said):
    with pytest.raises(SystemExit) as ended:
        main([str(vanilla_run), *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_command_that_installs_it(vanilla_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install .*onnxscript onnxruntime"):
        main([str(vanilla_run), "--to", "onnx"])


# ---- upload ----------------------------------------------------------------------------------------------------------
def test_an_upload_has_the_file_its_metadata_and_a_page(vanilla_run, export, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    seen = {}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            seen["private"] = private

        def upload_folder(self, repo_id, folder_path):
            seen["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(hub, "HfApi", Api)
    path, text = export(vanilla_run, "pt2", "--push", "me/clothes")
    assert seen["private"] is True and "Uploaded to https://huggingface.co/me/clothes" in text
    assert seen["files"]["model.pt2"] == path.read_bytes()
    assert json.loads(seen["files"]["config.json"])["class_names"][0] == "T-shirt/top"
    assert b"Vanilla" in seen["files"]["README.md"]


def test_without_a_network_the_upload_ends_with_one_line(vanilla_run, export, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    class Api:
        def create_repo(self, *arguments, **more):
            raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(UserError, match=r"no route to host\. The file is in .* hf auth login"):
        export(vanilla_run, "pt2", "--push", "me/clothes")
    assert (tmp_path / "network.pt2").exists()
