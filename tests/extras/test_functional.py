"""`fit` and `find_lr`: a module that returns its own loss, trained by the loop of the template."""

import math
import os
import random
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset, Subset, TensorDataset

from callbacks.callback import Callback
from data.FashionMNIST import build_fashion_mnist_sample
from engine.checkpoints.file import FORMAT, load_checkpoint, save_checkpoint
from engine.progress import Progress
from engine.runs.signals import GRACE
from extras.functional import OPTIONS, Algorithms, find_lr, fit, param_groups
from model.vanilla_model import VanillaModel
from tests.processes import free_port, in_processes
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

QUIET = {"logger": "none", "gpu_devices": "cpu"}


class Classifier(nn.Module):
    """A small network whose forward is its loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.seen = 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.seen = max(self.seen, len(inputs))
        return cross_entropy(self.layers(inputs), labels)


class Failing(Callback):
    """Raises after an update, as a crash would."""

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values) -> None:
        if trainer.progress.update == self.update:
            raise RuntimeError("planted")


def points(count: int = 103) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))


def parts(seed: int = 0, lr: float = 1e-2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Classifier()
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


@pytest.fixture
def settings(tmp_path) -> dict:
    return {**QUIET, "output_dir": tmp_path / "runs", "seed": 0}


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# ---- what it computes ------------------------------------------------------------------------------------------------
class VanillaWithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = VanillaModel()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.network(images), labels, label_smoothing=0.1)


def test_fit_gives_the_weights_of_the_task_bit_for_bit(settings, tmp_path):
    flags = ["--seed=0", "--n_epoch=2", "--limit_batches=20", "--lr_scheduler=constant", "--gpu_devices=cpu"]
    trainer = TrainerVanilla(TrainerVanilla.parse_options([*flags, f"--output_dir={tmp_path}", "--logger", "none"]))
    trainer.train()
    torch.manual_seed(0)
    model = VanillaWithLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    fit(model, optimizer, None, build_fashion_mnist_sample()["train"], 32, num_epochs=2, limit_batches=20, **settings)
    assert torch.equal(weights(model), weights(trainer.model))


def test_accumulated_batches_make_the_update_of_one_large_batch(settings):
    models = []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        model, optimizer = parts()
        run = fit(model, optimizer, None, points(), batch_size, num_epochs=2, accumulate=accumulate, **settings)
        assert (run.progress.update, model.seen) == (8, batch_size)
        models.append(weights(model))
    assert torch.allclose(*models, atol=1e-6)
    model, optimizer = parts()
    fit(model, optimizer, None, points(), 8, num_epochs=2, **settings)
    assert not torch.allclose(models[0], weights(model), atol=1e-3)  # what updates of 8 would give


class Graphs(Dataset):
    """Ten graphs with the losses 0 to 9. The first tensor of a batch has two rows, whatever the number of graphs."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index

    @staticmethod
    def collate_fn(indices: list[int]) -> dict:
        return {"edges": torch.zeros(2, 3 * len(indices)), "losses": [torch.tensor(float(index)) for index in indices]}


class LossOfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, edges, losses):
        return torch.stack(losses).mean() + self.shift


@pytest.mark.parametrize("accumulate", [1, 2])
def test_means_are_over_samples_whatever_a_batch_looks_like(settings, accumulate):
    rows = []
    model = LossOfGraphs()
    how = {"num_epochs": 1, "accumulate": accumulate, "on_epoch_end": lambda trainer, row: rows.append(row)}
    fit(model, torch.optim.SGD(model.parameters(), 0), None, Graphs(), 4, val_dataset=Graphs(), **how, **settings)
    assert rows[0]["train/loss"] == pytest.approx(4.5) and rows[0]["val/loss"] == pytest.approx(4.5)
    assert rows[0]["train/grad_norm"] == pytest.approx(1)


@pytest.mark.parametrize("per_update", [True, False])
def test_the_scheduler_is_stepped_after_each_update_or_epoch(settings, per_update):
    model, optimizer = parts()
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    fit(model, optimizer, scheduler, points(), 32, num_epochs=2, schedule_per_update=per_update, **settings)
    assert optimizer.param_groups[0]["lr"] == 1e-2 * 0.5 ** (8 if per_update else 2)


def test_a_number_of_updates_ends_in_the_middle_of_an_epoch(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 16, num_updates=10, **settings)
    assert run.progress == Progress(epoch=2, update=10)
    assert load_checkpoint(run.checkpointer.path("last"))["progress"]["update"] == 10


def test_an_average_over_epochs_measures_its_statistics_anew(settings):
    class Normalized(Classifier):
        def __init__(self):
            super().__init__()
            self.layers.insert(1, nn.BatchNorm1d(16))

    model = Normalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = fit(model, optimizer, None, points(), 16, num_epochs=2, swa_start=2, **settings)
    averages = run.averaging.state_dict()["networks"]["model"]
    assert torch.equal(averages["layers.0.weight"], model.layers[0].weight)  # of one epoch
    assert not torch.equal(averages["layers.1.running_mean"], model.layers[1].running_mean)


def test_a_frozen_layer_stays_in_eval_mode(settings):
    class Normalized(Classifier):
        def __init__(self):
            super().__init__()
            self.layers.insert(1, nn.BatchNorm1d(16))

    model = Normalized()
    norm = model.layers[1].requires_grad_(False).eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(2):
        fit(model, torch.optim.SGD(trained, 0.1), None, points(), 16, num_epochs=1, val_dataset=points(8), **settings)
    assert not norm.training and model.layers[0].training
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_the_modes_of_the_modules_are_as_before_and_not_in_the_training(settings):
    class Noted(Classifier):
        def forward(self, inputs, labels):
            modes.append((self.training, self.layers.training))
            return super().forward(inputs, labels)

    for is_training in (True, False):  # some libraries return networks in eval mode
        modes = []
        model = Noted().train(is_training)
        fit(model, torch.optim.SGD(model.parameters(), 0.1), None, points(), 64, num_epochs=1, **settings)
        assert modes == [(True, True)] * 2
        assert {module.training for module in model.modules()} == {is_training}


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_settings_of_torch_and_the_random_generators_are_left_alone(settings, deterministic, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def look(trainer, values):
        seen.append(Algorithms.now())

    how = {"num_updates": 1, "on_update_end": look, **settings, **({"deterministic": True} if deterministic else {})}
    try:
        for chosen in (Algorithms(True, True, True, False), Algorithms(False, False, True, False), Algorithms()):
            chosen.apply()
            made = parts()
            before = (torch.get_rng_state().tolist(), random.getstate())
            fit(*made, None, points(), 16, **how)
            assert Algorithms.now() == chosen and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
            assert (torch.get_rng_state().tolist(), random.getstate()) == before
            set_to = seen.pop()
            if deterministic:
                assert set_to.are_deterministic and set_to[2:] == (True, False)
            else:
                assert set_to == (Algorithms(is_cudnn_measured=True) if chosen == Algorithms() else chosen)
    finally:
        Algorithms().apply()


def test_a_model_that_recomputes_its_activations_may_be_trained_again(settings):
    models = []
    for recompute in (True, False):
        model, optimizer = parts()
        for _ in range(2):
            fit(model, optimizer, None, points(), 16, num_epochs=1, activation_checkpointing=recompute, **settings)
        models.append(weights(model))
    assert torch.equal(*models)


def test_shuffle_false_takes_the_samples_in_their_order(settings):
    class Noted(Dataset):
        is_random = False
        in_memory = True  # would be loaded without a DataLoader, always shuffled
        num_bytes, device = 0, torch.device("cpu")
        seen: list[int] = []

        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.seen.append(index)
            return torch.zeros(8), torch.tensor(0)

    model, optimizer = parts()
    fit(model, optimizer, None, Noted(), 3, num_epochs=2, shuffle=False, **settings)
    assert Noted.seen == [*range(7), *range(7)]


def test_batches_may_be_dictionaries_and_losses_may_be_in_one(settings):
    class Dictionaries(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict:
            return {"inputs": torch.ones(8) * index, "labels": torch.tensor(index % 3)}

    class Wrapping(Classifier):
        def forward(self, labels, inputs):
            return {"loss": super().forward(inputs, labels), "other": None}

    torch.manual_seed(0)
    model = Wrapping()
    before = weights(model)
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), None, Dictionaries(), 4, num_epochs=1, **settings)
    assert not torch.equal(before, weights(model))


# ---- snapshots and resume --------------------------------------------------------------------------------------------
def test_snapshots_are_taken_at_fractions_of_an_epoch(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(128), 16, num_epochs=2, snapshot_every=0.25, keep=20, **settings)
    names = {path.name for path in run.run_dir.path.glob("*.pth")}
    kept = {f"Classifier_last-{update}_ckpt.pth" for update in range(2, 16, 2)}
    assert names == kept | {"Classifier_last_ckpt.pth"}


@pytest.mark.parametrize(("per_update", "by"), [(True, "auto"), (False, "directory"), (True, "file")])
def test_a_resumed_fit_ends_with_the_same_bits(settings, per_update, by):
    def run(update: int | None, resume=None):
        model, optimizer = parts()
        scheduler = CosineAnnealingLR(optimizer, 21 if per_update else 3)
        how = {"num_epochs": 3, "schedule_per_update": per_update, "resume": resume, "snapshot_every": 0.3}
        callbacks = [Failing(update)] if update else []
        trainer = fit(model, optimizer, scheduler, points(), 16, callbacks=callbacks, **how, **settings)
        return trainer, weights(model)

    whole, expected = run(None)
    with pytest.raises(RuntimeError, match="planted"):
        run(11)
    directory = max(path for path in settings["output_dir"].iterdir() if path != whole.run_dir.path)
    file = next(directory.glob("*_InT_ckpt.pth"))
    assert load_checkpoint(file)["progress"]["update"] == 11
    resumed, found = run(None, {"auto": "auto", "directory": directory, "file": file}[by])
    assert resumed.run_dir.path == directory and resumed.progress.update == 21
    assert torch.equal(found, expected)


def test_a_run_goes_on_for_more_updates(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 16, num_updates=7, **settings)
    for more, update in (({"num_updates": 10}, 10), ({"num_updates": 13}, 13), ({"num_epochs": 4}, 20)):
        model, optimizer = parts()
        run = fit(model, optimizer, None, points(), 16, resume=run.run_dir.path, **more, **settings)
        assert run.progress.update == update
    assert run.progress == Progress(epoch=4, update=20)


def test_a_schedule_made_for_more_updates_replaces_that_of_the_run(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, CosineAnnealingLR(optimizer, 7), points(), 16, num_updates=7, **settings)
    model, optimizer = parts(seed=1)
    scheduler = CosineAnnealingLR(optimizer, 14)
    rates = []
    fit(
        model, optimizer, scheduler, points(), 16, num_updates=14, resume=run.run_dir.path,
        on_update_end=lambda trainer, values: rates.append(trainer.epoch_log.learning_rates["lr"]), **settings,
    )  # fmt: skip
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * step / 14)) / 2 for step in range(7, 14)])


def test_all_of_the_updates_are_made_however_many_are_in_an_epoch(settings):
    model, optimizer = parts()
    how = {"resume": None, "limit_batches": 3, "swa_start": 2}
    for num_updates, epochs in ((4, 2), (5, 3), (9, 5)):  # 3 and 1; 1 more; 3 and 1 more
        run = fit(model, optimizer, None, points(), 16, num_updates=num_updates, **how, **settings)
        assert run.progress == Progress(epoch=epochs, update=num_updates)
        how["resume"] = run.run_dir.path


def test_updates_are_counted_from_the_middle_of_an_epoch(settings):
    with pytest.raises(RuntimeError, match="planted"):
        fit(*parts(), None, points(), 16, num_updates=99, callbacks=[Failing(9)], **settings)
    run = fit(*parts(), None, points(), 16, num_updates=15, resume="auto", **settings)
    assert run.progress == Progress(epoch=3, update=15)


def test_another_batch_size_contradicts_the_run_that_is_resumed(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 16, num_epochs=1, **settings)
    with pytest.raises(UserError, match="--batch_size 8 contradicts the run that is resumed, which has 16"):
        fit(model, optimizer, None, points(), 8, num_epochs=2, resume=run.run_dir.path, **settings)


def test_a_checkpoint_imports_no_code(settings, tmp_path, monkeypatch):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 16, num_epochs=1, **settings)
    state = load_checkpoint(run.checkpointer.path("last"))
    (tmp_path / "planted_module.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    state["options"] |= {"callbacks": ["planted_module:Mine"], "import": ["planted_module"]}
    save_checkpoint({"format": FORMAT, **state}, path := tmp_path / "received.pth")
    with pytest.raises(UserError, match="planted_module"):
        fit(model, optimizer, None, points(), 16, num_epochs=2, resume=path, **settings)
    assert "planted_module" not in sys.modules


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM to oneself")
def test_a_signal_leaves_a_checkpoint(settings):
    model, optimizer = parts()

    def send(trainer, values):
        if trainer.progress.update == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        fit(model, optimizer, None, points(), 16, num_epochs=2, on_update_end=send, **settings)
    assert ended.value.code == 143
    (file,) = settings["output_dir"].glob("*/*_InT_ckpt.pth")
    assert load_checkpoint(file)["progress"]["update"] == 3


# ---- callbacks ----------------------------------------------------------------------------------------------------
def test_functions_are_called_after_updates_and_epochs_and_may_stop(settings):
    updates, rows = [], []

    def after_epoch(trainer, row):
        rows.append(row["epoch"])
        trainer.should_stop = row["epoch"] == 2

    model, optimizer = parts()
    how = {"on_update_end": lambda trainer, values: updates.append(float(values["loss"])), "on_epoch_end": after_epoch}
    fit(model, optimizer, None, points(), 32, num_epochs=9, **how, **settings)
    assert (len(updates), rows) == (8, [1, 2])


def test_a_few_updates_are_profiled(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 8, num_epochs=1, profile=2, **settings)
    assert (run.run_dir.path / "profile").is_dir()


def test_training_stops_when_the_loss_is_low(settings):
    model, optimizer = parts()
    losses = []
    how = {"stop_below": 0.9, "on_epoch_end": lambda trainer, row: losses.append(row["train/loss"])}
    fit(model, optimizer, None, points(), 32, num_epochs=50, **how, **settings)
    assert losses[-1] < 0.9 <= min(losses[:-1])


def test_gradients_of_a_part_have_a_limit_of_their_own(settings):
    norms = []

    def note(trainer, values) -> None:
        layers = trainer.networks["model"].layers
        norms.append([float(torch.cat([p.grad.flatten() for p in layers[k].parameters()]).norm()) for k in (0, 2)])

    fit(*parts(), None, points(), 10, num_epochs=1, on_update_end=note, param_clip=["layers.0.*=0.001"], **settings)
    assert max(first for first, _ in norms) <= 0.001 * 1.0001 < min(last for _, last in norms)
    with pytest.raises(UserError, match="matches no parameter"):
        fit(*parts(), None, points(), 10, num_epochs=1, param_clip=["head.*=1"], **settings)


def test_without_a_validation_set_nothing_is_validated(settings):
    model, optimizer = parts()
    rows = []
    how = {"num_epochs": 1, "on_epoch_end": lambda trainer, row: rows.append(row)}
    run = fit(model, optimizer, None, points(), 32, **how, **settings)
    assert not any(name.startswith("val/") for name in rows[0]) and not run.score
    assert not run.checkpointer.path("best").exists()


def test_a_validation_set_decides_what_is_best(settings):
    model, optimizer = parts()
    run = fit(model, optimizer, None, points(), 32, num_epochs=2, val_dataset=points(40), **settings)
    inputs, labels = points(40).tensors
    with torch.no_grad():
        expected = cross_entropy(model.layers(inputs), labels).item()
    assert run.score["results"]["loss"] == pytest.approx(expected, abs=1e-6)
    assert run.checkpointer.path("best").exists()


# ---- several processes -----------------------------------------------------------------------------------------------
def several_times(directory: str) -> tuple[list[float], float, bool, int]:
    """Find a rate, then train twice, with one model."""
    model, optimizer = parts()
    how = {**QUIET, "output_dir": directory, "seed": 0}
    before = weights(model)
    curve = find_lr(model, optimizer, points(), 16, num_values=10, num_runs=1, **how)
    is_as_before = torch.equal(before, weights(model))
    fit(model, optimizer, None, points(), 16, num_epochs=2, **how)
    model.seen = 0
    fit(model, optimizer, None, points(), 8, num_updates=5, accumulate=2, val_dataset=points(40), **how)
    return weights(model).tolist(), float(curve.losses[0, -1]), is_as_before, model.seen


def test_processes_train_alike_and_as_one_does(tmp_path):
    size = 3  # batches of 8 and 16 are not shared evenly
    expected, loss, _, _ = several_times(str(tmp_path / "one"))
    for found, their_loss, is_as_before, seen in in_processes(size, several_times, str(tmp_path / "several")):
        assert is_as_before and seen == -(-8 // size)  # of the 8 that all of them take at once
        assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-5)
        assert their_loss == pytest.approx(loss, rel=1e-4)


# ---- the range test --------------------------------------------------------------------------------------------------
def test_find_lr_suggests_a_rate_and_leaves_everything_as_it_was(settings):
    model, optimizer = parts()
    before = weights(model)
    curve = find_lr(model, optimizer, points(), 16, low=1e-5, high=10, num_values=30, num_runs=2, **settings)
    assert torch.equal(before, weights(model)) and optimizer.state_dict()["state"] == {}
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert curve.losses.shape == (2, 30) and 1e-4 < curve.suggestion < 1
    (directory,) = (settings["output_dir"] / "find_lr").iterdir()
    assert {"lr_finder.npz", "lr_finder.png"} <= {path.name for path in directory.iterdir()}


def test_groups_with_rates_of_their_own_keep_their_ratio(settings):
    model, _ = parts()
    optimizer = torch.optim.SGD(param_groups(model, {"layers.0.*": "0.1x"}, lr=0.1), lr=0.1)
    seen = []

    def note(module, inputs):
        seen.append([group["lr"] for group in optimizer.param_groups])

    model.register_forward_pre_hook(note)
    find_lr(model, optimizer, points(), 16, low=1e-3, high=1e-1, num_values=3, num_runs=1, num_updates=1, **settings)
    assert seen == [pytest.approx([rate, rate / 10]) for rate in (1e-3, 1e-2, 1e-1)]


# ---- wrong arguments ------------------------------------------------------------------------------------------------
class NoLoss(Classifier):
    def forward(self, inputs, labels):
        return self.layers(inputs)


class Detached(Classifier):
    def forward(self, inputs, labels):
        return super().forward(inputs, labels).detach()


WRONG = {
    "neither": ({"num_epochs": None}, "give num_epochs or num_updates"),
    "both": ({"num_updates": 5}, "give num_epochs or num_updates"),
    "epochs": ({"num_epochs": 0}, "argument num_epochs: '0' is not an integer >= 1"),
    "batch_size": ({"batch_size": 2.5}, "argument batch_size: '2.5' is not an integer"),
    "accumulate": ({"accumulate": -1}, "argument accumulate: '-1' is not"),
    "snapshot_every": ({"snapshot_every": 0}, "argument snapshot_every: '0' is not a finite number > 0"),
    "unknown": ({"num_worker": 2}, "unknown argument 'num_worker' .did you mean 'num_workers'"),
    "of a task": ({"lr": 0.1}, "unknown argument 'lr'"),
    "range": ({"clip": -1}, "fit: argument clip: '-1' is not a finite number >= 0"),
    "choice": ({"amp": "fp8"}, "fit: argument amp: 'fp8' is not one of no, bf16, fp16"),
    "contradiction": ({"ema": 0.9, "swa_start": 1}, "two averages"),
    "val_every": ({"val_every": 2}, "without a val_dataset"),
    "callback": ({"callbacks": [len]}, "argument callbacks: .* is not a list of Callback objects"),
    "one callback": ({"callbacks": Failing(1)}, "argument callbacks: .* is not a list of Callback objects"),
    "no callbacks": ({"callbacks": None}, "argument callbacks: .* is not a list of Callback objects"),
    "function": ({"on_epoch_end": "print"}, "argument on_epoch_end: 'print' is not a function"),
    "profile": ({"profile": 0}, "fit: argument profile: '0' is not an integer >= 1"),
    "resume is a flag": ({"resume": True}, "argument resume: True is not a path"),
    "resume": ({"resume": "nowhere"}, "no such run directory"),
    "dataset": ({"dataset": iter([1])}, "argument dataset: .* has no __getitem__"),
    "dictionary": ({"dataset": {"inputs": [1], "labels": [2]}}, "argument dataset: a dictionary has no samples 0 to N"),
    "val dictionary": ({"val_dataset": {"a": 1}}, "argument val_dataset: a dictionary has no samples"),
    "empty": ({"dataset": []}, "argument dataset: it is empty"),
    "model": ({"model": len}, "argument model: .* is not a torch.nn"),
    "optimizer": ({"optimizer": "adam"}, "argument optimizer: str is not a torch.optim"),
    "no loss": ({"model": NoLoss()}, "must return its loss, a scalar tensor.* shape .16, 3"),
    "detached": ({"model": Detached()}, "depends on no parameter"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name, settings):
    changes, message = WRONG[name]
    model, optimizer = parts()
    if isinstance(changes.get("model"), nn.Module):
        optimizer = torch.optim.SGD(changes["model"].parameters(), lr=0.1)
    given = {"model": model, "optimizer": optimizer, "dataset": points(), "batch_size": 16, "num_epochs": 1} | changes
    first = [given.pop("model"), given.pop("optimizer"), None, given.pop("dataset"), given.pop("batch_size")]
    with pytest.raises(UserError, match=message) as error:
        fit(*first, **given, **settings)
    line, *more = str(error.value).split("\n")
    assert re.search(message, line)
    assert all("The traceback is in" in text for text in more)


def test_a_wrong_scheduler_is_named(settings):
    model, optimizer = parts()
    for scheduler, message in (
        (ReduceLROnPlateau(optimizer), "ReduceLROnPlateau follows the loss"),
        (StepLR(parts()[1], 1), "that of another optimizer"),
        (SimpleNamespace(step=print), "SimpleNamespace has no optimizer"),
    ):
        with pytest.raises(UserError, match=message):
            fit(model, optimizer, scheduler, points(), 16, num_epochs=1, **settings)


def test_a_schedule_that_ends_before_the_run_is_refused_before_it_begins(settings):
    model, optimizer = parts()
    with pytest.raises(UserError, match="OneCycleLR ends after 9 updates, and the run makes 10"):
        fit(model, optimizer, OneCycleLR(optimizer, 0.1, total_steps=9), points(), 16, num_updates=10, **settings)
    assert not settings["output_dir"].exists()


def test_a_model_without_shapes_is_named(settings):
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UserError, match=r"argument model: 0.weight has no shape yet"):
        fit(model, torch.optim.SGD(model.parameters(), 0.1), None, points(), 16, num_epochs=1, **settings)


def test_an_optimizer_that_needs_a_closure_is_named(settings):
    model, _ = parts()
    for function in (fit, find_lr):
        with pytest.raises(UserError, match=r"argument optimizer: LBFGS.step\(\) needs a closure"):
            data = (None, points(), 16) if function is fit else (points(), 16)
            how = {**settings, "num_epochs": 1} if function is fit else settings
            function(model, torch.optim.LBFGS(model.parameters()), *data, **how)


@pytest.mark.parametrize("data", ["tuples", "lists", "dictionaries", "subset"])
def test_a_list_of_samples_is_data(settings, data):
    whole = points(20)
    samples = [whole[index] for index in range(20)]
    given = {
        "tuples": samples,
        "lists": [list(sample) for sample in samples],
        "dictionaries": [{"labels": label, "inputs": values} for values, label in samples],
        "subset": Subset(whole, range(20)),
    }
    found = []
    for dataset in (whole, given[data]):
        model, optimizer = parts()
        fit(model, optimizer, None, dataset, 8, num_epochs=1, **settings)
        found.append(weights(model))
    assert torch.equal(*found)


def test_an_error_of_own_code_is_one_line_in_the_words_of_fit(settings):
    class Broken(Classifier):
        def forward(self, inputs, labels):
            raise KeyError("own mistake")

    model = Broken()
    with pytest.raises(UserError, match=r"first update: KeyError: 'own mistake' .argument model, .*functional.py:\d+"):
        fit(model, torch.optim.SGD(model.parameters(), 0.1), None, points(), 16, num_epochs=1, **settings)


@pytest.mark.skipif(os.name == "nt", reason="no signals to oneself")
def test_a_second_ctrl_c_raises_at_once_and_does_not_end_the_process(settings):
    class Interrupting(Classifier):
        def forward(self, inputs, labels):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one has not raised")

    model = Interrupting()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, torch.optim.SGD(model.parameters(), 0.1), None, points(), 16, num_epochs=1, **settings)
    assert signal.getsignal(signal.SIGINT) is handler
    time.sleep(GRACE + 0.2)  # in which a program would have been ended


def test_an_optimizer_of_another_model_is_refused(settings):
    with pytest.raises(UserError, match="steps the network 'model'"):
        fit(parts()[0], parts()[1], None, points(), 16, num_epochs=1, **settings)


def test_find_lr_refuses_wrong_arguments(settings):
    for wrong in ({"low": 1, "high": 0.1}, {"num_values": 1}, {"num_runs": 0}, {"lr": 1}):
        with pytest.raises(UserError):
            find_lr(*parts(), points(), 16, **wrong, **settings)


def test_every_option_of_fit_is_one_of_the_command_line():
    known = vars(TrainerVanilla.parse_options(["--seed=0"]))
    assert set(OPTIONS) <= set(known) and len(set(OPTIONS)) == len(OPTIONS)


SCRIPT = '''
import sys
from tests.extras.test_functional import several_times
print(several_times(sys.argv[1])[0][:3])
'''


def test_processes_of_torchrun_may_meet_several_times(tmp_path, command, root):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    done = command(*launch, script, tmp_path / "runs", PYTHONPATH=str(root), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len({line for line in done.stdout.splitlines() if line.startswith("[")}) == 1
