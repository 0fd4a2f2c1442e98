"""Options by network: each gets its own optimizer, rate, schedule and arguments; a wrong name is one line."""

import pytest
import torch

from engine.options.foreign import harmless_options
from extras.by_network import arguments_of
from extras.gan.trainer_gan import TrainerGAN
from options import train_parser
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

SMALL = ("--train_val_sample_rate", 64, "--batch_size", 8, "--gpu_devices", "cpu", "--width", 4, "--latent", 4)
EACH = {
    "optim": '{"generator": "sgd", "discriminator": "torch.optim:RMSprop"}',
    "lr": '{"generator": 2e-4, "discriminator": 1e-4}',
    "optim_args": '{"discriminator": {"alpha": 0.5}}',
    "lr_scheduler": '{"generator": "constant", "discriminator": "StepLR"}',
    "scheduler_args": '{"discriminator": {"step_size": 2}}',
}  # fmt: skip


def flags_of(**values) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def gan(build):
    return lambda *flags: build("--data_type", "FashionMNISTSample", *SMALL, *flags, task=TrainerGAN)


def test_each_network_gets_its_own(gan, tmp_path):
    trainer = gan(*flags_of(**EACH), "--param_lr", "layers.0.*=0.5x")
    generator, discriminator = (trainer.optimizers[name] for name in ("generator", "discriminator"))
    assert isinstance(generator, torch.optim.SGD) and isinstance(discriminator, torch.optim.RMSprop)
    assert [group["initial_lr"] for group in generator.param_groups] == [2e-4, 1e-4]
    assert [group["initial_lr"] for group in discriminator.param_groups] == [1e-4, 5e-5]
    assert discriminator.param_groups[0]["alpha"] == 0.5
    assert trainer.schedulers["discriminator"].step_size == 2
    assert type(trainer.schedulers["generator"]) is not type(trainer.schedulers["discriminator"])


def test_the_arguments_of_one_leave_those_of_the_other(gan):
    trainer = gan("--optim_args", '{"generator": {"betas": [0.1, 0.9]}}')
    betas = {name: tuple(optimizer.param_groups[0]["betas"]) for name, optimizer in trainer.optimizers.items()}
    assert betas["generator"] == (0.1, 0.9) and betas["discriminator"][0] == 0.5  # of --beta1


def test_a_file_takes_them_as_well(gan, tmp_path):
    (tmp_path / "a.yaml").write_text("lr: {generator: 0.002, discriminator: 0.001}\noutput_dir: " + str(tmp_path))
    opt = TrainerGAN.parse_options(["--config", str(tmp_path / "a.yaml"), "--set", "lr.generator=0.003"])
    assert opt.lr == {"generator": 0.003, "discriminator": 0.001}


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--lr", '{"generator": 1e-4, "judge": 1e-4}'], "--lr: no network 'judge' is trained; there are disc"),
     (["--lr", '{"generator": 1e-4}'], "--lr is given by network, and has none for discriminator"),
     (["--optim_args", '{"generater": {"eps": 1e-3}}'], "no network 'generater' is trained .did you mean 'generator'"),
     (["--scheduler_args", '{"x": {}}', "--lr_scheduler", "StepLR"], "--scheduler_args: no network 'x' is trained")],
)  # fmt: skip
def test_a_wrong_name_is_one_line_with_the_names(gan, flags, message):
    with pytest.raises(UserError, match=message):
        gan(*flags)


@pytest.mark.parametrize(
    "flags", [["--lr", '{"model": -1}'], ["--lr", '{"model": true}'], ["--optim", '{"model": "adm"}'],
              ["--lr", '{"model": {"a": 1}}'], ["--batch_size", '{"model": 1}'], ["--lr", "{"]],
)  # fmt: skip
def test_each_value_is_checked_as_that_of_the_option(flags, capsys):
    with pytest.raises(SystemExit):
        TrainerVanilla.parse_options(flags)
    assert flags[0] in capsys.readouterr().err


def test_the_only_network_may_be_named_and_arguments_that_are_mappings_stay():
    assert arguments_of({"model": {"eps": 1}}, "model", ["model"]) == {"eps": 1}
    assert arguments_of({"inner": {"eps": 1}}, "model", ["model"]) == {"inner": {"eps": 1}}
    assert arguments_of({"model": {"eps": 1}, "eps": 2}, "model", ["model"]) == {"model": {"eps": 1}, "eps": 2}


def test_a_checkpoint_cannot_name_code_by_network():
    saved = {"optim": {"model": "evil:Optimizer"}}
    with pytest.raises(UserError, match="names user code"):
        harmless_options(saved, "a.pth", lambda: train_parser(TrainerVanilla), [], [])
    assert harmless_options({"lr": {"model": 0.5}}, "a.pth", lambda: train_parser(TrainerVanilla), [], [])
    assert harmless_options({"optim": {"model": "sgd"}}, "a.pth", lambda: train_parser(TrainerVanilla), [], [])


def test_a_mapping_trains_as_the_value(train):
    flags = ("--train_val_sample_rate", 40, "--batch_size", 16, "--n_epoch", 1, "--gpu_devices", "cpu")
    states = [train("--data_type", "FashionMNISTSample", *flags, "--lr", lr).model.state_dict()
              for lr in (0.01, '{"model": 0.01}')]  # fmt: skip
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
