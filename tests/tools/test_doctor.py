"""Healthy tasks pass, and each planted fault is found by the check that is there for it."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from eval_vanilla import EvaluatorVanilla
from extras.gan.trainer_gan import TrainerGAN
from tests.planted_faults import GlobalDraw, ModuleAttribute, TrainerAttribute
from tools.digest import digest
from tools.doctor import OK, PROBLEM, SKIPPED, diagnose, main, run_check
from tools.doctor_checks import CHECKS, Patient, find_leak
from tools.snapshot import Snapshot
from tools.task import parts_of
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla


class Wrapping(TrainerVanilla):
    """Vanilla with something around its network."""

    wrapper: type[nn.Module]

    def build_networks(self):
        return {"model": self.wrapper(super().build_networks()["model"])}


class Around(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)


# ---- faults ----------------------------------------------------------------------------------------------------------
class SumLoss(TrainerVanilla):
    def build_criterion(self):
        return nn.CrossEntropyLoss(reduction="sum")


class SquareRootOfMean(TrainerVanilla):
    """A loss that is no mean over samples."""

    def compute_loss(self, batch):
        return super().compute_loss(batch).sqrt()


class UnscaledInputs(TrainerVanilla):
    def compute_loss(self, batch):
        return super().compute_loss((batch[0] * 255, batch[1]))


class OtherLabels(TrainerVanilla):
    """Labels that do not belong to their images."""

    def compute_loss(self, batch):
        return super().compute_loss((batch[0], batch[1][torch.randperm(len(batch[1]))]))


class SteppedElsewhere(TrainerVanilla):
    """The optimizer has a copy of the weights, but for the last bias."""

    def build_optimizers(self):
        (optimizer,) = super().build_optimizers().values()
        for group in optimizer.param_groups:
            *others, last = group["params"]
            group["params"] = [*(p.detach().clone().requires_grad_() for p in others), last]
        return {"model": optimizer}


class Unused(Around):
    def __init__(self, network):
        super().__init__(network)
        self.head = nn.Linear(10, 10)


class Detached(Around):
    def __init__(self, network):
        super().__init__(network)
        self.head = nn.Linear(10, 10)

    def forward(self, images):
        return self.head(super().forward(images).detach())


class WrongView(Around):
    def forward(self, images):
        return super().forward(images.reshape(*images.shape[2:], -1).permute(2, 0, 1)[:, None])  # meant (H, W, N)


class MeanOfBatch(Around):
    def forward(self, images):
        return super().forward(images - images.mean())


class PlainTensor(Around):
    def __init__(self, network):
        super().__init__(network)
        self.scale = torch.ones(10)

    def forward(self, images):
        return super().forward(images) * self.scale


class LabelsFromOne(TrainerVanilla):
    def compute_loss(self, batch):
        return super().compute_loss((batch[0], batch[1] + 1))


class WrongShape(TrainerVanilla):
    def compute_loss(self, batch):
        return super().compute_loss((batch[0], batch[1][:, None]))


class Broadcast(TrainerVanilla):
    """Outputs (N, 1) and targets (N,) make a loss over N x N pairs."""

    def build_criterion(self):
        return nn.MSELoss()

    def compute_loss(self, batch):
        return self.criterion(self.model(batch[0])[:, :1], batch[1].float())


@dataclasses.dataclass
class Packed:
    images: torch.Tensor


class PacksBatch(TrainerVanilla):
    """A batch with an object that cannot be moved."""

    def build_loaders(self):
        train_loader, val_loader = super().build_loaders()
        updates = train_loader.updates

        def packing(*position):
            for update in updates(*position):
                packed = [(labels, Packed(images)) for images, labels in update.micro_batches]
                yield dataclasses.replace(update, micro_batches=packed)

        train_loader.updates = packing
        return train_loader, val_loader

    def compute_loss(self, batch):
        return super().compute_loss((batch[1].images, batch[0]))


class Normalized(Around):
    def __init__(self, network):
        super().__init__(network)
        self.bn = nn.BatchNorm1d(10)

    def forward(self, images):
        return self.bn(super().forward(images))


class WithFrozenStatistics(Wrapping):
    wrapper, has_moved = Normalized, False

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        type(self).has_moved |= bool(self.networks["model"].bn.running_mean.any())
        return loss


def wrapped_in(wrapper):
    return type(f"With{wrapper.__name__}", (Wrapping,), {"wrapper": wrapper})


class SomeIgnored(TrainerVanilla):
    """A mean over the labels that are not ignored, of which each micro-batch has another number."""

    def compute_loss(self, batch):
        labels = torch.where(batch[0][:, 0, 14, 14] < 0.2, -100, batch[1])
        return nn.functional.cross_entropy(self.model(batch[0]), labels, ignore_index=-100)


class Series(Dataset):
    """Series of several lengths, padded to the longest of a batch; the label is in the first value."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3 + index % 5, generator=generator), index % 10

    @staticmethod
    def collate_fn(samples):
        series, labels = zip(*samples, strict=True)
        return nn.utils.rnn.pad_sequence(series, batch_first=True), torch.tensor(labels)


class OverPadding(nn.Module):
    """Its last state is behind the padding, where there is some."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(1, 10, batch_first=True)

    def forward(self, series):
        return self.layer(series[..., None])[0][:, -1]


class RunsOverPadding(TrainerVanilla):
    def build_datasets(self):
        return {"train": Series(30), "val": Series(12)}

    def build_networks(self):
        return {"model": OverPadding()}


class MeanOfBatches(EvaluatorVanilla):
    """Each batch counts the same in the mean."""

    def eval_step(self, batch):
        super().eval_step(batch)
        self.meters["loss"].update(batch[1].float().max())


class WithMeanOfBatches(TrainerVanilla):
    evaluator_class = MeanOfBatches


FAULTS = [  # the task, the check that must find it, and words of what it says
    (SumLoss, "first loss", "expected 2.303"),
    (SumLoss, "micro-batches", "with micro-batches of 8, and"),
    (SquareRootOfMean, "micro-batches", "with 1: compute_loss must return the mean"),
    (SomeIgnored, "micro-batches", "not a quotient of sums over the batch"),
    (RunsOverPadding, "micro-batches", "does the network run over the padding?"),
    (RunsOverPadding, "evaluation", "does the network run over the padding?"),
    (WithMeanOfBatches, "evaluation", "a meter must count its samples"),
    (UnscaledInputs, "first loss", "are the inputs scaled"),
    (OtherLabels, "overfits", "do labels belong to inputs"),
    (SteppedElsewhere, "overfits", "does the optimizer step these weights"),
    (SteppedElsewhere, "gradients", "no optimizer has model.layers.0.weight, "),
    (wrapped_in(Unused), "gradients", "model.head.weight, model.head.bias: is the layer used"),
    (wrapped_in(Detached), "gradients", "for model.network.layers.0.weight"),
    (wrapped_in(WrongView), "samples apart", "leaks into the output of sample"),
    (wrapped_in(MeanOfBatch), "samples apart", "sample 1 leaks into the output of sample 0"),
    (GlobalDraw, "loader", "is_random = False"),
    (LabelsFromOne, "labels and shapes", "but with logits of 10 classes they must be from 0 to 9"),
    (WrongShape, "labels and shapes", "logits (8, 10) need targets (8,), which are (8, 1)"),
    (Broadcast, "labels and shapes", "outputs (8, 1) and targets (8,) differ in shape"),
    (PacksBatch, "data on the device", "[1] is of type Packed, which stays where it is"),
    (wrapped_in(PlainTensor), "data on the device", "model.scale is a plain attribute"),
    (TrainerAttribute, "checkpoint", "is in no state_dict"),
    (ModuleAttribute, "checkpoint", "is in no state_dict"),
]


def patient_of(trainer):
    return Patient(trainer, next(iter(trainer.train_loader.updates(0))), Snapshot(parts_of(trainer)))


@pytest.mark.parametrize(("task", "check", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_found(build, task, check, words):
    outcome, text = run_check(check, patient_of(build(task=task)))
    assert outcome == PROBLEM and words in text, (outcome, text)


def test_a_healthy_task_is_well_and_left_as_it_was(build):
    trainer = build("--warmup_epoch", "1")
    before = digest(trainer.state_dict())
    found = diagnose(trainer)
    assert {name: outcome for name, (outcome, _) in found.items()} == dict.fromkeys(CHECKS, OK), found
    assert digest(trainer.state_dict()) == before


DEEP = ("--augment", "--model_type", "UNetpp", "--deep_supervision")


@pytest.mark.parametrize("flags", [("--model_type", "UNet"), DEEP])
def test_segmentation_is_well(build, flags):
    found = diagnose(build(*flags, task=TrainerSeg))
    outcomes = {name: outcome for name, (outcome, _) in found.items()}
    assert outcomes == dict.fromkeys(CHECKS, OK) | {"first loss": SKIPPED}, found


def test_two_networks_with_a_loss_each_are_well(build):
    found = diagnose(build(task=TrainerGAN))
    outcomes = {name: outcome for name, (outcome, _) in found.items()}
    assert outcomes == dict.fromkeys(CHECKS, OK) | {"first loss": SKIPPED, "overfits": SKIPPED}, found


def test_frozen_batch_normalization_keeps_its_statistics(build):
    trainer = build("--freeze", "bn.*", task=WithFrozenStatistics)
    found = diagnose(trainer)
    assert {name: outcome for name, (outcome, _) in found.items()} == dict.fromkeys(CHECKS, OK), found
    assert not WithFrozenStatistics.has_moved


def test_what_the_first_loss_should_be_can_be_said(build):
    class Told(SumLoss):
        def expected_first_loss(self):
            return self.opt.batch_size * math.log(10)

    class Silent(SumLoss):
        expected_first_loss = None

    assert run_check("first loss", patient_of(build(task=Told)))[0] == OK
    assert run_check("first loss", patient_of(build(task=Silent))) == (SKIPPED, "the task expects no value")


def test_whole_numbers_leak_too():
    inputs = torch.arange(6).reshape(3, 2)
    embedding = nn.Embedding(6, 4)
    assert find_leak(lambda tokens: [embedding(tokens).mean(dim=1)], inputs) == ""
    assert "sample 0" in find_leak(lambda tokens: [embedding(tokens).cumsum(dim=0).mean(dim=1)], inputs)


def test_an_error_of_the_task_is_a_problem(build):
    class Broken(TrainerVanilla):
        def compute_loss(self, batch):
            raise RuntimeError("sizes do not match")

    found = diagnose(build(task=Broken))
    assert found["first loss"] == (SKIPPED, "labels and shapes must fit first")
    assert found["labels and shapes"] == (PROBLEM, "RuntimeError: sizes do not match")


def test_the_program_looks_at_a_task_or_a_run_and_leaves_nothing(small, tmp_path, capsys, vanilla_run, contents):
    flags = [*small(TrainerVanilla), "--seed", "0", "--output_dir", str(tmp_path / "runs"), "--nproc", "2"]
    main(["trainer_vanilla.py", *flags])
    assert "No problems found." in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["tests.tools.test_doctor:LabelsFromOne", *flags])
    assert end.value.code == 1 and "1 problem found." in capsys.readouterr().out
    before = contents(vanilla_run)
    with pytest.raises(SystemExit):
        main(["trainer_vanilla.py", "--resume", str(vanilla_run)])
    assert "problem  first loss" in capsys.readouterr().out  # it has learned
    assert contents(vanilla_run) == before and not (tmp_path / "runs").exists()
