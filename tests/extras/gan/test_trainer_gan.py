"""Two networks with a step each in one update, and the evaluation of the generated images."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from extras.callbacks.pictures import Pictures
from extras.gan import trainer_gan
from extras.gan.DCGAN import draw_noise
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import LEARN, TrainerGAN, frozen
from tests.processes import in_processes
from utils.errors import UserError

SMALL = ("--width", 4, "--latent", 8)
SGD = (*SMALL, "--no-batch_norm", "--optim", "sgd", "--lr", 0.05, "--n_epoch", 1)  # Adam makes much of rounding
OF_THE_LAUNCH = ("options", "callbacks", "seconds")


@pytest.fixture(autouse=True)
def few_lessons(monkeypatch):
    monkeypatch.setattr(trainer_gan, "LESSONS", 20)


class Interrupts(Callback):
    def __init__(self, update):
        self.update = update

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            raise KeyboardInterrupt


def all_weights(trainer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.detach().clone()
            for name, network in trainer.networks.items() for key, value in network.state_dict().items()}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with all callbacks, 2 epochs of 8 updates. Tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_gan, "LESSONS", 20)
        argv = ["--train_val_sample_rate", 600, "--n_epoch", 2, "--gpu_devices", "cpu", "--seed", 0, *SMALL,
                "--output_dir", tmp_path_factory.mktemp("gan"), "--log_every", 4]  # fmt: skip
        trainer = TrainerGAN(TrainerGAN.parse_options(list(map(str, argv))))
        before = all_weights(trainer)
        trainer.train()
        return trainer, before


# ---- the step --------------------------------------------------------------------------------------------------------
def test_both_networks_learn_and_the_judge_does_not(finished):
    trainer, before = finished
    moved = {key.split(".")[0] for key, value in all_weights(trainer).items() if not torch.equal(value, before[key])}
    assert moved == set(LEARN) == set(trainer.optimizers) == set(trainer.schedulers)
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {f"train/{what}_{name}" for name in LEARN for what in ("loss", "grad_norm")}
    wanted |= {"val/samples/score", "val/samples/confident", "val/samples/diversity", "val/real/score",
               "val/judge_accuracy", "lr/generator", "lr/discriminator"}  # fmt: skip
    assert wanted <= rows[-1].keys() and all(float(row[name]) >= 0 for row in rows for name in wanted)


def test_the_generator_is_taught_by_the_discriminator_that_was_just_stepped(build):
    """By hand: two updates with plain torch give the same weights, bit for bit."""
    trainer, hand = build(*SMALL, "--no-batch_norm", task=TrainerGAN), build(*SMALL, "--no-batch_norm", task=TrainerGAN)
    g, d = hand.networks["generator"], hand.networks["discriminator"]
    criterion, ones = torch.nn.BCEWithLogitsLoss(), torch.ones(64)
    for place, update in enumerate(trainer.train_loader.updates(0)):
        if place == 2:
            break
        trainer.train_update(update)
        ((images, _),) = update.micro_batches
        (noise,) = hand.noise(update)
        hand.progress.finish_update(64)
        hand.optimizers["discriminator"].zero_grad()
        (criterion(d(images), ones) + criterion(d(g(noise).detach()), 0 * ones)).backward()
        hand.optimizers["discriminator"].step()
        hand.optimizers["generator"].zero_grad()
        criterion(d(g(noise)), ones).backward()
        hand.optimizers["generator"].step()
    theirs = all_weights(hand)
    assert all(torch.equal(value, theirs[key]) for key, value in all_weights(trainer).items())
    assert all(parameter.requires_grad for parameter in trainer.networks["discriminator"].parameters())


@pytest.mark.parametrize("flags", [("--micro_batch_size", 7), ("--micro_batch_size", 64, "--num_workers", 1)])
def test_pieces_and_loading_processes_change_nothing(train, flags):
    plain, other = (train(*SGD, *f, task=TrainerGAN) for f in ((), flags))
    for key, value in all_weights(plain).items():
        torch.testing.assert_close(all_weights(other)[key], value, atol=2e-5, rtol=1e-4)


def two_updates(flags: list[str]) -> tuple[str, dict[str, torch.Tensor]]:
    """Train in one of several processes; return the run directory, and the networks of its checkpoint."""
    trainer = TrainerGAN(TrainerGAN.parse_options(flags))
    trainer.train()
    path = trainer.run_dir.path
    return str(path), load_checkpoint(path / "GAN_last_ckpt.pth")["networks"]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_make_the_updates_of_one(train, tmp_path, vanilla_run, mode):
    judge = ("--judge_type", "Vanilla", "--judge", vanilla_run / "Vanilla_best_ckpt.pth")
    flags = [*SGD, *judge, "--batch_size", 30, "--limit_batches", 2]
    alone = train(*flags, task=TrainerGAN)
    common = ("--train_val_sample_rate", 600, "--seed", 0, "--output_dir", tmp_path / "two", "--parallel", mode)
    flags = [str(flag) for flag in (*flags, *common, "--logger", "csv", "--gpu_devices", "cpu")]
    (path, networks), _ = in_processes(2, two_updates, flags)
    for name, network in alone.networks.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(networks[name][key], value, atol=2e-5, rtol=1e-4)
    assert len(list(Path(path).glob("samples/*.png"))) == (0 if mode == "fsdp" else 1)


# ---- resume ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("update", [3, 8])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(build, train, differences, update):
    whole = train(*SMALL, task=TrainerGAN)
    broken = build(*SMALL, task=TrainerGAN, callbacks=[Interrupts(update)])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    torch.manual_seed(99)
    resumed = train("--resume", broken.run_dir.path, task=TrainerGAN)
    states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert differences(*states, OF_THE_LAUNCH) == []
    assert states[0]["networks"].keys() == {*LEARN, "judge"} and states[0]["progress"]["update"] == 16


# ---- pictures --------------------------------------------------------------------------------------------------------
def test_a_picture_per_epoch_is_saved_and_shown(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, _ = finished
    paths = sorted((trainer.run_dir.path / "samples").iterdir())
    assert [path.name for path in paths] == ["epoch_0001.png", "epoch_0002.png"]
    first, second = (Image.open(path) for path in paths)
    assert first.size == second.size and first.tobytes() != second.tobytes()
    events = EventAccumulator(str(trainer.run_dir.path / "summary")).Reload()
    assert len(events.Images("val/predictions")) == 2


def test_pictures_do_not_disturb_the_training(train, tmp_path):
    (tmp_path / "samples").mkdir()
    without = train(*SMALL, task=TrainerGAN)
    watched = train(*SMALL, task=TrainerGAN, callbacks=[Pictures(tmp_path / "samples")])
    assert len(list((tmp_path / "samples").iterdir())) == 2
    theirs = all_weights(watched)
    assert all(torch.equal(value, theirs[key]) for key, value in all_weights(without).items())


def test_the_noise_of_pictures_and_evaluations_is_always_the_same(finished):
    evaluator = finished[0].evaluator
    with evaluator.inference():
        first = evaluator.draw()
        torch.rand(3)
        assert torch.equal(first, evaluator.draw())
    assert torch.equal(draw_noise(5, 8, seed=1), draw_noise(5, 8, seed=1))
    assert not torch.equal(draw_noise(5, 8, seed=1), draw_noise(5, 8, seed=2))


# ---- evaluation ------------------------------------------------------------------------------------------------------
def test_the_size_of_batches_does_not_change_what_is_measured(build):
    results = []
    for size in (90, 7):
        trainer = build(*SMALL, "--eval_batch_size", size, task=TrainerGAN)
        results.append(trainer.evaluator.evaluate(trainer.val_loader))
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6)


def test_a_checkpoint_is_evaluated_with_its_own_judge(finished, tmp_path):
    trainer, _ = finished
    path = trainer.checkpointer.path("best")
    argv = ["--model_path", str(path), "--save_path", str(tmp_path), "--split", "val"]
    evaluator = EvaluatorGAN.run_test(EvaluatorGAN.parse_options(argv))
    assert (evaluator.output_dir / "samples.png").stat().st_size > 1000
    logged = (evaluator.output_dir / "eval_log.txt").read_text()
    assert "The score agrees with the one that is stored" in logged


def test_an_evaluation_builds_the_networks_again_with_their_arguments(train, tmp_path):
    of_generator = ("--model_args", '{"generator": {"width": 8, "latent": 5}}')
    arguments = (*of_generator, "--set", "model_args.discriminator.width=6")
    trainer = train(*SMALL, *arguments, "--debug", task=TrainerGAN)
    path = trainer.checkpointer.path("best")
    assert load_checkpoint(path)["options"]["model_args"]["discriminator"] == {"width": 6}
    argv = ["--model_path", str(path), "--save_path", str(tmp_path), "--split", "val"]
    evaluator = EvaluatorGAN.run_test(EvaluatorGAN.parse_options(argv))
    generator, discriminator = (evaluator.networks[name] for name in ("generator", "discriminator"))
    assert (generator.latent, generator.layers[0].out_channels, discriminator.layers[0].out_channels) == (5, 16, 6)
    assert evaluator.noise.shape[1] == 5
    theirs = trainer.networks["generator"].state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in generator.state_dict().items())
    with pytest.raises(UserError, match="contradicts the checkpoint"):
        EvaluatorGAN.parse_options([*argv, "--set", "model_args.generator.width=9"])


def test_a_model_that_is_no_pair_of_networks_is_refused(build):
    with pytest.raises(UserError, match="makes a single network, and a GAN has a generator and a discriminator"):
        build("--model_type", "torch.nn:Identity", task=TrainerGAN)


def test_betas_that_are_given_as_arguments_of_the_optimizer_count(build):
    for flags, betas in (((), (0.3, 0.999)), (("--optim_args", '{"betas": [0.1, 0.2]}'), (0.1, 0.2))):
        trainer = build(*SMALL, "--beta1", 0.3, *flags, task=TrainerGAN)
        groups = [group for optimizer in trainer.optimizers.values() for group in optimizer.param_groups]
        assert [tuple(group["betas"]) for group in groups] == [betas, betas]


def test_a_judge_is_taken_from_a_file_or_refused(build, vanilla_run):
    path = vanilla_run / "Vanilla_best_ckpt.pth"
    trainer = build(*SMALL, "--judge_type", "Vanilla", "--judge", path, task=TrainerGAN)
    theirs = load_checkpoint(path)["networks"]["model"]
    assert all(torch.equal(value, theirs[key]) for key, value in trainer.networks["judge"].state_dict().items())
    assert not any(parameter.requires_grad for parameter in trainer.networks["judge"].parameters())
    with pytest.raises(UserError, match="--judge_type LeNet does not fit"):
        build(*SMALL, "--judge", path, task=TrainerGAN)
    with pytest.raises(UserError, match="nowhere"):
        build(*SMALL, "--judge", "nowhere.pth", task=TrainerGAN)


def test_a_frozen_module_passes_gradients_on_and_takes_none():
    module, images = torch.nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    module.bias.requires_grad_(False)
    with frozen(module) as same:
        same(images).sum().backward()
    assert images.grad is not None and module.weight.grad is None
    assert module.weight.requires_grad and not module.bias.requires_grad
    with pytest.raises(KeyError), frozen(module):
        raise KeyError
    assert module.weight.requires_grad
