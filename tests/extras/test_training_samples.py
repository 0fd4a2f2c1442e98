"""--sampler balanced and --drop_last: how often each class comes, and that processes and a resume change nothing."""

import pytest
import torch
from torch.utils.data import TensorDataset

from data.loader import UpdateLoader
from extras.class_weights import ignored_in
from extras.training_samples import BalancedOrder, TrainingSamples, classes_for_order
from tests.small_data import Numbered, SomeBad
from tests.small_tasks import StopAt
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

LABELS = torch.tensor([0] * 12 + [1] * 5 + [2])


def test_each_class_comes_equally_often_and_its_samples_too():
    order = BalancedOrder(LABELS)
    indices = order(seed=3, epoch=0)
    assert len(indices) == order.epoch_size == 18 and len(indices.unique()) == 18
    samples = indices % 18
    assert LABELS[samples].bincount().tolist() == [6, 6, 6]
    counts = samples.bincount(minlength=18)
    assert counts[:12].max() == 1 and sorted(counts[12:17].tolist()) == [1, 1, 1, 1, 2] and counts[17] == 6
    assert torch.equal(indices, BalancedOrder(LABELS)(3, 0)) and not torch.equal(indices, order(3, 1))


def test_a_frequent_class_takes_others_in_another_epoch():
    order = BalancedOrder(LABELS)
    seen = torch.cat([order(0, epoch) % 18 for epoch in range(20)]).unique()
    assert len(seen) == 18


def test_drop_last_ends_with_the_last_whole_batch():
    assert TrainingSamples(Numbered(18), batch_size=8).epoch_size == 16
    with pytest.raises(UserError, match="--drop_last leaves no update"):
        TrainingSamples(Numbered(7), batch_size=8)


def test_drop_last_leaves_out_the_update_that_is_short(build):
    loader = build("--drop_last").train_loader  # 510 samples
    assert [update.num_samples for update in loader.updates(0)] == [64] * 7
    assert loader.updates_per_epoch == 7 and loader.in_memory


FLAGS = ("--sampler", "balanced", "--drop_last", "--batch_size", 24, "--train_val_sample_rate", 100, "--n_epoch", 2)


def test_neither_processes_nor_a_resume_change_a_run(train, build, weights, differences):
    whole = weights(train(*FLAGS))  # three updates an epoch
    assert differences(whole, weights(train(*FLAGS, "--num_workers", 1))) == []
    first = train(*FLAGS, callbacks=[StopAt(4)])
    resumed = build("--resume", first.run_dir.path)
    resumed.train()
    assert differences(whole, weights(resumed)) == []


def test_data_without_classes_is_refused(build):
    with pytest.raises(UserError, match="needs the class of each sample"):
        build("--sampler", "balanced", task=TrainerSeg)


class OneBad(SomeBad):
    """Of whose two classes the second has one sample, which cannot be loaded."""

    def __init__(self):
        super().__init__(12, bad=[0])
        self.names = range(12)
        self.targets = [1] + [0] * 11


def test_a_bad_sample_that_comes_again_is_one():
    order = BalancedOrder(torch.tensor(OneBad().targets))
    samples = TrainingSamples(OneBad(), order=order)
    settings = {"num_workers": 0, "part": "train", "seed": 0}
    loader = UpdateLoader(samples, 4, 4, **settings, max_bad_samples=1)
    assert sum(sum(update.sizes) for update in loader.updates(0)) == 6  # of 12
    assert loader.bad.reasons.keys() == {0} and loader.bad.reasons[0].startswith("sample 0 of the train part: ")


def test_samples_that_the_loss_leaves_out_are_in_no_class(build):
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 4 + [-1] * 4)
    data = TensorDataset(torch.zeros(68, 1), labels)
    order = BalancedOrder(classes_for_order(data, ignored_in({"CE": {"ignore_index": 2}})))
    assert labels[order(0, 0) % 68].unique(return_counts=True)[1].tolist() == [30, 30] and order.epoch_size == 60
    with pytest.raises(UserError, match="all labels of this data are left out"):
        classes_for_order(TensorDataset(torch.zeros(4, 1), labels[-4:]))
    trainer = build(*FLAGS, "--class_weights", "balanced", "--set", "loss_args.ignore_index=3")
    assert 3 not in torch.cat([batch[1] for one in trainer.train_loader.updates(0) for batch in one.micro_batches])
    log = trainer.run_dir.log_path.read_text(encoding="utf-8")
    assert "weights of the classes in the loss" in log and "; --sampler balanced leaves out " in log
