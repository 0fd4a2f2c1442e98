"""Several processes train, validate, refuse and save as one process does. Each mode starts its processes
once, and they go through all the runs that are looked at here."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from callbacks.callback import Callback
from data import sampler
from data.sampler import epoch_order
from engine.devices.process_group import share_of
from eval import EvaluatorBase
from extras.several_processes import SeveralProcesses
from tests import small_tasks
from tests.processes import in_processes
from tests.small_tasks import build, largest_difference, numbered, rows_of, train, weights_of
from tests.torture import agreement, exact_eval, harness, resizing
from tests.torture.harness import digests_of
from utils.errors import DivergedError, UserError

ORDER = epoch_order(23, 0, 0)  # of the samples of TrainerNumbered: updates of 8, 8 and 7
SGD = ("--optim", "sgd", "--lr", 0.1, "--n_epoch", 2, "--batch_size", 8, "--micro_batch_size", 2, "--log_every", 1)
WAYS = [(2, "fsdp"), (3, "ddp")]
BAD = {
    "one": [ORDER[14]],  # in the share of the last process
    "a micro-batch": ORDER[4:6],
    "a share of the first update": ORDER[4:8],
    "an update": ORDER[8:16],
    "the first update, and the sample that stands in for it": [*ORDER[:8], 0, 1],
}
NAN_AT = ORDER[14]
HOOKS = ("on_train_start", "on_epoch_start", "on_update_end", "on_validation_end", "on_epoch_end", "on_save")


def stop_in(hook: str) -> Callback:
    """Asks for a stop in one of its hooks, after two updates at the earliest if the hook comes later."""

    def ask(self, trainer: Any, *arguments: Any) -> None:
        trainer.should_stop |= trainer.progress.update >= 2 or hook in ("on_train_start", "on_epoch_start")

    return type("StopIn", (Callback,), {hook: ask})()


def end_of(trainer: Any) -> dict[str, Any]:
    """The compared results of a finished run."""
    return {
        "weights": weights_of(trainer), "rows": rows_of(trainer.run_dir.path), "guard": trainer.guard.state_dict(),
        "progress": trainer.progress.state_dict(), "bad": trainer.train_loader.bad.state_dict(), "score": trainer.score,
        "stopper": trainer.stopper.state_dict(), "lr": [group["lr"] for group in trainer.optimizer.param_groups],
    }  # fmt: skip


def refused(trainer: Any) -> dict[str, Any]:
    """Train, which is to fail; return with what, and whether the weights are those after the last good update."""
    after, train_update = [weights_of(trainer)], trainer.train_update

    def noting(update: Any) -> None:
        train_update(update)
        after.append(weights_of(trainer))

    trainer.train_update = noting
    try:
        trainer.train()
    except (DivergedError, UserError) as error:
        touched = largest_difference(weights_of(trainer), after[-1])
        return {"error": type(error).__name__, "told": str(error), "update": trainer.progress.update,
                "touched": touched, "weights": after[-1]}  # fmt: skip
    return {"error": None}


def collectives(trainer: Any) -> int:
    """How many reductions of gradients an update makes."""
    update = next(trainer.train_loader.updates(0))
    trainer.distributed.begin_update(update, may_lose_samples=False)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        trainer.guard.begin_update(update)
        for batch, weight in trainer.weighted(update):
            trainer.backward(trainer.compute_loss(batch), weight)
    names = [event.name for event in profiled.events() if event.name.startswith("gloo:")]
    return sum("reduce" in name for name in names)


def outcomes(mode: str, directory: Path) -> dict[str, Any]:
    """All the runs, in one process of several."""
    flags, found = (*SGD, "--parallel", mode), {}

    def place(*names: Any) -> Path:
        return directory / "_".join(map(str, names)).replace(" ", "_")

    for policy in ("stop", "skip"):
        trainer = build(numbered(nan_at=NAN_AT), (*flags, "--nan_policy", policy), place("nan", policy))
        found["nan", policy] = refused(trainer) if policy == "stop" else (trainer.train(), end_of(trainer))[1]
    for name, bad in BAD.items():
        trainer = train(numbered(bad=bad, bad_in_val=[0, 5]), (*flags, "--skip_bad_samples", 10), place("bad", name))
        found["bad", name] = end_of(trainer) | {"num_samples": trainer.score["num_samples"]}
    task = numbered(bad=[ORDER[1], ORDER[6], ORDER[13]])
    found["too many bad"] = refused(build(task, (*flags, "--skip_bad_samples", 2), place("too many")))
    task = numbered(bad_in_val=[0, 3, 6])
    found["too many bad in val"] = refused(build(task, (*flags, "--skip_bad_samples", 2), place("too many in val")))
    for hook in HOOKS:
        found["stop", hook] = end_of(train(numbered(), flags, place("stop", hook), [stop_in(hook)]))["progress"]
    found["early"] = end_of(train(numbered(), (*flags, "--n_epoch", 9, "--patience", 2, "--min_delta", 1), place("e")))
    found["many samples"] = end_of(train(numbered(), (*flags, "--batch_size", 64), place("large")))
    if mode != "none":
        found |= {"collectives": {}}
        for micro_batch_size in (2, 4, 16):
            sizes = ("--batch_size", 16, "--micro_batch_size", micro_batch_size)
            trainer = build(small_tasks.TrainerSmall, ("--parallel", mode, *sizes), place("collectives"))
            found["collectives"][micro_batch_size] = collectives(trainer)
        made = type(trainer.distributed)
        made.gradients, kept = lambda self, synchronize: contextlib.nullcontext(), made.gradients
        found["collectives"]["always"] = collectives(trainer := build(
            small_tasks.TrainerSmall, ("--parallel", mode, "--batch_size", 16, "--micro_batch_size", 2), place("always")
        ))
        made.gradients = kept
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The outcomes of one process."""
    (found,) = in_processes(1, outcomes, "none", tmp_path_factory.mktemp("alone"))
    return found


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]} {way[1]}")
def several(request, tmp_path_factory):
    """The outcomes of several processes, in a list."""
    size, mode = request.param
    return in_processes(size, outcomes, mode, tmp_path_factory.mktemp("several"))


def assert_same(several, alone, tolerance=2e-6):
    """The ends of runs are those of one process."""
    for found in several:
        assert largest_difference(found["weights"], alone["weights"]) < tolerance
        assert largest_difference(found["weights"], several[0]["weights"]) == 0
        assert {name: found[name] for name in ("progress", "guard", "lr")} == {
            name: alone[name] for name in ("progress", "guard", "lr")
        }
        assert found["bad"].keys() == alone["bad"].keys()
        assert found["stopper"] == several[0]["stopper"] and found["score"] == several[0]["score"]
    assert resizing.faults_of_rows(several[0]["rows"], alone["rows"]) == []


def resumed(mode: str, directory: Path) -> list[tuple[dict[str, str], dict[str, str], bool]]:
    """Train with random numbers, whole, and stopped in the middle of an epoch and resumed; return digests of both."""
    found = []
    for number, (task, flags) in enumerate([
        (small_tasks.TrainerDropout, ("--num_workers", 1, "--micro_batch_size", 3, "--n_epoch", 2)),
        (numbered(), (*SGD, "--micro_batch_size", 3)),  # random in each sample
        (small_tasks.TrainerBank, ("--n_epoch", 2)),
    ]):  # fmt: skip
        whole = train(task, (*flags, "--parallel", mode), directory / f"whole{number}").run_dir.path
        broken = train(task, (*flags, "--parallel", mode), directory / f"broken{number}", [stop_in("on_update_end")])
        was_inside = broken.progress.sample > 0
        last = train(task, ("--resume", broken.run_dir.path, "--parallel", mode), directory).run_dir.path
        found.append((digests_of(whole, "last"), digests_of(last, "last"), was_inside))
    return found


# ---- an update that is not finite ------------------------------------------------------------------------------------
def test_all_refuse_an_update_of_which_one_has_a_loss_that_is_no_number(several, alone):
    for found in several:
        result, expected = found["nan", "stop"], alone["nan", "stop"]
        assert (result["error"], result["update"]) == (expected["error"], expected["update"]) == ("DivergedError", 1)
        assert result["touched"] == 0
        assert largest_difference(result["weights"], expected["weights"]) < 2e-6
    assert len({found["nan", "stop"]["told"].partition(" Samples")[0] for found in several}) == 1


def test_all_skip_an_update_of_which_one_has_a_loss_that_is_no_number(several, alone):
    assert alone["nan", "skip"]["guard"] == {"num_skipped": 2}
    assert_same([found["nan", "skip"] for found in several], alone["nan", "skip"])


# ---- bad samples -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_left_out_as_in_one_process(several, alone, name):
    expected = alone["bad", name]
    assert set(expected["bad"]) == {str(index) for index in BAD[name]} and expected["num_samples"] == 5
    assert_same([found["bad", name] for found in several], expected)
    assert {found["bad", name]["num_samples"] for found in several} == {5}


def test_too_many_bad_samples_end_all_processes_at_the_same_update(several, alone):
    expected = alone["too many bad"]
    assert (expected["error"], expected["update"]) == ("UserError", 1)
    for found in several:
        assert (found["too many bad"]["error"], found["too many bad"]["update"]) == ("UserError", 1)
        assert "3 samples cannot be loaded, but --skip_bad_samples allows 2" in found["too many bad"]["told"]


def test_too_many_bad_samples_of_the_validation_are_counted_over_all_processes(several, alone):
    for found in (alone, *several):
        assert "3 samples cannot be loaded, but --skip_bad_samples allows 2" in found["too many bad in val"]["told"]


# ---- the end ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_ends_all_processes(several, alone, hook):
    ends = [found["stop", hook] for found in several]
    assert all(end == ends[0] for end in ends)
    # What is asked for in an update is heard an update later by several processes.
    updates = {"on_train_start": (0, 0), "on_epoch_start": (1, 2), "on_update_end": (2, 3)}.get(hook, (3, 3))
    assert (alone["stop", hook]["update"], ends[0]["update"]) == updates


def test_early_stop_and_the_best_are_the_same(several, alone):
    assert alone["early"]["progress"]["epoch"] == 3
    assert_same([found["early"] for found in several], alone["early"])


def test_an_update_may_be_the_whole_epoch(several, alone):
    assert_same([found["many samples"] for found in several], alone["many samples"])


# ---- how -------------------------------------------------------------------------------------------------------------
def test_gradients_are_added_up_once_in_an_update(several):
    for found in several:
        counts = found["collectives"]
        assert 0 < counts[2] == counts[4] == counts[16] < counts["always"]


# ---- again -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_as_many_processes_resume_bit_for_bit_in_the_middle_of_an_epoch(tmp_path, mode):
    for whole, again, was_inside in in_processes(2, resumed, mode, tmp_path)[0]:
        assert was_inside and whole.keys() >= {"networks", "optimizers", "random", "processes", "epoch_log"}
        assert [name for name in whole if whole[name] != again.get(name)] == []


# ---- a small part of the torture -------------------------------------------------------------------------------------
def test_three_processes_learn_what_one_learns():
    row = agreement.run(1, sizes=(3,), twice=False)
    assert row.failures == [] and row.tried == row.passed == 2


def test_each_sample_is_evaluated_once():
    row = exact_eval.run(4, sizes=(3,), loadings=("memory", "two loading processes"))
    assert row.failures == [] and row.tried == row.passed == 4


def test_the_number_of_processes_may_change_in_an_epoch():
    row = resizing.run(15)
    assert row.failures == [] and row.tried == row.passed == 15


def unreached(directory: Path) -> tuple[str, dict[str, Any]]:
    """Train a network with parameters that no loss reaches: as it is, and with these frozen."""
    trainer = build(small_tasks.TrainerUnreached, ("--n_epoch", 1), directory / "as it is")
    with pytest.raises(UserError) as caught:
        trainer.train()
    frozen = train(small_tasks.TrainerUnreached, ("--n_epoch", 1, "--freeze", "1.unused.*"), directory / "frozen")
    return str(caught.value), weights_of(frozen)


def test_parameters_that_no_loss_reaches_are_named_and_may_be_frozen(tmp_path):
    several = in_processes(2, unreached, tmp_path)
    alone = weights_of(train(small_tasks.TrainerUnreached, ("--n_epoch", 1), tmp_path / "alone"))
    for message, weights in several:
        assert "does not reach 1.unused.weight, 1.unused.bias, and so" in message and "--freeze 1.unused" in message
        assert largest_difference(weights, alone) < 1e-6


def experts(directory: Path, *flags: str) -> list[dict[str, Any]]:
    """Train a network of which each update reaches other parameters, in three ways; return the weights."""
    found = []
    for optim, size in (("adamW", 2), ("adamW", 4), ("sgd", 4)):
        sizes = ("--train_val_sample_rate", 42, "--val_split", 5, "--batch_size", size, "--micro_batch_size", 1)
        named = (*sizes, "--optim", optim, "--lr", 0.01, "--n_epoch", 2, *flags)
        found.append(weights_of(train(small_tasks.TrainerExperts, named, directory / f"{optim}{size}")))
    return found


def test_each_update_may_reach_other_parameters(tmp_path):
    alone = experts(tmp_path / "alone")
    for found in in_processes(2, experts, tmp_path, "--find_unused"):
        assert [largest_difference(*pair) < 1e-9 for pair in zip(found, alone, strict=True)] == [True] * 3


def reach_less(directory: Path) -> tuple[str, int]:
    """Train a network of which the third update does not reach all parameters."""
    trainer = build(small_tasks.TrainerExperts, ("--n_epoch", 1, "--val_every", 0), directory)
    compute_loss = trainer.compute_loss

    def compute(batch: Any) -> Any:
        images, labels = batch
        return compute_loss((images + 1 if trainer.progress.update == 2 else images, labels))

    trainer.compute_loss = compute
    with pytest.raises(UserError) as caught:
        trainer.train()
    return str(caught.value), trainer.progress.update


def test_an_update_that_reaches_fewer_parameters_is_told_before_its_step(tmp_path):
    for message, update in in_processes(2, reach_less, tmp_path):
        assert "does not reach dark.weight, dark.bias, and so" in message and "--find_unused" in message
        assert update == 2


# ---- what they compare can fail --------------------------------------------------------------------------------------
def weigh_alike(directory: Path) -> dict:
    """Learn as if all processes had equally many samples."""
    SeveralProcesses.to_share = lambda self, loss, weight: loss * weight  # 16 samples are 6, 5 and 5
    return agreement.learn(agreement.CASES[:1], ("ddp",), directory, directory)


def test_shares_that_weigh_alike_are_seen(tmp_path):
    case = agreement.CASES[0]
    (alone,) = in_processes(1, agreement.learn, (case,), ("none",), tmp_path, tmp_path)
    several = [found[case.name, "ddp"] for found in in_processes(3, weigh_alike, tmp_path)]
    faults, _ = agreement.faults_of(case, alone[case.name, "none"], several, several)
    assert len(faults) == 1 and "weights differ by" in faults[0]


def evaluate_wrongly(way: str, num_samples: int) -> dict:
    """Evaluate with a fault: the states are joined in the wrong order, or what only keeps in step counts."""
    if way == "order":
        gather = SeveralProcesses.gather
        SeveralProcesses.gather = lambda self, value: gather(self, value)[::-1]
    else:
        EvaluatorBase.meters_aside = lambda self: contextlib.nullcontext()
    return exact_eval.evaluate_all(("fsdp",), (num_samples,), ("memory",))


@pytest.mark.parametrize(
    ("way", "num_samples", "said"), [("order", 4, "[3, 2, 0, 1]"), ("in step", 1, "[0, 0, 0]")]
)  # fmt: skip
def test_an_evaluation_that_is_not_exact_is_seen(way, num_samples, said):
    (alone,) = in_processes(1, exact_eval.evaluate_all, ("none",), (num_samples,), ("memory",))
    several = in_processes(3, evaluate_wrongly, way, num_samples)
    found = [of_process["fsdp", "memory", num_samples] for of_process in several]
    faults = exact_eval.faults_of(alone["none", "memory", num_samples], found, num_samples)
    assert f"process 0 counts the samples {said}" in faults


def test_a_sample_that_is_left_out_is_seen(monkeypatch):
    monkeypatch.setattr(sampler, "share_of", lambda count, rank, size: share_of(count, rank + (size > 1), size + 1))
    assert [fault for number in range(20) for fault in resizing.try_loaders(harness.draw(0, number))]
