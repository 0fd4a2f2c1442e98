"""UNet++: its size, its nested paths, and its deep supervision."""

import pytest
import torch

from loss.dice_loss import CEDiceLoss
from model.UNetpp import UNetpp
from utils.errors import UserError


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def expected_parameters(n_channels, n_classes, width, up, num_heads):
    """The sum over the nodes, written out: (level, earlier nodes of the level)."""
    f = [width, 2 * width, 4 * width, 8 * width, 16 * width]

    def double_conv(into, out):
        return 9 * into * out + 2 * out + 9 * out * out + 2 * out

    count = double_conv(n_channels, f[0]) + sum(double_conv(f[k], f[k + 1]) for k in range(4))
    taps = {"transposed": 4, "bilinear": 1}[up]
    nodes = [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (0, 3), (1, 3), (0, 4)]
    for level, earlier in nodes:
        count += taps * f[level + 1] * f[level] + f[level]
        count += double_conv(earlier * f[level] + f[level], f[level])
    return count + num_heads * (f[0] * n_classes + n_classes)


@pytest.mark.parametrize(
    ("up", "deep_supervision", "count"),
    [("transposed", False, 9_045_858), ("bilinear", False, 8_357_730), ("bilinear", True, 8_357_928)],
)
def test_parameter_count_of_the_classic_plan(up, deep_supervision, count):
    with torch.device("meta"):  # counts without memory
        model = UNetpp(n_channels=3, n_classes=2, up=up, deep_supervision=deep_supervision)
    num_heads = 4 if deep_supervision else 1
    assert num_parameters(model) == count == expected_parameters(3, 2, 32, up, num_heads)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(("size", "up"), [((16, 16), "bilinear"), ((17, 31), "transposed"), ((50, 33), "bilinear")])
def test_output_has_the_size_of_the_input(size, up, deep_supervision):
    model = UNetpp(n_channels=2, n_classes=5, width=2, up=up, deep_supervision=deep_supervision).eval()
    assert model(torch.randn(1, 2, *size)).shape == (1, 5, *size)


def test_deep_supervision_gives_four_maps_in_training_and_their_mean_in_evaluation():
    model = UNetpp(n_classes=3, width=2, deep_supervision=True)
    of_heads = []
    for head in model.heads:
        head.register_forward_hook(lambda _, __, output: of_heads.append(output))
    images = torch.randn(2, 3, 32, 48)
    maps = model(images)
    assert isinstance(maps, list) and len(maps) == 4
    assert all(torch.equal(each, of_head) for each, of_head in zip(maps, of_heads, strict=True))
    of_heads.clear()
    logits = model.eval()(images)
    torch.testing.assert_close(logits, sum(of_heads) / 4)
    assert not any(torch.allclose(logits, of_head, atol=1e-3) for of_head in of_heads)


def test_without_deep_supervision_training_returns_one_map():
    assert UNetpp(width=2)(torch.randn(2, 3, 16, 16)).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_every_parameter_gets_a_gradient(up, deep_supervision):
    model = UNetpp(width=4, up=up, deep_supervision=deep_supervision)
    targets = torch.randint(2, (2, 33, 47))
    CEDiceLoss(n_classes=2)(model(torch.randn(2, 3, 33, 47)), targets).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_node_sees_all_earlier_nodes_of_its_level_and_the_one_below():
    model = UNetpp(width=4).eval()
    inputs = {}
    for name, node in model.nodes.items():
        node.register_forward_pre_hook(lambda _, arguments, name=name: inputs.update({name: arguments[0]}))
    outputs = {}
    for name, node in model.nodes.items():
        node.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    images = torch.randn(1, 3, 48, 48)
    model(images)
    first = model.encoder[0](images)
    below = model.ups["0_3"](outputs["1_2"], first)
    assert torch.equal(inputs["0_3"], torch.cat([first, outputs["0_1"], outputs["0_2"], below], dim=1))


def test_shallow_output_does_not_depend_on_the_deep_nodes():
    """Map 0 comes from node (0, 1), a U-Net of one level, so that the deeper nodes can be pruned."""
    model = UNetpp(width=2, deep_supervision=True)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and "nodes" in name}
    assert reached == {"0_1"}


def test_channels_last_stays_channels_last_and_changes_nothing():
    model = UNetpp(width=4).eval()
    images = torch.randn(2, 3, 33, 48)
    expected = model(images)
    logits = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert logits.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_compiles_to_one_graph():
    torch.compiler.reset()
    model = UNetpp(width=2, deep_supervision=True).eval()
    images = torch.randn(1, 3, 17, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), model(images))


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"15x64 pixels.*at least 16x16"):
        UNetpp(width=2)(torch.randn(2, 3, 15, 64))


def test_unknown_up_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'transposed'"):
        UNetpp(width=2, up="transpose")
