"""An option that changes nothing beside the others is refused, if it was given by a person."""

import json

import pytest

from engine.options.parser import changed
from engine.registry import REGISTERED
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from examples.trainer_table import TrainerTable
from extras.gan.trainer_gan import TrainerGAN
from extras.without_effect import NEEDS
from options import test_parser as parser_of_test
from options import train_parser
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

# The option, the others with which it has no effect, and others with which it has one.
VANILLA = [
    ("--momentum 0.8", "", "--optim sgd"),
    ("--momentum 0.9", "--optim adam", "--optim nesterov"),  # also as it is by default
    ("--momentum 0.8", "--optim rmsprop", "--optim RMSprop"),  # the class of torch has one
    ("--weight_decay 0.1", "--optim Rprop", "--optim adamW"),
    ("--no_decay bias", "--weight_decay 0", ""),
    ("--clip_type value", "", "--clip 1"),
    ("--lr 0.1", "--lr_scheduler CyclicLR", "--lr_scheduler StepLR"),
    ("--lr_decay_rate 0.5", "", "--lr_scheduler exponential"),
    ("--lr_min 1e-5", "--lr_scheduler constant", ""),
    ("--scheduler_step epoch", "--lr_scheduler constant", "--lr_scheduler constant --warmup_epoch 1"),
    ("--warmup_multiplier 10", "", "--warmup_epoch 1"),
    ("--sync_bn", "", "--nproc 2"),
    ("--max_restarts 2", "--gpu_devices 0,1 --parallel dp", "--gpu_devices 0,1 --parallel ddp"),
    ("--max_restarts 1", "", "--nproc 2"),
    ("--patience 3", "--val_every 0", ""),
    ("--monitor loss", "--val_every 0", ""),
    ("--metrics f1", "--val_every 0", ""),
    ("--max_skips 3", "", "--nan_policy skip"),
    ("--save_every 2", "--save_every_updates 9", ""),
    ("--data_dir there", "", "--data_type FashionMNIST"),
    ("--label_smoothing 0.2", "--loss_type Focal", "--loss_type Focal CE:0.5"),
    ("--set max_skips=3", "", "--nan_policy skip"),
]
SEG = [
    ("--deep_supervision", "", "--model_type UNetpp"),
    ("--cache_dir there", "--no-cache", ""),
    ("--cache_dir there", "--data_type MultiImage", ""),
    ("--shard_cache_gb 5", "", "--data_type CarvanaShards"),
    ("--shuffle_shards 2", "", "--data_type CarvanaShards"),
    ("--eval_batch_size 3", "--mode padding", ""),
]


@pytest.mark.parametrize(
    ("task", "option", "without", "effective"),
    [(TrainerVanilla, *row) for row in VANILLA]
    + [(TrainerSeg, *row) for row in SEG]
    + [(TrainerGAN, "--beta1 0.9", "--optim sgd", ""), (TrainerGAN, "--momentum 0.5", "", "--optim sgd")],
)
def test_it_is_refused_and_with_others_it_counts(task, option, without, effective):
    given = option.split()
    with pytest.raises(UserError) as refused:
        task.parse_options([*given, *without.split()])
    name = given[-1].split("=")[0] if given[0] == "--set" else given[0].strip("-")
    assert f"--{name} " in str(refused.value) and " has no effect with --" in str(refused.value)
    assert str(refused.value).count("\n") == 0
    task.parse_options([*given, *effective.split()])


def test_the_message_names_the_values_and_what_the_option_is_for():
    with pytest.raises(UserError) as refused:
        TrainerVanilla.parse_options(["--lr_decay_rate", "0.5"])
    message = (
        "--lr_decay_rate 0.5 has no effect with --lr_scheduler cosine: it is for --lr_scheduler step or exponential."
    )
    assert str(refused.value) == f"{message} Leave it out."


@pytest.mark.parametrize(
    "flags",
    [
        "--max_restarts 0",
        "--parallel none",
        "--no-sync_bn",
        "--clip_type norm",
        "--scheduler_step update",
        "--max_skips 0",
    ],
)
def test_what_is_off_or_the_default_of_a_choice_is_accepted(flags):
    TrainerVanilla.parse_options(flags.split())


def test_a_launcher_may_start_a_single_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    TrainerVanilla.parse_options(["--max_restarts", "3"])


# ---- files and earlier runs ------------------------------------------------------------------------------------------
def test_an_option_file_is_held_to_it_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("momentum: 0.5")
    with pytest.raises(UserError, match=r"--momentum 0\.5 has no effect with --optim adamW"):
        TrainerVanilla.parse_options(["--config", str(tmp_path / "mine.yaml")])
    (tmp_path / "all.yaml").write_text("{momentum: 0.9, optim: adamW, parallel: none, max_skips: 10, clip_type: norm}")
    TrainerVanilla.parse_options(["--config", str(tmp_path / "all.yaml")])


@pytest.mark.parametrize(("task", "run"), [(TrainerVanilla, "vanilla_run"), (TrainerSeg, "seg_run")])
def test_a_run_is_made_again_from_its_own_options(task, run, request, tmp_path):
    (config,) = request.getfixturevalue(run).glob("config_*.json")
    saved = task.parse_options(["--config", str(config)])
    (tmp_path / "copy.json").write_text(config.read_text())
    again = task.parse_options(["--config", str(tmp_path / "copy.json")])
    assert changed(again, config=None) == changed(saved, config=None)
    values = json.loads(config.read_text()) | {"optim": "sgd", "momentum": 0.5}
    (tmp_path / config.name).write_text(json.dumps(values))
    other = task.parse_options(["--config", str(tmp_path / config.name), "--optim", "adamW"])
    assert (other.optim, other.momentum) == ("adamW", 0.5)


def test_a_resumed_run_and_a_checkpoint_keep_what_they_have(build):
    trainer = build("--nan_policy", "skip", "--max_skips", 3)
    trainer.save("last")
    resumed = TrainerVanilla.parse_options(["--resume", str(trainer.run_dir.path), "--nan_policy", "stop"])
    assert (resumed.nan_policy, resumed.max_skips) == ("stop", 3)
    with pytest.raises(UserError, match="--max_skips 4 has no effect with --nan_policy stop"):
        TrainerVanilla.parse_options(
            ["--resume", str(trainer.run_dir.path), "--nan_policy", "stop", "--max_skips", "4"]
        )


def test_an_evaluation_is_held_to_it_too(vanilla_run, seg_run):
    flags = ["--model_path", str(next(seg_run.glob("*_best_ckpt.pth")))]
    for option, others in (
        ("--n_snap 3", "--no-viz"),
        ("--patch_size 64", "--mode padding"),
        ("--eval_batch_size 3", "--mode padding"),
        ("--allow_seen", "--split train"),
    ):
        with pytest.raises(UserError, match=f"{option.split()[0]} .*has no effect with"):
            EvaluatorSeg.parse_options([*flags, *option.split(), *others.split()])
        EvaluatorSeg.parse_options([*flags, *option.split()])
    EvaluatorSeg.parse_options([*flags, "--patch_size", "64", "--mode", "padding", "--split", "train"])
    flags = ["--model_path", str(next(vanilla_run.glob("*_best_ckpt.pth")))]
    EvaluatorVanilla.parse_options([*flags, "--eval_batch_size", "3"])  # it has no --mode, and no --val_every


# ---- tasks of one's own ----------------------------------------------------------------------------------------------
class OwnOptimizer(TrainerVanilla):
    """May read any option."""

    def build_optimizers(self):
        return super().build_optimizers()


def test_a_task_that_makes_a_part_itself_may_read_any_option():
    OwnOptimizer.parse_options(["--momentum", "0.5"])
    with pytest.raises(UserError, match="--max_skips"):
        OwnOptimizer.parse_options(["--max_skips", "5"])


def test_every_name_is_an_option(monkeypatch):
    for kind, names in REGISTERED.items():
        monkeypatch.setitem(REGISTERED, kind, dict(names))  # other tests list the names of the template alone
    from examples.text_data import build_verses
    from examples.text_task import TextCNN, TrainerText

    monkeypatch.setitem(REGISTERED["data"], "Verses", build_verses)  # where its own tests have taken them out
    monkeypatch.setitem(REGISTERED["model"], "TextCNN", TextCNN)
    parsers = [train_parser(task) for task in (TrainerVanilla, TrainerSeg, TrainerGAN, TrainerTable, TrainerText)]
    known = {name for parser in [*parsers, parser_of_test(EvaluatorSeg)] for name in parser.known}
    assert {name for names in NEEDS.values() for name in names} <= known
    conditions = {one.strip("!").partition("=")[0] for need in NEEDS for one in need.split("|")}
    assert conditions <= known


@pytest.mark.parametrize(
    ("name", "values", "option", "other"),
    [
        ("--optim", {"generator": "rmsprop", "discriminator": "sgd"}, "--momentum 0.5", "adam"),
        ("--optim", {"generator": "sgd", "discriminator": "adam"}, "--beta1 0.9", "rmsprop"),
        ("--lr_scheduler", {"generator": "constant", "discriminator": "cosine"}, "--lr_min 1e-6", "constant"),
        ("--lr_scheduler", {"generator": "cosine", "discriminator": "step"}, "--lr_decay_rate 0.5", "constant"),
    ],
)
def test_an_option_that_one_of_two_networks_uses_counts(name, values, option, other):
    TrainerGAN.parse_options([name, json.dumps(values), *option.split()])
    with pytest.raises(UserError, match=f"{option.split()[0]} .* has no effect with"):
        TrainerGAN.parse_options([name, json.dumps(values | {"discriminator": other}), *option.split()])
