import csv
import json
import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from callbacks.callback import HOOKS, Callback, CallbackList
from data.data_entry import group_hashes
from engine.checkpoints.file import load_checkpoint
from engine.registry import names
from eval_vanilla import EvaluatorVanilla
from tools.synthetic.make_carvana_like import make_carvana_like
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError, UserError
from utils.scheduler import SCHEDULERS

ONE_EPOCH = ("--n_epoch", 1, "--train_val_sample_rate", 200)  # 170 train: updates of 64, 64 and 42
EXACT_SUMS = ("--optim", "sgd", "--lr", 0.1, "--n_epoch", 1)  # Adam would blow rounding up to the size of an update


def rows_of(trainer) -> list[dict[str, str]]:
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def largest_difference(a, b) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def recorder() -> tuple[Callback, list]:
    """Return a callback and the list in which it notes every hook with the number of completed updates."""
    calls = []

    def noting(hook):
        return lambda self, trainer, *arguments: calls.append((hook, trainer.progress.update))

    return type("Recorder", (Callback,), {hook: noting(hook) for hook in HOOKS})(), calls


def saved_at(trainer) -> list[tuple[int, tuple[str, ...]]]:
    """Train without writing checkpoints, and return at which updates which kinds would have been written."""
    saved = []
    trainer.checkpointer.save = lambda state, *kinds: saved.append((state["progress"]["update"], kinds))
    trainer.train()
    return saved


# ---- micro-batches ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("micro_batch_size", [1, 7, 63, 64])
def test_the_size_of_micro_batches_does_not_change_the_update(train, weights, micro_batch_size):
    whole = weights(train(*EXACT_SUMS))
    cut = weights(train(*EXACT_SUMS, "--micro_batch_size", micro_batch_size))
    assert largest_difference(whole, cut) < 1e-6


def test_an_unweighted_mean_of_micro_batches_would_be_seen(train, weights):
    class Unweighted(TrainerVanilla):
        def weighted(self, update):
            for batch, _ in super().weighted(update):
                yield batch, 1 / len(update.micro_batches)

    whole = weights(train(*EXACT_SUMS))
    for micro_batch_size in (7, 63):  # 64 = 9 * 7 + 1 = 63 + 1, and the last update is shorter
        cut = weights(train(*EXACT_SUMS, "--micro_batch_size", micro_batch_size, task=Unweighted))
        assert largest_difference(whole, cut) > 1e-4


def test_the_last_update_of_an_epoch_takes_what_is_left(build):
    trainer = build("--micro_batch_size", 7)
    updates = list(trainer.train_loader.updates(epoch=0))
    sizes = [[len(labels) for _, labels in update.micro_batches] for update in updates]
    assert len(sizes) == trainer.train_loader.updates_per_epoch == 8
    assert sizes[:7] == [[7] * 8 + [6, 2]] * 7 and sizes[7] == [7] * 8 + [6]  # none has a single sample


def test_the_logged_loss_is_the_mean_over_the_samples(train):
    rows = [rows_of(train(*EXACT_SUMS, "--micro_batch_size", size))[0] for size in (7, 64)]
    assert float(rows[0]["train/loss"]) == pytest.approx(float(rows[1]["train/loss"]), abs=2e-6)
    assert float(rows[0]["train/grad_norm"]) == pytest.approx(float(rows[1]["train/grad_norm"]), abs=2e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_its_own_samples(train):
    losses = []

    class Losses(Callback):
        def on_update_end(self, trainer, values):
            losses.append(float(values["loss"]))

    rows = rows_of(train(callbacks=[Losses()]))
    sizes = [64] * 7 + [62]
    for row, of_epoch in zip(rows, (losses[:8], losses[8:]), strict=True):
        mean = sum(size * loss for size, loss in zip(sizes, of_epoch, strict=True)) / 510
        assert float(row["train/loss"]) == pytest.approx(mean, rel=1e-5)


# ---- repeatable ------------------------------------------------------------------------------------------------------
def test_the_same_command_gives_the_same_weights(train, weights, differences):
    first, again, other = (weights(train(seed=seed)) for seed in (0, 0, 1))
    assert not differences(first, again)
    assert differences(first, other)


def test_zero_is_a_seed_and_not_the_absence_of_one(train):
    assert train(*ONE_EPOCH, seed=0).opt.seed == 0


def test_a_drawn_seed_is_saved_and_the_saved_options_repeat_the_run(train, weights, differences):
    first, second = train(seed=None), train(seed=None)
    assert first.opt.seed != second.opt.seed
    (config,) = first.run_dir.path.glob("config_*.json")
    assert json.loads(config.read_text())["seed"] == first.opt.seed
    again = train("--config", config)
    assert again.run_dir.path != first.run_dir.path
    assert not differences(weights(first), weights(again))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("flags", [(), ("--micro_batch_size", 48)])
def test_the_number_of_workers_changes_nothing(train, weights, differences, num_workers, flags):
    without, with_workers = (weights(train(*flags, "--num_workers", number)) for number in (0, num_workers))
    assert not differences(without, with_workers)


def test_the_number_of_workers_does_not_change_the_augmentation(train, weights, differences):
    results = [weights(train("--augment", "--num_workers", number, task=TrainerSeg)) for number in (0, 1, 2)]
    assert not differences(results[0], results[1]) and not differences(results[0], results[2])
    assert differences(results[0], weights(train(task=TrainerSeg)))  # it does augment


# ---- callbacks only watch --------------------------------------------------------------------------------------------
class DrawsRandomNumbers(Callback):
    def on_update_end(self, trainer, values):
        random.random(), np.random.rand(), torch.rand(3), torch.manual_seed(5)

    on_train_start = on_epoch_start = on_train_end = lambda self, trainer: torch.rand(3)
    on_validation_end = on_epoch_end = on_log = on_update_end


class WithDropout(TrainerVanilla):
    """Draws random numbers in training."""

    def compute_loss(self, batch):
        images, labels = batch
        return self.criterion(self.model(F.dropout(images, 0.2)), labels)


def test_watching_does_not_change_the_weights(build, train, weights, differences):
    unwatched = build(task=WithDropout)
    unwatched.callbacks = CallbackList([])
    unwatched.train()
    watched = train(task=WithDropout, callbacks=None)
    assert len(watched.callbacks.callbacks) >= 3
    assert not differences(weights(unwatched), weights(watched))

    disturbed = build(task=WithDropout, callbacks=None)
    disturbed.callbacks = CallbackList([*disturbed.callbacks.callbacks, DrawsRandomNumbers()])
    disturbed.train()
    assert not differences(weights(unwatched), weights(disturbed))


def test_a_callback_that_draws_would_be_seen_without_the_guard(train, build, weights, differences):
    disturbed = build(task=WithDropout)
    disturbed.callbacks.call = lambda hook, *arguments: getattr(DrawsRandomNumbers(), hook)(*arguments)
    disturbed.train()
    assert differences(weights(train(task=WithDropout)), weights(disturbed))


def add_to_weights(trainer):
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)


def set_learning_rate(trainer):
    trainer.optimizer.param_groups[0]["lr"] = 1.0


@pytest.mark.parametrize(
    "meddle",
    [
        add_to_weights,
        set_learning_rate,
        lambda trainer: next(trainer.model.parameters()).grad.zero_(),
        lambda trainer: trainer.model.eval(),
        lambda trainer: trainer.model.load_state_dict(trainer.model.state_dict()),
    ],
    ids=["weights", "learning rate", "gradients", "mode", "loading"],
)
def test_a_callback_that_takes_part_is_stopped(build, meddle):
    class Meddler(Callback):
        def on_update_end(self, trainer, values):
            meddle(trainer)

    with pytest.raises(RuntimeError, match=r"Meddler.on_update_end changed weights"):
        build(callbacks=[Meddler()]).train()


def test_the_hooks_are_called_in_the_documented_order(train):
    callback, calls = recorder()
    train(*ONE_EPOCH, "--log_every", 2, callbacks=[callback])
    assert calls == [
        ("on_train_start", 0), ("on_epoch_start", 0), ("on_update_start", 0), ("on_update_end", 1),
        ("on_update_start", 1), ("on_update_end", 2), ("on_log", 2), ("on_update_start", 2), ("on_update_end", 3),
        ("on_validation_end", 3), ("on_epoch_end", 3), ("on_save", 3), ("on_train_end", 3),
    ]  # fmt: skip


def test_an_exception_ends_in_its_hook_and_is_raised_again(build):
    class Raises(Callback):
        def on_log(self, trainer, values):
            raise OSError("no space left")

    callback, calls = recorder()
    trainer = build("--log_every", 3, callbacks=[Raises(), callback])
    with pytest.raises(UserError, match=r"Failed in Raises.on_log: OSError: no space left") as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, OSError)
    assert calls[-1] == ("on_exception", 3)
    assert trainer.checkpointer.path("InT").exists()


def test_a_callback_may_ask_to_stop_between_two_updates(train):
    class StopsAtFive(Callback):
        def on_update_end(self, trainer, values):
            trainer.should_stop = trainer.progress.update == 5

    trainer = train(callbacks=[StopsAtFive()])
    assert (trainer.progress.epoch, trainer.progress.update) == (0, 5)
    assert load_checkpoint(trainer.checkpointer.path("last"))["progress"]["update"] == 5


# ---- best checkpoint and early stop ----------------------------------------------------------------------------------
def with_accuracies(*values):
    """Return a task whose validations give these accuracies, one after the other."""

    class Evaluator(EvaluatorVanilla):
        def results(self):
            self.count = getattr(self, "count", -1) + 1
            return {**super().results(), "accuracy": values[self.count]}

    return type("Task", (TrainerVanilla,), {"evaluator_class": Evaluator})


def test_a_constant_metric_stops_after_as_many_validations_as_patience_says(train):
    trainer = train("--n_epoch", 12, "--patience", 3, task=with_accuracies(*[0.5] * 12))
    assert trainer.progress.epoch == 4  # the first one is the best so far
    epochs = {
        kind: load_checkpoint(trainer.checkpointer.path(kind))["progress"]["epoch"]
        for kind in ("best", "earlystop", "last")
    }
    assert epochs == {"best": 1, "earlystop": 4, "last": 4}


def test_patience_zero_never_stops(train):
    trainer = train("--n_epoch", 5, "--patience", 0, task=with_accuracies(*[0.5] * 5))
    assert trainer.progress.epoch == 5
    assert not trainer.checkpointer.path("earlystop").exists()


def test_patience_counts_validations_and_not_epochs(train):
    trainer = train("--n_epoch", 12, "--patience", 2, "--val_every", 2, task=with_accuracies(*[0.5] * 12))
    assert trainer.progress.epoch == 6


def test_nan_never_is_the_best(train):
    nan = float("nan")
    trainer = train("--n_epoch", 4, task=with_accuracies(nan, 0.5, nan, 0.4))
    assert load_checkpoint(trainer.checkpointer.path("best"))["progress"]["epoch"] == 2


def test_a_run_whose_score_stays_nan_warns_and_does_not_end_well(build, capfd):
    task = with_accuracies(*[float("nan")] * 4)
    only_nan = build("--n_epoch", 4, "--patience", 2, task=task, callbacks=None)
    with pytest.raises(DivergedError, match="--monitor accuracy was a number in no validation") as caught:
        only_nan.train()
    assert caught.value.status == 4 and only_nan.progress.epoch == 2
    assert capfd.readouterr().out.count("val/accuracy, which chooses the best checkpoint, is not a number") == 2
    assert only_nan.checkpointer.path("last").exists()
    assert not only_nan.checkpointer.path("best").exists()


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 3)])
def test_monitor_mode_says_which_is_best(train, mode, epoch):
    trainer = train("--n_epoch", 3, "--monitor_mode", mode, task=with_accuracies(0.5, 0.7, 0.3))
    assert load_checkpoint(trainer.checkpointer.path("best"))["progress"]["epoch"] == epoch


def test_an_improvement_below_min_delta_is_none(train):
    trainer = train("--n_epoch", 3, "--min_delta", 0.1, task=with_accuracies(0.5, 0.55, 0.61))
    assert load_checkpoint(trainer.checkpointer.path("best"))["progress"]["epoch"] == 3


@pytest.mark.parametrize(
    "name",
    [
        "acuracy",
        "confusion",
        "accuracy/car",
    ],
)
def test_an_unknown_monitor_is_an_error_at_the_start(build, tmp_path, name):
    with pytest.raises(UserError, match=r"--monitor .*accuracy"):
        build("--monitor", name)
    assert not (tmp_path / "runs").exists()


def test_the_best_checkpoint_holds_its_own_score(train):
    trainer = train("--n_epoch", 3)
    rows = rows_of(trainer)
    best = load_checkpoint(trainer.checkpointer.path("best"))
    row = rows[best["progress"]["epoch"] - 1]
    assert float(row["val/accuracy"]) == max(float(row["val/accuracy"]) for row in rows)
    assert best["score"]["results"]["accuracy"] == pytest.approx(float(row["val/accuracy"]), abs=1e-6)
    assert best["score"]["num_samples"] == 90


# ---- how often -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("save_every", "updates"),
    [(0.5, [4, 8, 12, 16, 20, 24]), (1, [8, 16, 24]), (2, [16, 24]), (0.001, list(range(1, 25))), (0.3, None)],
)
def test_save_every_counts_epochs_and_takes_fractions(build, save_every, updates):
    saved = saved_at(build("--n_epoch", 3, "--save_every", save_every))
    # 0.3 of 8 updates is 2 updates, and the end of the run is saved whatever the rhythm
    assert [update for update, kinds in saved if "last" in kinds] == (updates or list(range(2, 25, 2)))


def test_val_every_skips_validations_but_not_the_last(train):
    callback, calls = recorder()
    trainer = train("--n_epoch", 5, "--val_every", 2, callbacks=[callback])
    assert [update for hook, update in calls if hook == "on_validation_end"] == [16, 32, 40]
    assert [bool(row["val/accuracy"]) for row in rows_of(trainer)] == [False, True, False, True, True]


def test_log_every_counts_updates(train):
    callback, calls = recorder()
    train("--log_every", 3, callbacks=[callback])
    assert [update for hook, update in calls if hook == "on_log"] == [3, 6, 9, 12, 15]


def test_debug_makes_a_few_batches_of_everything(train):
    callback, calls = recorder()
    trainer = train("--debug", "--n_epoch", 50, "--batch_size", 8, "--eval_batch_size", 8, callbacks=[callback])
    assert (trainer.progress.epoch, trainer.progress.update) == (1, 3)
    assert trainer.score["num_samples"] == 24
    assert {hook for hook, _ in calls} >= {"on_update_end", "on_validation_end", "on_epoch_end", "on_train_end"}
    assert all(trainer.checkpointer.path(kind).exists() for kind in ("best", "last"))


# ---- what a run leaves -----------------------------------------------------------------------------------------------
def test_metrics_csv_has_the_documented_columns_and_a_row_per_epoch(train):
    rows = rows_of(train("--n_epoch", 3))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["update"] for row in rows] == ["8", "16", "24"]
    assert set(rows[0]) == {
        "epoch", "update", "train/loss", "train/grad_norm", "val/loss", "val/accuracy", "lr",
        "time/train", "time/data_wait", "time/save", "time/val", "samples_per_second",
    }  # fmt: skip
    for row in rows:
        assert 0 <= float(row["time/data_wait"]) <= float(row["time/train"])
        speed = 510 / float(row["time/train"])
        assert float(row["samples_per_second"]) == pytest.approx(speed, rel=0.01)


def test_a_small_learning_rate_is_not_rounded_away_in_metrics_csv(train):
    row = rows_of(train(*ONE_EPOCH, "--lr", 1.25e-7, "--lr_scheduler", "constant"))[0]
    assert float(row["lr"]) == pytest.approx(1.25e-7)


@pytest.mark.parametrize("fixture", ["vanilla_run", "seg_run"])
def test_tensorboard_has_curves_and_pictures(request, fixture):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = request.getfixturevalue(fixture)
    events = EventAccumulator(str(run / "summary"))
    events.Reload()
    monitor = "val/accuracy" if fixture == "vanilla_run" else "val/dice"
    assert {monitor, "val/loss"} <= set(events.Tags()["scalars"])
    with open(run / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    last = events.Scalars(monitor)[-1]
    assert (last.step, last.value) == (int(row["update"]), pytest.approx(float(row[monitor]), abs=1e-5))
    assert len(events.Images("val/predictions")) == 2


def test_tensorboard_has_the_loss_of_logged_updates(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = train("--log_every", 4, callbacks=None)
    events = EventAccumulator(str(trainer.run_dir.path / "summary"))
    events.Reload()
    for name in ("train/loss", "train/grad_norm", "lr"):
        assert [event.step for event in events.Scalars(name)] == [4, 8, 12, 16]


def test_provenance_says_how_to_make_the_run_again(vanilla_run):
    record = json.loads((vanilla_run / "provenance.json").read_text())
    assert {"command", "git_commit", "git_diff", "versions", "machine", "data"} <= set(record)
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["data"]) == {"train", "val", "test"}


def test_the_split_is_written_down_and_disjoint(vanilla_run):
    parts = json.loads((vanilla_run / "split.json").read_text())
    assert {part: len(names) for part, names in parts.items()} == {"train": 510, "val": 90, "test": 1000}
    assert len({name for names in parts.values() for name in names}) == 1600


def test_the_split_of_carvana_tears_no_car_apart(seg_run):
    parts = json.loads((seg_run / "split.json").read_text())
    assert {part: len(names) for part, names in parts.items()} == {"train": 16, "val": 4, "test": 4}
    cars = {part: {name.rpartition("_")[0] for name in names} for part, names in parts.items()}
    assert {part: len(of_part) for part, of_part in cars.items()} == {"train": 4, "val": 1, "test": 1}
    assert len(cars["train"] | cars["val"] | cars["test"]) == 6


def test_another_seed_trains_on_the_same_split(build):
    first, other_seed, other_split = build(seed=0), build(seed=1), build("--split_seed", 1)
    hashes = [group_hashes(trainer.datasets["train"]) for trainer in (first, other_seed, other_split)]
    assert torch.equal(hashes[0], hashes[1])
    assert not torch.equal(hashes[0], hashes[2])


def test_the_log_and_the_options_are_in_the_run_directory(vanilla_run):
    (log,) = vanilla_run.glob("Vanilla_*_log.txt")
    text = log.read_text()
    assert "epoch 2/2: train/loss" in text and "669,706 parameters" in text and "\033" not in text
    (config,) = vanilla_run.glob("config_Vanilla_*.json")
    options = json.loads(config.read_text())
    assert options["batch_size"] == 64 and "resume" not in options and "config" not in options
    kinds = ("best", "last", "last-8")  # the last, and the one before it
    assert {path.name for path in vanilla_run.glob("*.pth")} == {f"Vanilla_{kind}_ckpt.pth" for kind in kinds}


def test_two_runs_of_one_second_have_two_directories(build):
    assert len({build().run_dir.path for _ in range(3)}) == 3


# ---- options that change the computation -----------------------------------------------------------------------------
@pytest.mark.parametrize("optim", names("optimizer"))
def test_every_optimizer_trains(train, optim):
    rows = rows_of(train("--optim", optim))
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"]) - 0.001


@pytest.mark.parametrize("lr_scheduler", SCHEDULERS)
def test_every_schedule_moves_the_learning_rate_as_it_says(train, lr_scheduler):
    flags = {
        "step": ("--lr_decay_epochs", 0.5),
        "linear": ("--lr_min", 1e-4),
        "exponential": ("--lr_decay_rate", 0.5),
    }.get(lr_scheduler, ())
    trainer = train("--n_epoch", 1, "--lr_scheduler", lr_scheduler, *flags)  # updates 0 to 7
    expected = {"constant": 1e-3, "step": 1e-4, "cosine": 0, "linear": 1e-4, "exponential": 1e-3 * 0.5 ** (7 / 8)}
    assert float(rows_of(trainer)[0]["lr"]) == pytest.approx(expected[lr_scheduler], rel=1e-5, abs=1e-12)


def test_a_warm_up_starts_low(train):
    rates = []

    class Rates(Callback):
        def on_update_end(self, trainer, values):
            rates.append(trainer.epoch_log.learning_rates["lr"])

    flags = ("--warmup_epoch", 0.5, "--warmup_multiplier", 10, "--lr_scheduler", "constant", "--n_epoch", 1)
    train(*flags, callbacks=[Rates()])
    assert rates == pytest.approx([1e-4, 3.25e-4, 5.5e-4, 7.75e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def grad_norms(train, *flags):
    norms = []

    class Norms(Callback):
        def on_update_end(self, trainer, values):
            norms.append(float(values["grad_norm"]))

    trainer = train(*ONE_EPOCH, *flags, callbacks=[Norms()])
    return norms, trainer


@pytest.mark.parametrize("clip_type", ["norm", "value"])
def test_clipping_changes_the_run_and_the_norm_before_it_is_logged(train, weights, clip_type):
    free, unclipped = grad_norms(train, "--optim", "sgd")
    limit = 0.1 if clip_type == "norm" else 0.001
    norms, clipped = grad_norms(train, "--optim", "sgd", "--clip", limit, "--clip_type", clip_type)
    assert norms[0] == pytest.approx(free[0], rel=1e-5) and free[0] > 0.1
    assert largest_difference(weights(unclipped), weights(clipped)) > 1e-6


def test_a_clipped_step_has_the_length_of_the_limit(build, weights):
    flags = ("--optim", "sgd", "--momentum", 0, "--weight_decay", 0, "--lr", 1, "--lr_scheduler", "constant")
    trainer = build(*flags, "--clip", 0.1)
    before = weights(trainer)
    trainer.train_update(next(trainer.train_loader.updates(0)))
    step = [weights(trainer)[name] - before[name] for name in before]
    assert torch.cat([part.flatten() for part in step]).norm().item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("task", [TrainerVanilla, TrainerSeg])
def test_mixed_precision_learns_nearly_the_same(train, amp, task):
    exact, mixed = (rows_of(train("--n_epoch", 1, "--amp", kind, task=task))[0] for kind in ("no", amp))
    assert mixed["train/loss"] != exact["train/loss"]
    assert float(mixed["train/loss"]) == pytest.approx(float(exact["train/loss"]), rel=0.05)
    assert float(mixed["train/grad_norm"]) == pytest.approx(float(exact["train/grad_norm"]), rel=0.2)


def test_channels_last_changes_only_rounding(train):
    first, second = (
        rows_of(train("--n_epoch", 1, *flags, task=TrainerSeg))[0] for flags in ((), ("--channels_last",))
    )
    assert float(first["train/loss"]) == pytest.approx(float(second["train/loss"]), rel=1e-3)


def test_channels_last_changes_the_memory_order(build):
    weight = build("--channels_last", task=TrainerSeg).networks["model"].encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("parallel", ["dp", "True"])
def test_data_parallel_on_a_cpu_is_the_same_run(train, weights, differences, parallel):
    assert not differences(weights(train()), weights(train("--parallel", parallel)))


@pytest.mark.slow
def test_compiled_networks_learn_the_same(train, weights):
    # slow: the first call of each shape takes seconds
    exact, compiled = (weights(train(*ONE_EPOCH, "--optim", "sgd", *flags)) for flags in ((), ("--compile",)))
    assert exact.keys() == compiled.keys()
    assert largest_difference(exact, compiled) < 1e-5


def test_deterministic_runs(train, weights, differences):
    try:
        assert not differences(weights(train()), weights(train("--deterministic")))
    finally:
        torch.use_deterministic_algorithms(False)


# ---- other starts and other networks ---------------------------------------------------------------------------------
def test_pretrained_starts_from_the_weights_of_a_checkpoint(build, vanilla_run, weights, differences):
    path = vanilla_run / "Vanilla_best_ckpt.pth"
    trainer = build("--pretrained", "--model_path", path)
    assert not differences(weights(trainer), load_checkpoint(path)["networks"]["model"])
    trainer.train()  # from the start, and with a state of its own
    assert trainer.progress.update == 16


def test_pretrained_takes_what_fits_and_reports_the_rest(build, seg_run, weights):
    path = seg_run / "UNet_best_ckpt.pth"
    trainer = build("--pretrained", "--model_path", path, "--n_classes", 3, task=TrainerSeg)
    old, new = load_checkpoint(path)["networks"]["model"], weights(trainer)
    assert [name for name in new if new[name].shape != old[name].shape] == ["head.weight", "head.bias"]
    assert all(torch.equal(new[name], old[name]) for name in new if not name.startswith("head"))
    (log,) = trainer.run_dir.path.glob("*_log.txt")
    assert "other shape (2): head.weight (2, 4, 1, 1) for (3, 4, 1, 1)" in log.read_text()


@pytest.mark.parametrize("loss_type", ["CEDice", "PixelCE", "Dice"])
@pytest.mark.parametrize("n_classes", [1, 2])
def test_segmentation_trains_with_every_loss(train, loss_type, n_classes):
    trainer = train("--loss_type", loss_type, "--n_classes", n_classes, task=TrainerSeg)
    rows = rows_of(trainer)
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
    assert 0 <= float(rows[1]["val/dice"]) <= 1


def test_segmentation_trains_three_classes(train, tmp_path):
    make_carvana_like(tmp_path / "three", cars=6, views=4, size=(64, 48), n_classes=3)
    trainer = train("--data_dir", tmp_path / "three", "--n_classes", 3, task=TrainerSeg, callbacks=None)
    assert trainer.networks["model"].head.out_channels == 3
    assert math.isfinite(float(rows_of(trainer)[1]["val/dice"]))


@pytest.mark.parametrize("flags", [("--deep_supervision",), ("--deep_supervision", "--n_classes", "1"), ()])
def test_unetpp_trains(train, flags):
    rows = rows_of(train("--model_type", "UNetpp", *flags, task=TrainerSeg))
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])


def test_transposed_convolutions_train(train):
    rows = rows_of(train("--up", "transposed", task=TrainerSeg))
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
