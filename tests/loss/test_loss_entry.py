"""Every loss that can be named is built, and is a mean over samples."""

from argparse import ArgumentTypeError, Namespace

import pytest
import torch
from torch import nn

from engine.options.parser import one_of, weighted
from engine.registry import BUILT_INS
from extras.weighted_sum import WeightedSum
from loss.classification_loss import CrossEntropyLoss
from loss.loss_entry import build_criterion
from utils.errors import UserError

LOSS_TYPES = {name: task for name, (_, task) in BUILT_INS["loss"].items()}


def build(loss_type: str | list[str], n_classes: int, label_smoothing: float = 0.0, **loss_args) -> nn.Module:
    given = {"loss_type": loss_type, "n_classes": n_classes, "label_smoothing": label_smoothing, "loss_args": loss_args}
    return build_criterion(Namespace(**given))


def test_label_smoothing_spreads_a_share_evenly():
    logits, labels = torch.randn(4, 10), torch.tensor([0, 3, 9, 3])
    targets = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01  # (N, 10)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(build("CE", 10, label_smoothing=0.1)(logits, labels), expected)


def batch(loss_type: str, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of five samples."""
    torch.manual_seed(0)
    if LOSS_TYPES[loss_type] == "classification":
        return torch.randn(5, 10, requires_grad=True), torch.randint(10, (5,))
    if LOSS_TYPES[loss_type] == "generation":
        return torch.randn(5, requires_grad=True), torch.randint(2, (5,)).float()
    return torch.randn(5, n_classes, 6, 7, requires_grad=True), torch.randint(2, (5, 6, 7))


NUM_CLASSES = {"classification": (10,), "segmentation": (1, 2), "generation": (10,)}
CASES = [(name, n_classes) for name, task in LOSS_TYPES.items() for n_classes in NUM_CLASSES[task]]


@pytest.mark.parametrize(("loss_type", "n_classes"), CASES)
def test_loss_is_a_scalar_with_gradients(loss_type, n_classes):
    logits, targets = batch(loss_type, n_classes)
    loss = build(loss_type, n_classes)(logits, targets)
    loss.backward()
    assert loss.shape == () and loss.isfinite() and logits.grad.any()


@pytest.mark.parametrize(("loss_type", "n_classes"), CASES)
def test_loss_does_not_depend_on_how_a_batch_is_cut(loss_type, n_classes):
    criterion, (logits, targets) = build(loss_type, n_classes), batch(loss_type, n_classes)
    parts = [criterion(logits[rows], targets[rows]) * len(targets[rows]) / 5 for rows in (slice(0, 4), slice(4, 5))]
    torch.testing.assert_close(sum(parts), criterion(logits, targets))


@pytest.mark.parametrize("n_classes", [1, 2])
def test_ce_dice_is_the_sum_of_its_two_parts(n_classes):
    logits, targets = batch("CEDice", n_classes)
    whole, cross_entropy, dice = (build(name, n_classes)(logits, targets) for name in ("CEDice", "PixelCE", "Dice"))
    torch.testing.assert_close(whole, cross_entropy + dice)
    assert cross_entropy > 0 and 0 < dice < 1


def test_pixel_cross_entropy_is_that_of_torch():
    logits, targets = batch("PixelCE", 2)
    torch.testing.assert_close(build("PixelCE", 2)(logits, targets), nn.functional.cross_entropy(logits, targets))
    logits, targets = batch("PixelCE", 1)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
    torch.testing.assert_close(build("PixelCE", 1)(logits, targets), expected)


def test_focal_and_brier_losses_are_their_formulas():
    logits, labels = batch("Focal", 10)
    p = logits.softmax(dim=1)  # (N, C)
    of_label = p.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(build("Focal", 10)(logits, labels), -((1 - of_label) ** 2 * of_label.log()).mean())
    truth = nn.functional.one_hot(labels, 10)
    torch.testing.assert_close(build("Brier", 10)(logits, labels), ((p - truth) ** 2).sum(dim=1).mean())


# ---- several losses --------------------------------------------------------------------------------------------------
def test_a_weighted_sum_is_the_sum_and_tells_its_terms():
    logits, masks = batch("Dice", 2)
    both = build(["PixelCE", "Dice:0.5"], 2)
    cross_entropy, dice = build("PixelCE", 2)(logits, masks), build("Dice", 2)(logits, masks)
    terms = both(logits, masks)
    torch.testing.assert_close(terms.pop("loss"), cross_entropy + 0.5 * dice)
    assert terms == {"loss_pixelce": cross_entropy, "loss_dice": dice}


def test_one_loss_stays_what_it_is_and_with_a_weight_becomes_a_sum():
    assert type(build("CE", 10)) is CrossEntropyLoss
    assert isinstance(build("CE:2", 10), WeightedSum)
    with pytest.raises(UserError, match="names CE twice"):
        build(["CE", "CE:0.5"], 10)


@pytest.mark.parametrize(
    ("text", "stored"), [("CE", "CE"), ("CE:0.50", "CE:0.5"), ("CE:1e-3", "CE:0.001"), ("a:CE:2", "a:CE:2.0")]
)
def test_a_term_is_a_name_with_or_without_a_weight(text, stored):
    assert weighted(str)(text) == stored and weighted(str)(stored) == stored


@pytest.mark.parametrize("text", ["CE:0", "CE:-1", "CE:nan", "CE:inf", "CE:", ":1", "1", "CE:x", "C E:1"])
def test_a_term_that_cannot_be_is_refused(text):
    with pytest.raises(ArgumentTypeError):
        weighted(one_of(("CE", "Dice")))(text)


# ---- arguments -------------------------------------------------------------------------------------------------------
WRONG = {
    "CE": [
        ({"reduction": "none"}, "no argument 'reduction'"), ({"weight": [1, 2]}, "10 weights"),
        ({"weight": "x"}, "cannot be made"), ({"weight": [-1] * 10}, "at least 0"),
        ({"ignore_index": 1.5}, "of type int"),
        ({"label_smoothing": 7}, "label_smoothing=7"), ({"label_smoothing": "x"}, "of type float"),
        ({"weigth": [1]}, "did you mean 'weight'"),
    ],
    "Focal": [({"gamma": "x"}, "of type float"), ({"gamma": -1}, "gamma=-1"), ({"alpha": 1}, "no argument 'alpha'")],
    "Brier": [({"reduction": "none"}, "no argument 'reduction'")],
    "CEDice": [({"ce_weight": -1}, "at least 0"), ({"ce_weight": 0, "dice_weight": 0}, "one above")],
    "PixelCE": [({"ce_weight": 0}, "no argument")],
    "Dice": [({"smooth": 0}, "smooth=0"), ({"smoth": 1}, "did you mean 'smooth'")],
    "BCE": [
        ({"reduction": "none"}, "must be mean"), ({"reduction": "sum"}, "must be mean"),
        ({"pos_weight": "x"}, "a list of numbers"), ({"weight": [[1], [1, 2]]}, "a list of numbers"),
    ],
    "LeastSquares": [({"reduction": "sum"}, "must be mean"), ({"size_average": False}, "must be mean")],
    "torch.nn:MultiMarginLoss": [({"reduction": "sum"}, "must be mean"), ({"p": 3}, "cannot be made")],
    "torch.nn:CrossEntropyLoss": [
        ({"label_smoothing": -1}, "from 0 to 1"), ({"weight": [1] * 9 + [2]}, "no mean over samples"),
    ],
    "os:getcwd": [({}, "makes no nn.Module")],
}  # fmt: skip


CASES_OF_ARGUMENTS = [(name, *each) for name, cases in WRONG.items() for each in cases]


@pytest.mark.parametrize(("loss_type", "loss_args", "words"), CASES_OF_ARGUMENTS)
@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_arguments_that_make_no_loss_to_train_with_are_refused(loss_type, loss_args, words):
    n_classes = 2 if LOSS_TYPES.get(loss_type) == "segmentation" else 10
    opt = Namespace(loss_type=loss_type, n_classes=n_classes, label_smoothing=0.0, loss_args=loss_args)
    with pytest.raises(UserError) as error:
        build_criterion(opt)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss_type", "arguments"),
    [
        ("CE", {"label_smoothing": 0.2}), ("CE", {"weight": [1, 2] * 5}), ("CE", {"ignore_index": 3}),
        ("Focal", {"gamma": 0}), ("BCE", {"pos_weight": 2}), ("BCE", {"pos_weight": [2.5]}), ("Dice", {"smooth": 20}),
        ("torch.nn:MultiMarginLoss", {"reduction": "mean"}), ("torch.nn:MultiMarginLoss", {"weight": [1, 2] * 5}),
        ("CEDice", {"ce_weight": 0.5}),
    ],
)  # fmt: skip
def test_arguments_that_fit_are_taken(loss_type, arguments):
    kind = LOSS_TYPES.get(loss_type, "classification")
    n_classes = 2 if kind == "segmentation" else 10
    logits, targets = batch(loss_type if loss_type in LOSS_TYPES else "CE", n_classes)
    loss = build(loss_type, n_classes, **arguments)(logits, targets)
    loss.backward()
    assert loss.shape == () and loss.isfinite() and logits.grad.any()


def test_the_arguments_of_several_losses_go_by_their_names():
    logits, masks = batch("Dice", 2)
    both = build(["PixelCE", "Dice:0.5"], 2, Dice={"smooth": 20})
    expected = build("PixelCE", 2)(logits, masks) + 0.5 * build("Dice", 2, smooth=20)(logits, masks)
    torch.testing.assert_close(both(logits, masks)["loss"], expected)
    assert not torch.isclose(build(["PixelCE", "Dice:0.5"], 2)(logits, masks)["loss"], expected)
    own = build(["CE", "torch.nn:MultiMarginLoss:2"], 10, MultiMarginLoss={"margin": 3.0})
    assert own.losses["MultiMarginLoss"].margin == 3.0
    assert build("Focal:2", 10, Focal={"gamma": 1.0}).losses["Focal"].gamma == 1.0


@pytest.mark.parametrize(
    ("loss_type", "arguments", "words"),
    [
        (["PixelCE", "Dice"], {"smooth": 1}, "no loss 'smooth'; there are PixelCE, Dice"),
        (["PixelCE", "Dice"], {"Dise": {"smooth": 1}}, "did you mean 'Dice'"),
        (["PixelCE", "Dice"], {"Dice": 3}, "give the arguments of Dice as"),
        (["PixelCE", "Dice"], {"Dice": {"smoth": 1}}, "--loss_args Dice: DiceLoss takes no argument 'smoth'"),
        (["PixelCE", "Dice"], {"Dice": {"smooth": "x"}}, "--loss_args Dice: smooth of DiceLoss is of type float"),
        ("Dice:2", {"smooth": 2}, "no loss 'smooth'"),
    ],
)  # fmt: skip
def test_arguments_of_several_losses_that_do_not_fit_are_named(loss_type, arguments, words):
    with pytest.raises(UserError) as error:
        build(loss_type, 2, **arguments)
    assert words in str(error.value)


def test_an_ignore_index_that_nobody_asked_for_stops_no_sum():
    both = ["torch.nn:CrossEntropyLoss", "Dice:0.5"]
    assert build(both, 2).ignore_index is None
    assert build([both[0], "torch.nn:NLLLoss"], 2).ignore_index == -100
    for asked in ({"CrossEntropyLoss": {"ignore_index": -100}}, {"Dice": {"ignore_index": 255}}):
        with pytest.raises(UserError, match="means over the same targets"):
            build(both, 2, **asked)
