"""Weights are loaded where name and shape fit, whatever is wrapped around them, and the rest is reported."""

import pickle

import pytest
import torch
from torch import nn

from engine.checkpoints.file import FORMAT, save_checkpoint
from engine.options.parser import Options
from extras.pretrained import find_weights, load_pretrained, strip_wrappers, with_mask_values
from utils.errors import UserError


def network(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, num_classes))


def same_weights(a: nn.Module, b: nn.Module) -> list[str]:
    """The names whose values are equal."""
    other = b.state_dict()
    return [name for name, value in a.state_dict().items() if torch.equal(value, other[name])]


def with_prefix(prefix: str) -> dict:
    return {prefix + name: value for name, value in network().state_dict().items()}


@pytest.mark.parametrize(
    "content",
    [
        network().state_dict(),
        with_prefix("module."),
        with_prefix("_orig_mod."),
        with_prefix("module._orig_mod."),
        with_prefix("model."),
        {"state_dict": with_prefix("model."), "epoch": 3},
        {"model": network().state_dict(), "optimizer": {}},
        {"model_state_dict": with_prefix("module.")},
        {"model": {"state_dict": network().state_dict()}},
        {"net": network().state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(5, 4)}}}},
        {"meta": {"epoch": 1}, "state_dict_ema": with_prefix("module.")},
        {"ema": {"shadow": {"student": with_prefix("model.")}}},
        {**network().state_dict(), 0: torch.zeros(1), "note": "not a tensor"},
    ],
    ids=["bare", "data parallel", "compiled", "both", "inside a model", "lightning", "in a dict", "old name", "nested",
         "net", "average", "deep", "among other things"],
)  # fmt: skip
def test_every_tensor_is_found_in_the_usual_formats(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    target = network(seed=1)
    report = load_pretrained(target, tmp_path / "weights.pth")
    assert same_weights(target, network()) == list(network().state_dict())
    assert report == f"Pretrained: 9 of 9 tensors of 'model' loaded from {tmp_path / 'weights.pth'}."


def test_data_parallel_itself_gives_such_a_file(tmp_path):
    torch.save(nn.DataParallel(network()).state_dict(), tmp_path / "parallel.pth")
    assert "9 of 9" in load_pretrained(network(seed=1), tmp_path / "parallel.pth")


def test_name_of_the_network_itself_is_not_taken_for_a_wrapper():
    known = {"model.weight": 0, "weight": 0}
    assert strip_wrappers("model.weight", known) == "model.weight"
    assert strip_wrappers("module.model.weight", known) == "model.weight"
    assert strip_wrappers("model.other", known) == "other"


def test_checkpoint_of_this_template_gives_the_network_of_that_name(tmp_path):
    networks = {"generator": network(seed=2).state_dict(), "critic": network(seed=3).state_dict()}
    save_checkpoint({"format": FORMAT, "networks": networks}, tmp_path / "last.pth")
    target = network(seed=4)
    load_pretrained(target, tmp_path / "last.pth", "critic")
    assert same_weights(target, network(seed=3)) == list(target.state_dict())


def test_other_head_is_left_and_reported(tmp_path):
    torch.save({**network(num_classes=7).state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "seven.pth")
    target = network(num_classes=3, seed=1)
    report = load_pretrained(target, tmp_path / "seven.pth")
    assert same_weights(target, network(num_classes=3))[:7] == list(target.state_dict())[:7]
    assert torch.equal(target[2].weight, network(num_classes=3, seed=1)[2].weight)
    lines = report.splitlines()
    assert "7 of 9" in lines[0]
    assert lines[1] == "  other shape (2): 2.weight (7, 5) for (3, 5), 2.bias (7,) for (3,)"
    assert lines[2] == "  not in the network (1): extra.weight"


def test_tensors_that_the_file_lacks_are_reported(tmp_path):
    torch.save({"0.weight": torch.zeros(5, 4)}, tmp_path / "part.pth")
    target = network()
    assert "not in the file (8): 0.bias" in load_pretrained(target, tmp_path / "part.pth")
    assert not target[0].weight.any()


@pytest.mark.parametrize(
    ("content", "has"),
    [({"conv.weight": torch.zeros(1)}, "the file has conv.weight"), ({"epoch": 3}, "no tensors"), ([], "no tensors"),
     ({"0.weight": torch.zeros(2, 2)}, "the file has 0.weight")],
)  # fmt: skip
def test_when_nothing_fits_the_error_shows_both_sides(tmp_path, content, has):
    torch.save(content, tmp_path / "other.pth")
    target = network()
    with pytest.raises(UserError, match=r"Nothing in .*other\.pth fits.*wants 0\.weight") as caught:
        load_pretrained(target, tmp_path / "other.pth")
    assert has in str(caught.value)
    assert same_weights(target, network()) == list(target.state_dict())


def test_format_of_before_torch_1_6_is_refused_with_the_way_out(tmp_path):
    torch.save(network().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1\.6.*torch\.save\(torch\.load\(OLD, weights_only=True\), NEW\)"):
        load_pretrained(network(), tmp_path / "old.pth")


def test_file_that_holds_more_than_data_is_refused(tmp_path):
    torch.save(network(), tmp_path / "module.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"0.weight": [1.0]}))
    for name in ("module.pth", "pickle.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            load_pretrained(network(), tmp_path / name)


def test_content_without_weights_gives_none():
    assert find_weights("text", {}) == {} and find_weights({"lr": 0.1}, {}) == {}


def test_of_several_networks_that_is_found_which_fits(tmp_path):
    torch.save({"teacher": nn.Linear(9, 9).state_dict(), "student": network().state_dict()}, tmp_path / "two.pth")
    target = network(seed=1)
    assert "9 of 9" in load_pretrained(target, tmp_path / "two.pth")


def test_safetensors_file_is_called_by_its_name(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "a.pth").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match=r"it is a safetensors file\. To convert one .*load_file\(OLD\), NEW\)"):
        load_pretrained(network(), tmp_path / "a.pth")


def test_a_network_that_is_a_part_of_the_one_in_the_file_is_filled_and_the_prefix_told(tmp_path):
    torch.save({**with_prefix("student.net."), "teacher.weight": torch.zeros(1)}, tmp_path / "larger.pth")
    target = network(seed=1)
    report = load_pretrained(target, tmp_path / "larger.pth")
    assert same_weights(target, network()) == list(network().state_dict())
    assert "9 of 9" in report and "with 'student.net.' removed from its names" in report


def test_a_file_of_a_part_of_the_network_fills_that_part(tmp_path):
    torch.save(network().state_dict(), tmp_path / "part.pth")
    target = nn.ModuleDict({"backbone": network(seed=1), "top": nn.Linear(2, 2)})
    report = load_pretrained(target, tmp_path / "part.pth")
    assert same_weights(target["backbone"], network()) == list(network().state_dict())
    assert "9 of 11" in report and "with 'backbone.' put before its names" in report
    assert "not in the file (2): top.weight, top.bias" in report


def test_a_prefix_by_which_less_than_half_would_fit_is_not_taken(tmp_path):
    names = {f"a.{number}.weight": torch.zeros(7, 7) for number in range(9)}
    torch.save({**names, "a.0.bias": torch.zeros(5)}, tmp_path / "other.pth")  # by chance of the right shape
    with pytest.raises(UserError, match="Nothing in"):
        load_pretrained(network(), tmp_path / "other.pth")


def test_a_checkpoint_with_averages_gives_these(tmp_path):
    averaging = {"networks": {"model": network(seed=5).state_dict()}, "num_averaged": 3}
    state = {"format": FORMAT, "networks": {"model": network(seed=2).state_dict()}, "averaging": averaging}
    save_checkpoint(state, tmp_path / "last.pth")
    target = network(seed=4)
    assert "9 of 9 averaged tensors" in load_pretrained(target, tmp_path / "last.pth")
    assert same_weights(target, network(seed=5)) == list(target.state_dict())


@pytest.mark.parametrize("values", [5, ["a; rm"], [[0]], [{"a": 1}]])
def test_mask_values_that_are_none_are_named(tmp_path, values):
    torch.save({"options": {"mask_values": values, "n_classes": 2}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="its mask_values are none"):
        with_mask_values(Options(mask_values=None, n_classes=2, pretrained=str(tmp_path / "a.pth")))
