"""The option files in configs/: each says which trainer takes it, and that one does."""

import re
from pathlib import Path

import pytest

from engine.options.files import read_with_bases
from extras.gan.trainer_gan import TrainerGAN
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = {
    "trainer_vanilla.py": TrainerVanilla,
    "trainer_seg_on_carvana.py": TrainerSeg,
    "trainer_gan.py": TrainerGAN,
}
FILES = sorted((ROOT / "configs").iterdir())
USED = [path for path in FILES if "python " in path.read_text().splitlines()[0]]


def test_there_is_a_file_for_every_network():
    types = {TRAINERS[program_of(path)].parse_options(["--config", str(path)]).model_type for path in USED}
    assert types >= {"Vanilla", "UNet", "UNetpp", "DCGAN"}


def test_what_no_trainer_takes_by_itself_is_a_base():
    bases = {Path(base).resolve() for path in USED for base, _ in read_with_bases(path)[:-1]}
    assert set(FILES) - set(USED) <= bases


def program_of(path: Path) -> str:
    program, config = re.search(r"python (\S+) --config (\S+)", path.read_text().splitlines()[0]).groups()
    assert ROOT / config == path
    return program


@pytest.mark.parametrize("path", USED, ids=lambda path: path.name)
def test_each_is_taken_by_its_trainer(path):
    values = {}
    for _, own in read_with_bases(path):
        values |= own
    opt = TRAINERS[program_of(path)].parse_options(["--config", str(path)])
    assert {name: str(getattr(opt, name)).lower() for name in values}.keys() == values.keys()
    assert opt.model_type == values["model_type"] and opt.lr == float(values["lr"])


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model_type"), [("vanilla", "Vanilla"), ("gan", "GAN")])
def test_those_for_the_sample_run(command, tmp_path, task, model_type):
    flags = ("--config", f"configs/{task}_sample.yaml", "--debug", "--output_dir", tmp_path)
    done = command(f"trainer_{task}.py", *flags)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob(f"*/{model_type}_last_ckpt.pth"))) == 1


def test_those_for_the_gan_differ_in_the_data_and_its_epochs_only():
    full, sample = (vars(TrainerGAN.parse_options(["--config", str(ROOT / "configs" / name), "--seed", "0"]))
                    for name in ("gan.yaml", "gan_sample.yaml"))  # fmt: skip
    assert {name for name in full if full[name] != sample[name]} == {"config", "data_type", "n_epoch"}
    of_the_task = vars(TrainerGAN.parse_options(["--seed", "0"]))
    assert {name for name in sample if sample[name] != of_the_task[name]} == {"config"}
