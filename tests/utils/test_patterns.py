"""Patterns find parameters by the names that these have without wrappers, and say so when they find none."""

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from utils.errors import UserError
from utils.patterns import matching, named_parameters


def networks() -> dict[str, nn.Module]:
    return {"generator": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "critic": nn.Sequential(nn.Linear(2, 1))}


def test_a_pattern_is_for_all_networks_and_with_a_name_for_one():
    both = networks()
    generator, critic = both["generator"], both["critic"]
    assert matching(both, "0.*", "--freeze") == [*generator[0].parameters(), *critic[0].parameters()]
    assert matching(both, "critic:*", "--freeze") == [*critic.parameters()]
    assert matching(both, "[01].weight", "--freeze") == [generator[0].weight, generator[1].weight, critic[0].weight]


def test_what_wrappers_put_into_names_does_not_count():
    network = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert next(iter(network.state_dict(keep_vars=True))) == "0.weight"  # torch takes it away here, but not there:
    assert next(name for name, _ in network.named_parameters()) == "0._checkpoint_wrapped_module.weight"
    assert [name for name, _ in named_parameters(network)] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(matching({"model": network}, "0.*", "--freeze")) == 2


def test_a_shared_parameter_goes_by_either_name():
    network = nn.ModuleDict({"embed": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    network["head"].weight = network["embed"].weight
    for pattern in ("embed.weight", "head.weight"):
        assert matching({"model": network}, pattern, "--freeze") == [network["embed"].weight]
    assert len(matching({"model": network}, "*", "--freeze")) == 3


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("0.wieght", r"did you mean '0\.weight'.*There are 0\.weight, 0\.bias"), ("x*", "'x\\*' matches no parameter"),
     ("discriminator:0.*", "no network 'discriminator', only generator, critic"), ("critic:1.*", "matches no")],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_named_with_names_that_there_are(pattern, told):
    with pytest.raises(UserError, match=f"--freeze .*{told}"):
        matching(networks(), pattern, "--freeze")


def test_of_many_names_some_are_shown():
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(UserError, match=r"3\.bias and 32 more"):
        matching({"model": network}, "encoder*", "--freeze")
