"""A loss that is a mean over what is not ignored: no size of the pieces changes it, in training or in validation."""

from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from callbacks.callback import Callback
from extras.functional import fit
from extras.in_order import InOrder
from extras.weighted_sum import WeightedSum
from loss.classification_loss import CrossEntropyLoss
from loss.dice_loss import PixelCELoss
from loss.terms import counter, loss_meters, update_losses
from tests.processes import in_processes
from tests.small_tasks import EvaluatorSmall64, TrainerSmall64, largest_difference, rows_of, weights_of
from tests.small_tasks import build as build_small
from tests.small_tasks import train as train_small
from utils.errors import UserError
from utils.metrics import Accuracy

IGNORED = 1
FLAGS = ("--loss_args", f'{{"ignore_index": {IGNORED}}}', "--batch_size", 8, "--log_every", 1, "--clip", 1e9)


class Values(Callback):
    """Keeps the loss and the gradient norm of each update."""

    def __init__(self):
        self.values = []

    def on_log(self, trainer, values) -> None:
        self.values += [values["loss"], values["grad_norm"]]


def trained(output_dir, *flags) -> list[float]:
    """Return the values of two epochs of training, and the loss of the validation."""
    watching = Values()
    flags = [*FLAGS, "--n_epoch", 2, "--max_updates", 22, *flags]
    trainer = train_small(TrainerSmall64, flags, output_dir, [watching])
    (row, *_) = rows_of(trainer.run_dir.path)
    return [*watching.values, trainer.score["results"]["loss"], float(row["train/loss"])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[float]:
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_value_is_that_of_plain_torch(whole, tmp_path):
    trainer = build_small(TrainerSmall64, FLAGS, tmp_path)
    update = next(trainer.train_loader.updates(0))
    ((images, labels),) = update.micro_batches
    assert 0 < sum(update.amounts) == (labels != IGNORED).sum() < 8
    loss = F.cross_entropy(trainer.model(images.double()), labels, ignore_index=IGNORED, label_smoothing=0.1)
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
    assert whole[:2] == pytest.approx([loss.item(), norm.item()], rel=1e-12)


@pytest.mark.parametrize("size", [3, 1])
def test_the_size_of_micro_batches_changes_nothing(whole, size, tmp_path):
    assert trained(tmp_path, "--micro_batch_size", size, "--eval_batch_size", size) == pytest.approx(whole, rel=1e-9)


def in_two(output_dir) -> list[float]:
    return trained(output_dir, "--micro_batch_size", 3)


def test_two_processes_are_as_one(whole, tmp_path):
    first, _ = in_processes(2, in_two, tmp_path)
    assert first == pytest.approx(whole, rel=1e-9)


class Tokens(nn.Module):
    """A network whose forward is its loss, the mean over tokens that are not padding."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.layer(inputs).movedim(-1, 1), labels)


def test_fit_takes_a_count(tmp_path):
    torch.manual_seed(0)
    inputs, labels = torch.randn(12, 5, 4, dtype=torch.float64), torch.randint(3, (12, 5))
    labels[torch.arange(5) >= torch.randint(1, 6, (12, 1))] = -100
    labels[3] = -100  # alone in a piece, it has no loss
    data = TensorDataset(inputs, labels)
    found = []
    for batch_size, accumulate in ((12, 1), (5, 3), (1, 12)):
        torch.manual_seed(1)
        model = Tokens()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = fit(
            model, optimizer, None, data, batch_size, accumulate=accumulate, num_epochs=3, val_dataset=data, seed=0,
            count=lambda batch: (batch[1] != -100).sum(), logger="none", gpu_devices="cpu", eval_batch_size=batch_size,
            output_dir=tmp_path,
        )  # fmt: skip
        found.append([run.score["results"]["loss"], *model.layer.weight.flatten().tolist()])
    torch.manual_seed(1)
    plain = Tokens()
    for _ in range(3):
        plain.zero_grad()
        plain(inputs, labels).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
    expected = [plain(inputs, labels).item(), *plain.layer.weight.flatten().tolist()]
    for values in found:
        assert values == pytest.approx(expected, rel=1e-12)


class Masked(nn.Module):
    """A network whose loss is 0 / 0 where a mask leaves nothing, so that its gradients are NaN."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.layer.weight)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.layer(inputs).squeeze(1) ** 2 * mask).sum() / mask.sum()


def masked_weights(output_dir, *sizes) -> list[list[float]]:
    """Return the weights after two updates, for each (batch_size, accumulate)."""
    inputs = torch.linspace(-1, 2, 32, dtype=torch.float64).view(8, 4)
    data = InOrder(TensorDataset(inputs, torch.arange(8) >= 4))  # nothing counts in the first half
    found = []
    for batch_size, accumulate in sizes:
        model = Masked()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(
            model, optimizer, None, data, batch_size, accumulate=accumulate, num_epochs=2, seed=0, logger="none",
            count=lambda batch: batch[1].sum(), gpu_devices="cpu", output_dir=output_dir,
        )  # fmt: skip
        found.append(model.layer.weight.flatten().tolist())
    return found


def test_a_piece_in_which_nothing_counts_leaves_the_gradients_alone(tmp_path):
    whole, pieces = masked_weights(tmp_path, (8, 1), (4, 2))
    assert pieces == pytest.approx(whole, rel=1e-12) and whole != [1.0] * 4


# ---- a process in which nothing counts -------------------------------------------------------------------------------
class SumOfAll(torch.autograd.Function):
    """The sum over processes; so is its gradient."""

    @staticmethod
    def forward(context, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total

    backward = forward


class Centred(nn.Module):
    """Subtracts the mean over the samples of all processes, as a synchronised batch normalization does."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        count = SumOfAll.apply(torch.tensor(float(len(features))))
        return features - SumOfAll.apply(features.sum(dim=0)) / count


class EvaluatorMasked(EvaluatorSmall64):
    """Counts the samples of the first three classes."""

    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        first, second = nn.Linear(28 * 28, 8), nn.Linear(8, 10)
        return {"model": nn.Sequential(nn.Flatten(), first, Centred(), nn.Tanh(), second).double()}

    def loss_counter(self):
        return lambda batch: (batch[1] < 3).sum()


class TrainerMasked(TrainerSmall64):
    """Its loss is 0 / 0 where no sample counts, and so are its gradients."""

    evaluator_class = EvaluatorMasked

    def compute_loss(self, batch) -> torch.Tensor:
        images, labels = batch
        counts = labels < 3
        terms = F.cross_entropy(self.model(images.double()), labels, reduction="none")
        return (terms / counts.sum() * counts).sum()


MASKED = (
    *("--train_val_sample_rate", 45, "--val_split", 5, "--batch_size", 4, "--n_epoch", 2, "--val_every", 0),
    *("--optim", "sgd", "--lr", 0.1, "--momentum", 0, "--weight_decay", 0, "--lr_scheduler", "constant"),
)


def masked_run(output_dir, mode: str) -> dict[str, torch.Tensor]:
    return weights_of(train_small(TrainerMasked, (*MASKED, "--parallel", mode), output_dir / mode))


@pytest.fixture(scope="module")
def masked_alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of one process; in some updates nothing counts, in others not for some of the samples."""
    return masked_run(tmp_path_factory.mktemp("alone"), "none")


def test_one_process_with_a_mask_learns_what_plain_torch_does(masked_alone, tmp_path):
    trainer = build_small(TrainerMasked, MASKED, tmp_path)
    (network,) = trainer.networks.values()
    counted = []
    for update in chain.from_iterable(map(trainer.train_loader.updates, range(2))):
        ((images, labels),) = update.micro_batches
        is_counted = labels < 3
        counted.append(int(is_counted.sum()))
        if counted[-1]:
            network.zero_grad()
            F.cross_entropy(network(images.double())[is_counted], labels[is_counted]).backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.1 * parameter.grad
    assert largest_difference(masked_alone, network.state_dict()) < 1e-12
    assert len(counted) == 20 and 0 in counted and max(counted) > 1


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_process_in_which_nothing_counts_leaves_the_gradients_of_the_others(masked_alone, mode, tmp_path):
    first, second = in_processes(2, masked_run, tmp_path, mode)
    assert largest_difference(first, second) == 0
    assert largest_difference(first, masked_alone) < 1e-12


def test_losses_say_what_they_count():
    batch = torch.zeros(4), torch.tensor([1, 2, 2, -100])
    assert counter(CrossEntropyLoss(3)) is counter(PixelCELoss(3, ignore_index=255)) is None  # samples
    assert counter(CrossEntropyLoss(3, ignore_index=2))(batch) == 2
    assert counter(nn.CrossEntropyLoss())(batch) == 3
    both = {"a": CrossEntropyLoss(3, ignore_index=2), "b": nn.CrossEntropyLoss(ignore_index=2)}
    assert counter(WeightedSum(both, {"a": 1.0, "b": 1.0}))(batch) == 2
    both["b"] = nn.CrossEntropyLoss()
    with pytest.raises(UserError, match="means over the same targets"):
        WeightedSum(both, {"a": 1.0, "b": 1.0})


class OfLists(nn.Module):
    """A loss that counts targets in a list."""

    def count(self, targets) -> int:
        return sum(map(len, targets))


class Counts(nn.Module):
    count = 3  # no method


def test_batches_of_another_form_are_counted_in_samples():
    images, labels = torch.zeros(2, 1), torch.tensor([156, 1], dtype=torch.uint8)
    for batch in ({"x": images, "y": labels}, (images, [labels[:1], labels[1:]]), images, (images,)):
        assert counter(nn.CrossEntropyLoss())(batch) is None
    assert counter(nn.CrossEntropyLoss())([images, labels]) == 2  # 156 is -100 in 8 bits
    assert counter(OfLists())((images, [labels, labels])) == 4 and counter(OfLists())({"x": images}) is None
    assert counter(Counts()) is None


def test_samples_weigh_a_batch_that_the_loss_does_not_count(tmp_path):
    trainer = build_small(TrainerSmall64, FLAGS, tmp_path)
    trainer.train_loader.count = counter(nn.CrossEntropyLoss())
    assert sum(next(trainer.train_loader.updates(0)).counts) == 8
    trainer.train_loader.count = lambda batch: None
    assert sum(next(trainer.train_loader.updates(0)).counts) == 8
    trainer.evaluator.loss_counter = lambda: lambda batch: None
    counts = []
    trainer.evaluator.eval_step = lambda batch: counts.append(trainer.evaluator.loss_count)
    trainer.evaluator.evaluate(trainer.val_loader)
    assert sum(counts) == trainer.val_loader.num_samples


def test_terms_that_have_no_meter_are_passed_over():
    meters = loss_meters(nn.CrossEntropyLoss()) | {"accuracy": Accuracy()}
    update_losses(meters, {"loss": torch.tensor(2.0), "aux": torch.tensor(1.0), "accuracy": torch.tensor(0.5)}, n=4)
    assert meters["loss"].compute() == 2 and list(meters) == ["loss", "accuracy"]
