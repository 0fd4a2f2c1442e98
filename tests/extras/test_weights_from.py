"""Weights of torchvision, timm and huggingface.co go into a run's network, with the scale of its input."""

import json
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from engine.checkpoints.file import load_checkpoint
from engine.options.parser import Options
from eval_vanilla import EvaluatorVanilla
from extras.input_scale import is_put_on, is_scale
from extras.pretrained import fitted_scale, load_initial_weights, with_scale
from extras.weights_from import content_of, from_hub, scale_in, scale_of
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SMALL = ("--train_val_sample_rate", 40, "--limit_batches", 1, "--n_epoch", 1, "--batch_size", 8, "--gpu_devices", "cpu",
         "--data_type", "FashionMNISTSample")  # fmt: skip


def options(model_type="torchvision:squeezenet1_1", pretrained="torchvision", **more) -> Options:
    values = {"n_channels": 3, "n_classes": 5, "model_args": {}, "input_mean": None, "input_std": None}
    return Options(**{**values, "model_type": model_type, "pretrained": pretrained, "model_path": None, **more})


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(5)
    return torchvision.models.squeezenet1_1()


@pytest.fixture
def hub(monkeypatch, tmp_path, squeezenet):
    """The cache of torch.hub, with weights of SqueezeNet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(squeezenet.state_dict(), tmp_path / "hub/checkpoints" / url.rpartition("/")[2])


def no_network(*arguments, **settings):
    raise OSError("Name or service not known")


# ---- torchvision -----------------------------------------------------------------------------------------------------
def test_weights_of_torchvision_give_its_features_on_normalized_images(hub, build, squeezenet):
    trainer = build(*SMALL, "--model_type", "torchvision:squeezenet1_1", "--pretrained", "torchvision")
    network = trainer.networks["model"].eval()
    assert (trainer.opt.input_mean, trainer.opt.input_std) == fitted_scale(IMAGENET, 1)
    mean, std = trainer.opt.input_mean[0], trainer.opt.input_std[0]
    grey = torch.rand(2, 1, 64, 64)
    seen = []
    network.features.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    network(grey)
    assert torch.equal(seen[0], (grey - torch.tensor(mean)) / torch.tensor(std))
    in_colour = squeezenet.eval().features(seen[0].expand(-1, 3, -1, -1))
    assert torch.allclose(network.features(seen[0]), in_colour, rtol=1e-4, atol=1e-4)
    assert network.classifier[1].weight.shape[0] == 10
    text = next(trainer.run_dir.path.glob("*_log.txt")).read_text()
    assert "50 of 52 tensors of 'model' loaded from torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1" in text
    assert "other shape (2): classifier.1.weight (1000, 512, 1, 1) for (10, 512, 1, 1)" in text
    assert "three channels summed to one (1): features.0.weight" in text
    assert "Input: normalized by mean 0.449 and standard deviation 0.226 of the channels." in text


def test_the_scale_is_in_the_checkpoint_and_evaluation_resume_and_the_next_run_use_it(hub, build, train, tmp_path):
    flags = (*SMALL, "--model_type", "torchvision:squeezenet1_1")
    run = train(*flags, "--pretrained", "torchvision")
    path = run.checkpointer.path("last")
    state = load_checkpoint(path)
    assert state["options"]["input_mean"] == run.opt.input_mean
    assert not [name for name in state["networks"]["model"] if "input" in name]
    opt = EvaluatorVanilla.parse_options(["--model_path", str(path), "--gpu_devices", "cpu"])
    evaluator = EvaluatorVanilla.from_state(opt, state, torch.device("cpu"))
    images = torch.rand(2, 1, 32, 32)
    run.model.eval()
    assert torch.equal(evaluator.model.eval()(images), run.model(images))
    assert is_put_on(build("--resume", run.run_dir.path, "--n_epoch", 2).model)
    following = build(*flags, "--pretrained", path)
    assert following.opt.input_mean == run.opt.input_mean and is_put_on(following.model)
    assert torch.equal(following.model.eval()(images), run.model(images))
    with pytest.raises(UserError, match=r"--input_mean .*contradicts the checkpoint"):
        EvaluatorVanilla.parse_options(["--model_path", str(path), "--input_mean", "0.5"])


def test_without_a_network_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"^--pretrained torchvision: the weights .* cannot be had: .*known") as caught:
        content_of("torchvision", options("torchvision:resnet18"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_gives_weights_to_its_own_networks_alone(library):
    with pytest.raises(UserError, match=f"for a network of {library}.* --model_type is Vanilla"):
        scale_of(library, options("Vanilla", library))


def test_the_weights_that_expect_minus_one_to_one_get_it():
    assert scale_of("torchvision", options("torchvision:googlenet")) == ([0.5], [0.5])
    assert scale_of("torchvision", options("torchvision:resnet18")) == IMAGENET


# ---- timm ------------------------------------------------------------------------------------------------------------
def test_weights_of_timm_fill_the_body_and_their_scale_is_used(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(3)
    donor = timm.create_model("test_convnext")  # 0.3 million weights
    safetensors.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def hf_hub_download(repo_id, filename, revision):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda **place: None)
    opt = with_scale(options("timm:test_convnext", "timm"))
    cfg = timm.models.get_pretrained_cfg("test_convnext")
    assert (opt.input_mean, opt.input_std) == (list(cfg.mean), list(cfg.std))
    torch.manual_seed(9)
    network = timm.create_model("test_convnext", num_classes=5)
    before, after = {k: v.clone() for k, v in network.state_dict().items()}, torch.random.get_rng_state()
    notes = load_initial_weights(opt, {"model": network})
    assert asked == [(cfg.hf_hub_id, "model.safetensors")]
    assert torch.equal(after, torch.random.get_rng_state())
    for name, value in network.state_dict().items():
        is_head = value.shape != donor.state_dict()[name].shape
        assert torch.equal(value, before[name] if is_head else donor.state_dict()[name]), name
    assert "other shape (2): head.fc.weight" in notes[0] and f"({tmp_path / 'model.safetensors'})" in notes[0]


# ---- huggingface.co --------------------------------------------------------------------------------------------------
@pytest.fixture
def on_hub(monkeypatch, tmp_path):
    """A function that makes these files those of every model on huggingface.co, without a network."""
    hub = pytest.importorskip("huggingface_hub")

    def make(**contents):
        def hf_hub_download(repo_id, filename, revision):
            if filename not in contents:
                raise hub.errors.EntryNotFoundError("404")
            if isinstance(contents[filename], dict):
                (tmp_path / filename).write_text(json.dumps(contents[filename]))
            return str(tmp_path / filename)

        monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda **place: None)

    return make


def test_a_model_of_the_hub_gives_its_tensors_and_the_scale_in_its_config(on_hub, tmp_path):
    on_hub(**{"pytorch_model.bin": None, "config.json": {"pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}})
    donor = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 7))
    torch.save(donor.state_dict(), tmp_path / "pytorch_model.bin")
    opt = options("Vanilla", "hf:owner/name@main", n_channels=1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    (note, scale) = load_initial_weights(with_scale(opt), {"model": network})
    assert torch.equal(network[0].weight, donor[0].weight.sum(dim=1, keepdim=True))
    assert "2 of 4 tensors of 'model' loaded from hf:owner/name@main" in note and "mean 0.449" in scale
    image = torch.rand(1, 1, 3, 3)
    assert torch.allclose(network[0](image), F.conv2d(image.expand(-1, 3, -1, -1), donor[0].weight, donor[0].bias))


def test_a_model_whose_file_is_more_than_data_is_refused(on_hub, tmp_path):
    on_hub(**{"pytorch_model.bin": None})
    torch.save(nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="which is not data"):
        content_of("hf:owner/name", options())


def test_the_cache_is_asked_first_and_knows_what_a_model_lacks(on_hub, monkeypatch, tmp_path):
    import huggingface_hub as hub

    on_hub()
    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    known = {"config.json": hub._CACHED_NO_EXIST, "pytorch_model.bin": str(tmp_path / "pytorch_model.bin")}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda filename, **place: known.get(filename))
    assert from_hub("hf:a/b", ["model.safetensors", "pytorch_model.bin"]) == tmp_path / "pytorch_model.bin"
    assert from_hub("hf:a/b", ["config.json"], is_needed=False) is None
    with pytest.raises(UserError, match="Name or service not known"):
        from_hub("hf:a/b", ["preprocessor_config.json"], is_needed=False)  # or the run would be another one later


def test_a_new_process_without_a_network_says_so_in_one_line(fresh_python, tmp_path):
    pytest.importorskip("huggingface_hub")
    code = "from extras.weights_from import from_hub; from_hub('hf:owner/name', ['config.json'])"
    done = fresh_python("-c", code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "UserError: --pretrained hf:owner/name: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:../name", "hf:a/b/c", "hf:a/.b", "hf:a/b@", "hf:a /b"])
def test_what_is_no_name_on_the_hub_is_refused_before_it_is_asked(source):
    with pytest.raises(UserError, match="is not hf:OWNER/NAME"):
        from_hub(source, ["config.json"])


def test_a_missing_model_package_or_network_is_one_line(on_hub, monkeypatch):
    on_hub()
    assert from_hub("hf:a/b", ["config.json"], is_needed=False) is None
    with pytest.raises(UserError, match=r"the model has none of model\.safetensors, pytorch_model\.bin") as caught:
        content_of("hf:a/b", options())
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(UserError, match=r"Name or service not known.*hf download a/b"):
        content_of("hf:a/b", options())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        content_of("hf:a/b", options())


# ---- files, and the scale --------------------------------------------------------------------------------------------
def test_a_file_of_safetensors_is_loaded_with_the_scale_in_its_metadata(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    path = str(tmp_path / "a.safetensors")
    metadata = {"input_mean": "[0.5]", "input_std": "[0.25]"}
    safetensors.save_file({"0.weight": torch.ones(2, 2)}, path, metadata)
    assert scale_of(path, options()) == ([0.5], [0.25])
    network = nn.Sequential(nn.Linear(2, 2))
    assert "1 of 2" in load_initial_weights(options(pretrained=path), {"model": network})[0]
    assert torch.equal(network[0].weight, torch.ones(2, 2))
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="Cannot read"):
        scale_of(path, options())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        content_of(path, options())


@pytest.mark.parametrize(
    ("mean", "std"),
    [(None, None), ([0.5], None), ("0.5", "0.5"), ([0.5], [0.0]), ([0.5], [-1.0]), ([0.5], [float("nan")]), ([], []),
     ([True], [1.0]), ([0.5, 0.5], [1.0]), ([[0.5]], [[0.5]]), ([10**400], [1])],
)  # fmt: skip
def test_a_scale_from_a_file_that_is_none_is_not_used(mean, std):
    assert not is_scale(*scale_in({"input_mean": mean, "input_std": std}))


def test_a_scale_is_fitted_to_the_channels_where_that_has_a_meaning():
    assert fitted_scale(IMAGENET, 3) == IMAGENET and fitted_scale(([0.5], [0.25]), 2) == ([0.5, 0.5], [0.25, 0.25])
    assert fitted_scale(([0.0, 1.0], [1.0, 2.0]), 1) == ([0.5], [1.5]) and fitted_scale(IMAGENET, 4) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--input_mean", "0.5"), "--input_std has nothing"), (("--input_std", "0.5"), "--input_mean has nothing"),
     (("--input_mean", "0.1,0.2", "--input_std", "1", "1"), "one number per channel, and --n_channels is 1")],
)  # fmt: skip
def test_a_scale_that_does_not_fit_the_channels_is_refused(build, flags, message):
    with pytest.raises(UserError, match=message):
        build(*flags)


def test_a_scale_by_hand_wins_and_the_log_has_both(tmp_path):
    torch.save({"options": {"input_mean": [0.5], "input_std": [0.5]}, "0.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    opt = options(pretrained=str(tmp_path / "a.pth"), n_channels=1, input_mean=[0.1], input_std=[0.3])
    assert with_scale(opt) is opt
    *_, note = load_initial_weights(opt, {"model": nn.Sequential(nn.Linear(2, 2))})
    assert note.startswith("Input: normalized by mean 0.1") and "input that was normalized by mean 0.5" in note


class EvaluatorOwnNetwork(EvaluatorVanilla):
    @classmethod
    def build_networks(cls, opt):
        return {"model": nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))}


class TrainerOwnNetwork(TrainerVanilla):
    evaluator_class = EvaluatorOwnNetwork


def test_a_task_whose_network_would_ignore_the_scale_is_refused(build):
    with pytest.raises(UserError, match=r"have no effect.*put_on"):
        build("--input_mean", 0.5, "--input_std", 0.5, task=TrainerOwnNetwork)
