"""--fold I/K: the folds are disjoint by group, together all samples, and leave the test part alone."""

from collections import Counter

import pytest
import torch

from data.data_entry import build_datasets
from data.split import shuffled_groups, split_by_group
from engine.options.parser import Options
from extras.own_data.cut import cut_parts
from extras.own_data.folds import Fold
from extras.shards.dataset import build_carvana_shards
from tests.extras.own_data.test_cut import Numbers, numbers_of, options
from tests.small_tasks import VANILLA
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


def test_the_borders_are_where_the_sizes_are_nearest_to_equal():
    groups = [[0], [1, 2, 3, 4, 5, 6], [7], [8]]  # 9 samples: thirds of 3; the large group is more than one of them
    folds = [Fold(f"{number}/3").cut(groups)[0] for number in (1, 2, 3)]
    assert folds == [[[0]], [[1, 2, 3, 4, 5, 6]], [[7], [8]]]
    assert Fold("2/4").cut(groups) == ([groups[1]], [groups[0], *groups[2:]])
    with pytest.raises(UserError, match="--fold 1/5: there are only 4 groups"):
        Fold("1/5").cut(groups)


def test_folds_are_stretches_of_the_groups_in_the_order_of_the_seed():
    order = shuffled_groups([0, 0, 1, 2, 3, 3, 4, 5], split_seed=7)
    parts = [split_by_group([0, 0, 1, 2, 3, 3, 4, 5], 1, 0, Fold(f"{number}/3"), 7) for number in (1, 2, 3)]
    every = [index for group in order for index in group]
    assert sorted(index for part in parts for index in part["val"]) == sorted(every)
    assert parts[0]["val"] == sorted(every[: len(parts[0]["val"])])
    assert all(sorted(part["train"] + part["val"]) == sorted(every) for part in parts)


def test_own_data_is_cut_into_folds_by_groups_with_equal_shares_of_the_classes():
    whole = {"all": Numbers(0, 240)}
    parts = [cut_parts(whole, options(val_split=Fold(f"{number}/4"))) for number in (1, 2, 3, 4)]
    tests = [numbers_of(each)["test"] for each in parts]
    assert tests == [tests[0]] * 4 and len(tests[0]) == 36
    val = [numbers_of(each)["val"] for each in parts]
    assert sorted(number for of_fold in val for number in of_fold) == sorted(set(range(240)) - tests[0])
    assert all({number ^ 1 for number in of_fold} == of_fold for of_fold in val)  # both of a pair
    for each in parts:
        counts = Counter(torch.as_tensor(each["val"].targets).tolist())
        assert max(counts.values()) - min(counts.values()) <= 2
    assert numbers_of(cut_parts(whole, options(val_split=Fold("1/4"), split_seed=1)))["val"] != val[0]


def test_built_in_data_is_cut_into_folds():
    given = {"data_type": "FashionMNISTSample", "data_dir": "", "train_val_sample_rate": 100, "split_seed": 0}
    parts = [build_datasets(Options(**given, fold=f"{number}/3", val_split=0.15)) for number in (1, 2, 3)]
    names = [name for each in parts for name in each["val"].names]
    assert len(set(names)) == len(names) == 100
    assert all(set(each["train"].names) == set(names) - set(each["val"].names) for each in parts)
    assert [len(each["val"]) for each in parts] == [33, 34, 33]
    assert parts[0]["test"].names == parts[2]["test"].names


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fold 6/5", "'6/5' is not I/K, such as 1/5"),
        ("--fold 1/5 --val_split 0.2", "--val_split 0.2 has no effect with --fold 1/5"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message, capsys):
    with pytest.raises((UserError, SystemExit)) as raised:
        TrainerVanilla.parse_options(flags.split())
    assert message in f"{raised.value} {capsys.readouterr().err}"


def test_a_fold_is_kept_in_the_options_and_parts_of_the_data_are_not_cut_into_folds(tmp_path):
    assert TrainerVanilla.parse_options([*VANILLA[:2], "--fold", "2/3"]).fold == "2/3"
    given = {part: Numbers(1000 * place, 24) for place, part in enumerate(("train", "val", "test"))}
    with pytest.raises(UserError, match="--fold has no effect: the data has all three parts"):
        cut_parts(given, options(asked_to_cut=["fold"]))
    with pytest.raises(UserError, match="--fold has no effect on shards"):
        build_carvana_shards("there", val_split=Fold("1/3"), train_val_sample_rate=1, test_sample_rate=1, split_seed=0)
