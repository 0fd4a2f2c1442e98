"""Averages are those of torch's AveragedModel, bit for bit; what is measured and saved is them, what is trained is not;
and no update that was refused is in them."""

import copy
import csv

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint, weights_of
from eval_vanilla import EvaluatorVanilla
from extras.averaging import Averaging
from extras.buffers import buffers_kept
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

OF_THE_LAUNCH = ("options", "callbacks", "seconds")


class WithNorm(TrainerVanilla):
    """Vanilla with batch normalization and dropout at its end; it can be stopped, or made to diverge, anywhere."""

    stop_in_validation_of = None  # (epoch, how many questions whether to stop come before)
    bad_updates = ()

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(network, nn.Dropout(0.2), nn.BatchNorm1d(10))}

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        return loss * float("nan") if self.progress.update + 1 in self.bad_updates else loss

    def __init__(self, opt):
        super().__init__(opt)
        should_stop = self.session.should_stop
        questions = 0

        def stop(at_once=False):
            nonlocal questions
            if at_once and self.stop_in_validation_of and self.progress.epoch == self.stop_in_validation_of[0]:
                questions += 1
                if questions > self.stop_in_validation_of[1]:
                    raise KeyboardInterrupt
            return should_stop(at_once)

        self.session.should_stop = stop


class Recorder(Callback):
    """Averages beside the run as torch does it: what `kind` says, with and without the buffers."""

    def __init__(self, decay=None):
        self.decay, self.models = decay, []
        self.with_buffers = (False, True) if decay is not None else (False,)

    def on_train_start(self, trainer):
        average = get_swa_multi_avg_fn() if self.decay is None else get_ema_multi_avg_fn(self.decay)
        self.models = [AveragedModel(trainer.model, multi_avg_fn=average, use_buffers=b) for b in self.with_buffers]

    def on_update_end(self, trainer, values):
        if self.decay is not None and values:
            self.add(trainer)

    def add(self, trainer):
        for model in self.models:
            model.update_parameters(trainer.model)


def averages_of(trainer) -> dict:
    return trainer.averaging.state_dict()["networks"]["model"]


def differ(averages: dict, network: nn.Module) -> list[str]:
    """The names whose values are not equal, bit for bit."""
    return [name for name, value in network.state_dict().items() if not torch.equal(value, averages[name])]


# ---- the averages ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_exponential_average_is_that_of_torch_statistics_included(train, decay):
    recorder = Recorder(decay)
    trainer = train("--ema", decay, "--optim", "sgd", task=WithNorm, callbacks=[recorder])
    without_buffers, with_buffers = (model.module for model in recorder.models)
    assert trainer.averaging.num_averaged == 16 == recorder.models[0].n_averaged
    wrong = differ(averages_of(trainer), without_buffers)
    assert wrong == ([] if decay == 0 else ["2.running_mean", "2.running_var"])
    assert differ(averages_of(trainer), with_buffers) in ([], ["2.num_batches_tracked"])  # torch rounds that one
    assert int(averages_of(trainer)["2.num_batches_tracked"]) == 16
    if decay:
        assert differ(averages_of(trainer), trainer.model)


def test_only_statistics_and_weights_are_averaged():
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    network.register_buffer("passing", torch.zeros(1), persistent=False)
    network.twin = nn.Linear(2, 2)
    network.twin.weight = network.weight
    network.hidden = nn.Parameter(torch.tensor([0.0, float("-inf")]), requires_grad=False)
    averaging = Averaging({"model": network}, decay=0.5)
    for _ in range(3):
        with torch.no_grad():
            network.weight += 1
        averaging.finish_update()
    averages = averaging.state_dict()["networks"]["model"]
    assert averages.keys() == network.state_dict().keys() - {"mask"}
    assert averages["hidden"].tolist() == [0.0, float("-inf")] and averages["twin.weight"] is averages["weight"]


def test_buffers_that_are_no_statistics_may_be_anything_and_stay_the_networks_own():
    """NaN, sparse, expanded, of another size in each update: torch trains them all."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for name, buffer in (
        ("nan", torch.tensor([float("nan")])), ("sparse", torch.eye(2).to_sparse()),
        ("expanded", torch.zeros(1).expand(3)), ("bank", torch.zeros(0, 2)),
    ):  # fmt: skip
        network.register_buffer(name, buffer)
    average = Averaging({"model": network}, decay=0.5)
    for _ in range(2):
        network.bank = torch.cat([network.bank, torch.ones(1, 2)])
        average.finish_update()
        with average.applied():
            assert len(network.bank) == average.num_averaged
        average.load_state_dict(copy.deepcopy(average.state_dict()))


def test_in_the_block_the_network_has_the_averages_and_afterwards_its_own_without_a_trace():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaging = Averaging({"model": network}, decay=0.5)
    with averaging.applied():  # nothing is averaged yet
        pass
    averaging.finish_update()
    first = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight += 1
    own = copy.deepcopy(network.state_dict())
    versions = [(t.data_ptr(), t._version) for t in (*network.parameters(), *network.buffers())]
    with pytest.raises(KeyboardInterrupt), averaging.applied():
        assert torch.equal(network[0].weight, first)
        with averaging.applied():
            assert torch.equal(network[0].weight, first)
        network[1].running_mean = network[1].running_mean + 1  # another tensor in its place
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    assert [(t.data_ptr(), t._version) for t in (*network.parameters(), *network.buffers())] == versions


# ---- what was refused is not in them ---------------------------------------------------------------------------------
def test_an_update_that_is_skipped_does_not_move_the_average(train):
    class Sick(WithNorm):
        bad_updates = (3, 9)

    recorder = Recorder(0.9)
    trainer = train("--ema", 0.9, "--nan_policy", "skip", task=Sick, callbacks=[recorder])
    assert trainer.averaging.num_averaged == 14 and trainer.guard.num_skipped == 2
    assert differ(averages_of(trainer), recorder.models[0].module) == ["2.running_mean", "2.running_var"]


def test_an_update_whose_step_float16_left_out_does_not_move_the_average(build):
    trainer = build("--ema", 0.9)
    update = next(iter(trainer.train_loader.updates(0)))
    for overflowed in (True, False):
        trainer.precision.overflowed = overflowed
        trainer.guarded_step(update)
        assert trainer.averaging.num_averaged == (not overflowed)


# ---- resume ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [("--ema", 0.9), ("--swa_start", 1)], ids=lambda flags: flags[0])
@pytest.mark.parametrize("place", ["in an epoch", "in its validation"])
def test_a_resumed_run_has_the_same_averages(train, build, differences, flags, place):
    class Stopped(WithNorm):
        stop_in_validation_of = (1, 3)  # of the eight updates of the statistics; without these, in the validation

    class Stops(Callback):
        def on_update_end(self, trainer, values):
            if trainer.progress.update == 11:
                raise KeyboardInterrupt

    flags = (*flags, "--eval_batch_size", 10)
    whole = train(*flags, task=WithNorm)
    in_epoch = place == "in an epoch"
    broken = build(*flags, task=WithNorm if in_epoch else Stopped, callbacks=[Stops()] if in_epoch else ())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    state = load_checkpoint(broken.checkpointer.path("InT"))
    assert state["progress"]["is_exact"] and state["progress"]["update"] == (11 if in_epoch else 16)
    torch.manual_seed(99)
    resumed = train("--resume", broken.run_dir.path, task=WithNorm)
    ends = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert ends[0]["averaging"]["num_averaged"] == (16 if "--ema" in flags else 2)
    assert differences(*ends, OF_THE_LAUNCH) == []


def test_a_state_that_does_not_fit_is_refused(build, train):
    trainer = train("--ema", 0.9, "--n_epoch", 1)
    good = trainer.averaging.state_dict()
    with pytest.raises(KeyError):
        trainer.averaging.load_state_dict(good | {"networks": {"model": {"weight": torch.zeros(1)}}})
    weights = good["networks"]["model"] | {"layers.0.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"the average of layers.0.bias is \(3,\), not"):
        trainer.averaging.load_state_dict(good | {"networks": {"model": weights}})
    state = load_checkpoint(trainer.checkpointer.path("last"))
    del state["averaging"]
    with pytest.raises(UserError, match="The averaging of the checkpoint"):
        build("--ema", 0.9).load_state_dict(state)


# ---- what is measured ------------------------------------------------------------------------------------------------
def test_the_average_is_measured_and_evaluated_unless_the_last_weights_are_asked_for(train, tmp_path):
    trainer = train("--ema", 0.95, callbacks=None)  # with pictures, which are of the average, too
    path = trainer.checkpointer.path("last")
    state = load_checkpoint(path)
    assert differ(weights_of(state, True)["model"], trainer.model) == list(trainer.model.state_dict())
    assert differ(weights_of(state, False)["model"], trainer.model) == []
    asked = ["--model_path", str(path), "--split", "val", "--no-viz", "--save_path", str(tmp_path / "test")]
    results, logs = [], []
    for flags in ([], ["--no-use_average"]):
        evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options([*asked, *flags]))
        results.append(float(evaluator.meters["loss"].compute()))
        logs.append((evaluator.output_dir / "eval_log.txt").read_text())
    assert results[0] == pytest.approx(trainer.score["results"]["loss"]) and results[0] != pytest.approx(results[1])
    assert "The score agrees" in logs[0] and "that of the averaged weights" in logs[1]


def test_padding_leaves_no_statistics():
    network = nn.BatchNorm1d(2)
    with buffers_kept([network]):
        network(torch.rand(4, 2))
    assert not network.num_batches_tracked and not network.running_mean.any()


def test_switched_off_it_leaves_nothing_in_a_checkpoint(train):
    trainer = train("--n_epoch", 1)
    assert "averaging" not in load_checkpoint(trainer.checkpointer.path("last"))
    assert trainer.averaging is None


def test_damaged_averages_of_a_checkpoint_are_told(train):
    for averaging in ({}, [], {"num_averaged": 1, "networks": {"model": 3}}):
        with pytest.raises(UserError, match="--no-use_average"):
            weights_of({"networks": {"model": {}}, "averaging": averaging})


# ---- several processes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("average", [("--ema", 0.9), ("--swa_start", 1)], ids=lambda flags: flags[0])
def test_networks_that_are_cut_up_have_the_same_averages_and_what_is_frozen_stays(command, tmp_path, average):
    flags = ("--train_val_sample_rate", 600, "--batch_size", 64, "--n_epoch", 2, "--seed", 0, "--gpu_devices", "cpu",
             "--freeze", "layers.0.*", "--param_lr", "layers.2.*=0.1x", "--no_decay", "bias", *average)  # fmt: skip
    rows, states = [], []
    for way in ((), ("--nproc", 2, "--parallel", "fsdp", "--checkpoint_format", "sharded")):
        directory = tmp_path / str(len(rows))
        done = command("trainer_vanilla.py", *flags, *way, "--output_dir", directory)
        assert done.returncode == 0, done.stderr
        (run_dir,) = directory.iterdir()
        with open(run_dir / "metrics.csv", newline="") as file:
            rows.append([float(row[name]) for row in csv.DictReader(file) for name in ("train/loss", "val/loss")])
        states.append(load_checkpoint(run_dir / "Vanilla_last_ckpt.pth"))
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    for kind in (True, False):
        one, two = (weights_of(state, kind)["model"] for state in states)
        assert torch.equal(one["layers.0.weight"], two["layers.0.weight"])
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


CUT_UP = """
import sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import extras.averaging

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(2, 2), nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, inputs):
        return self.layer(inputs) * self.scale  # what is the network's own stays fetched after a forward pass

def main(rank):
    torch.set_num_threads(1)  # replaces the thread pool of before the fork; two threads at once would fail to
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    network, inputs, mesh = Scaled(), torch.ones(1, 2), init_device_mesh("cpu", (2,))
    fully_shard(network.layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    averaging = extras.averaging.Averaging({"model": network}, decay=0.5)
    averaging.finish_update()
    first = network(inputs).detach()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    (network(inputs) * torch.tensor([1.0, 3.0])).sum().backward()
    optimizer.step()
    if sys.argv[2] == "fault":
        extras.averaging.reshard = lambda networks: None
    with torch.no_grad():
        own = network(inputs)
        with averaging.applied():
            averaged = network(inputs)
        if rank == 0:
            print(torch.allclose(averaged, first), torch.equal(own, network(inputs)), torch.allclose(own, first))
        else:
            network(inputs)
    dist.destroy_process_group()

mp.start_processes(main, nprocs=2, start_method="fork")
"""


@pytest.mark.parametrize(("kind", "told"), [("good", "True True False"), ("fault", "False True False")])
def test_a_network_that_is_cut_up_forgets_what_it_has_fetched_of_other_weights(command, tmp_path, kind, told):
    done = command("-c", CUT_UP, tmp_path / "store", kind)
    assert done.stdout.strip() == told, done.stderr
