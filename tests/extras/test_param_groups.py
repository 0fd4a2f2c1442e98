"""Parameters by pattern: found by their plain names, each in one group with its rate, or frozen to the last bit."""

from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from engine.checkpoints.restore import set_state
from engine.checkpoints.state import get_state
from engine.optimizers import freeze
from extras.activation_checkpointing import checkpoint_activations
from extras.param_groups import (
    freeze_parameters,
    frozen_table,
    group_table,
    groups_of_networks,
    matching_parameters,
    named_parameters,
    param_groups,
    parse_rate,
)
from trainer import TrainerBase
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError
from utils.scheduler import build_scheduler, learning_rates


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def named(model, groups) -> dict:
    """By (pattern, rate, weight decay) the names in a group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {(group["name"], group.get("lr"), group.get("weight_decay")): [names[id(p)] for p in group["params"]]
            for group in groups}  # fmt: skip


def test_of_several_patterns_the_last_counts_and_nothing_is_lost_or_twice():
    model = network()
    groups = named(model, param_groups(model, {"*.weight": 0.5, "4.*": "0.1x"}, lr=0.2))
    assert groups == {
        ("", None, None): ["0.bias", "1.bias", "2.bias", "3.bias"],
        ("*.weight", 0.5, None): ["0.weight", "1.weight", "2.weight", "3.weight"],
        ("4.*", 0.1 * 0.2, None): ["4.weight", "4.bias"],
    }


def test_words_and_patterns_say_what_has_no_weight_decay():
    model = network()
    assert named(model, param_groups(model, {}, no_decay=["norm"]))["", None, 0.0] == [
        "1.weight", "1.bias", "3.weight", "3.bias"
    ]  # fmt: skip
    assert named(model, param_groups(model, {}, no_decay=["bias", "0.*"]))["", None, 0.0] == [
        "0.weight", "0.bias", "1.bias", "2.bias", "3.bias", "4.bias"
    ]  # fmt: skip
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))  # of no dimension, and of no name above
    assert named(model, param_groups(model, {}, no_decay=["1d"]))["", None, 0.0] == [
        "scale", "0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.bias"
    ]  # fmt: skip


def test_frozen_parameters_are_in_no_group_and_a_pattern_for_them_alone_is_an_error():
    model = network()
    model[0].requires_grad_(False)
    groups = param_groups(model, {"[04].*": 0.5})  # of those that it matches, some are trained
    assert named(model, groups)["[04].*", 0.5, None] == ["4.weight", "4.bias"]
    assert not any(name.startswith("0.") for names in named(model, groups).values() for name in names)
    for settings in ({"rates": {"0.*": 0.5}}, {"rates": {}, "no_decay": ["0.bias"]}):
        with pytest.raises(UserError, match="matches only parameters that are frozen"):
            param_groups(model, **settings)


def test_each_network_takes_its_patterns():
    networks = {"generator": network(), "critic": nn.Linear(2, 1)}
    groups = groups_of_networks(networks, {"0.*": 0.5, "critic:weight": "2x"}, lr=0.1, no_decay=["generator:*"])
    assert [(g["name"], len(g["params"]), g.get("weight_decay")) for g in groups["generator"]] == [
        ("", 8, 0.0), ("0.*", 2, 0.0)
    ]  # fmt: skip
    assert named(networks["critic"], groups["critic"]) == {
        ("", None, None): ["bias"], ("weight", 0.2, None): ["weight"]
    }  # fmt: skip
    with pytest.raises(UserError, match=r"--param_lr '9\.\*' matches no parameter"):
        groups_of_networks(networks, {"9.*": 0.5}, lr=0.1)


@pytest.mark.parametrize("text", [
    "", "=", "x", "=1", "a=", "a=0", "a=-1", "a=nan", "a=inf", "a=1e999", "a=0x", "a=x", "a=1y", "a=0.1xx", " =1"
])  # fmt: skip
def test_what_is_no_pattern_with_a_rate_is_refused(text):
    with pytest.raises(UserError):
        parse_rate(text)


def test_a_multiple_needs_something_to_multiply():
    with pytest.raises(UserError, match="lr must be given"):
        param_groups(network(), {"0.*": "0.1x"})


@pytest.mark.parametrize("lr_min", [0.0, 0.01])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
def test_any_schedule_keeps_the_ratio_of_the_groups(schedule, lr_min):
    optimizer = torch.optim.SGD(param_groups(network(), {"0.*": 0.03, "4.*": "10x"}, lr=0.1), lr=0.1)
    scheduler = build_scheduler(
        optimizer, schedule, num_epochs=2, updates_per_epoch=5, warmup_epoch=1, lr_min=lr_min, lr_decay_rate=0.5
    )
    for _ in range(10):
        rates = learning_rates({"model": optimizer})
        assert list(rates) == ["lr", "lr/0.*", "lr/4.*"]
        assert [rates["lr/0.*"], rates["lr/4.*"]] == pytest.approx([0.3 * rates["lr"], 10 * rates["lr"]])
        optimizer.step()
        scheduler.step()


def test_the_table_tells_count_rate_and_decay_and_is_empty_by_default():
    optimizer = torch.optim.AdamW(param_groups(network(), {"4.*": "0.1x"}, lr=0.1, no_decay=["bias"]), lr=0.1)
    build_scheduler(optimizer, num_epochs=1, updates_per_epoch=5, warmup_epoch=1)  # it begins with a low rate
    rows = [line.split() for line in group_table({"model": optimizer}).splitlines()]
    assert rows[1:] == [
        ["all", "others", "21", "4", "0.1", "0.01"], ["all", "others", "12", "4", "0.1", "0"],
        ["4.*", "3", "1", "0.01", "0.01"], ["4.*", "1", "1", "0.01", "0"],
    ]  # fmt: skip
    assert group_table({"model": torch.optim.SGD(network().parameters(), lr=0.1)}) == ""
    without_decay = torch.optim.Rprop([{"params": network().parameters(), "name": "all of it"}], lr=0.1)
    assert group_table({"model": without_decay}).split()[-2:] == ["0.1", "0"]


@pytest.mark.parametrize("pattern", ["2.*", "[0].*"])
def test_a_state_of_other_groups_is_refused(pattern):
    first, second = (torch.optim.SGD(param_groups(network(), {p: 0.5}), lr=0.1) for p in ("0.*", pattern))
    with pytest.raises(UserError, match="group"):
        set_state(first, get_state(second), "The optimizer")


def test_a_run_keeps_its_groups_on_resume(build, train):
    trainer = train("--param_lr", "layers.0.*=0.1x", "--no_decay", "bias", "--lr_min", 1e-4)
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["", "", "layers.0.*", "layers.0.*"]
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    with pytest.raises(UserError, match=r"--param_lr .* contradicts the run"):
        build("--resume", trainer.run_dir.path, "--param_lr", "layers.0.*=0.2x")


def test_without_an_option_there_is_one_group_as_ever(build):
    (group,) = build().optimizer.param_groups
    assert "name" not in group and len(group["params"]) == 6


# ---- patterns --------------------------------------------------------------------------------------------------------
def networks() -> dict[str, nn.Module]:
    return {"generator": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "critic": nn.Sequential(nn.Linear(2, 1))}


def test_a_pattern_is_for_all_networks_and_with_a_name_for_one():
    both = networks()
    generator, critic = both["generator"], both["critic"]
    assert matching_parameters(both, "0.*", "--freeze") == [*generator[0].parameters(), *critic[0].parameters()]
    assert matching_parameters(both, "critic:*", "--freeze") == [*critic.parameters()]
    assert matching_parameters(both, "[01].weight", "--freeze") == [
        generator[0].weight,
        generator[1].weight,
        critic[0].weight,
    ]


def test_what_wrappers_put_into_names_does_not_count():
    network = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert next(iter(network.state_dict(keep_vars=True))) == "0.weight"  # torch takes it away here, but not there:
    assert next(name for name, _ in network.named_parameters()) == "0._checkpoint_wrapped_module.weight"
    assert [name for name, _ in named_parameters(network)] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(matching_parameters({"model": network}, "0.*", "--freeze")) == 2


def test_a_shared_parameter_goes_by_either_name():
    network = nn.ModuleDict({"embed": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    network["head"].weight = network["embed"].weight
    for pattern in ("embed.weight", "head.weight"):
        assert matching_parameters({"model": network}, pattern, "--freeze") == [network["embed"].weight]
    assert len(matching_parameters({"model": network}, "*", "--freeze")) == 3


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("0.wieght", r"did you mean '0\.weight'.*There are 0\.weight, 0\.bias"), ("x*", "'x\\*' matches no parameter"),
     ("discriminator:0.*", "no network 'discriminator', only generator, critic"), ("critic:1.*", "matches no")],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_named_with_names_that_there_are(pattern, told):
    with pytest.raises(UserError, match=f"--freeze .*{told}"):
        matching_parameters(networks(), pattern, "--freeze")


def test_of_many_names_some_are_shown():
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(UserError, match=r"3\.bias and 32 more"):
        matching_parameters({"model": network}, "encoder*", "--freeze")


# ---- freezing --------------------------------------------------------------------------------------------------------
class WithNorm(TrainerVanilla):
    """Vanilla between batch normalization: "0" of the image's pixels, "3" of the logits."""

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(nn.BatchNorm2d(1), network, nn.Dropout(0.1), nn.BatchNorm1d(10))}


def small() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    return nn.Sequential(body, nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))


def set_train_mode(networks, in_eval_mode):
    opt = Namespace(unfreeze=None)
    TrainerBase.set_train_mode(Namespace(networks=networks, in_eval_mode=in_eval_mode, optimizers={}, opt=opt))


def test_normalization_stays_in_eval_mode_when_it_or_what_is_around_it_is_frozen():
    network = small()
    in_eval_mode = freeze_parameters({"model": network}, freeze=["0.*", "1.weight"])
    set_train_mode({"model": network}, in_eval_mode)
    assert in_eval_mode == {"model": ["0.1"]}
    assert [m.training for m in (network[0][0], network[0][1], network[1], network[3])] == [True, False, True, True]
    assert freeze_parameters({"model": network}, freeze=["1.bias"]) == {"model": ["0.1", "1"]}


def test_it_is_found_again_in_networks_that_were_wrapped_or_exchanged():
    network = checkpoint_activations(small())
    in_eval_mode = freeze_parameters({"model": network}, freeze=["0.*"])
    network.eval()
    set_train_mode({"model": nn.SyncBatchNorm.convert_sync_batchnorm(network)}, in_eval_mode)
    kinds = [(type(m).__name__, m.training) for m in network.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert kinds == [("SyncBatchNorm", False), ("SyncBatchNorm", True), ("SyncBatchNorm", True)]
    assert "in eval mode: 0.1" in frozen_table({"model": network}, in_eval_mode)


def test_train_only_freezes_the_rest_and_freeze_takes_of_it():
    network = small()
    freeze_parameters({"model": network}, train_only=["2.*", "1.*"], freeze=["1.bias"])
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["1.weight", "2.weight", "2.bias"]


def test_without_an_option_nothing_is_touched_not_even_what_a_task_has_frozen():
    network = small()
    network[0].requires_grad_(False)
    in_eval_mode = freeze(Namespace(freeze=None, train_only=None, unfreeze=None), {"model": network})
    set_train_mode({"model": network}, in_eval_mode)
    assert in_eval_mode == {} and all(module.training for module in network.modules())


def test_modules_that_the_user_has_frozen_in_eval_mode_stay_there():
    network = nn.Sequential(small(), nn.Dropout(), nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].requires_grad_(False).eval()
    network[1].eval()  # a trained network around it: it is not frozen
    network[3].eval()  # batch normalization may be trained with fixed statistics
    in_eval_mode = freeze(Namespace(freeze=None, train_only=None, unfreeze=None), {"model": network})
    set_train_mode({"model": network}, in_eval_mode)
    assert in_eval_mode == {"model": ["0", "3"]}
    assert [module.training for module in network] == [False, True, True, False]
    assert not any(module.training for module in network[0].modules())
    network.eval()  # as a library may return it
    opt = Namespace(freeze=["2.weight"], train_only=None, unfreeze=None)
    set_train_mode({"model": network}, freeze(opt, {"model": network}))
    assert [module.training for module in network] == [False, True, True, True]
    network.requires_grad_(False).eval()
    assert freeze(Namespace(freeze=None, train_only=None, unfreeze=None), {"judge": network}) == {"judge": [""]}


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"freeze": ["*"]}, r"--freeze \*: nothing is left"),
     ({"freeze": ["2.*"], "train_only": ["2.*"]}, "and --train_only"),
     ({"train_only": ["a:*"]}, "in the network 'b'"), ({"train_only": ["nothing"]}, "matches no parameter")],
)  # fmt: skip
def test_when_nothing_is_left_to_be_trained_that_is_an_error(settings, told):
    names = ("a", "b") if "'b'" in told else ("model",)
    with pytest.raises(UserError, match=told):
        freeze_parameters({name: small() for name in names}, **settings)


def test_a_run_leaves_what_is_frozen_as_it_was_and_out_of_the_optimizer(train, build, weights):
    flags = ("--freeze", "0.*", "1.layers.0.*", "--optim", "sgd", "--weight_decay", 0.1)
    before, trainer = weights(build(*flags, task=WithNorm)), train(*flags, task=WithNorm)
    after = weights(trainer)
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == [*(f"0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
                    "1.layers.0.weight", "1.layers.0.bias"]  # fmt: skip
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 6


def test_if_it_were_trained_its_statistics_would_move(train, build, weights):
    before, after = weights(build(task=WithNorm)), weights(train(task=WithNorm))
    assert not torch.equal(before["0.running_mean"], after["0.running_mean"])
