"""Wrong input of a user: exit status 2, one or two lines that name it, no traceback, and no file is changed."""

import json
import shutil
import sys

import pytest
import torch

from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

VANILLA, SEG = "Vanilla_best_ckpt.pth", "UNet_best_ckpt.pth"


@pytest.fixture
def refuse(tmp_path, small, capfd):
    """A function that runs a program with bad input and returns what it says on standard error.

    `expected` is the exit status.
    """

    def refuse(program, *flags, expected=2) -> str:
        task = TrainerSeg if program in (TrainerSeg, EvaluatorSeg) else TrainerVanilla
        argv = [str(flag) for flag in flags]
        if issubclass(program, TrainerVanilla | TrainerSeg) and "--resume" not in argv:
            argv = [*small(task), "--output_dir", str(tmp_path / "runs"), *argv]
        elif not issubclass(program, TrainerVanilla | TrainerSeg):
            argv = ["--save_path", str(tmp_path / "test"), *argv]
        capfd.readouterr()
        status = None
        try:  # pytest.raises would keep the traceback, and with it the loading processes
            program.main(argv)
        except SystemExit as end:
            status = end.code
        said = capfd.readouterr().err
        assert status == expected, said
        assert 1 <= len(said.splitlines()) <= 2 and "Traceback" not in said, said
        return said

    return refuse


def started(tmp_path) -> list:
    return list(tmp_path.glob("runs/*"))


# ---- options ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flag", "nearest"),
    [("--batchsize", "--batch_size"), ("--epoch", "--n_epoch"), ("--patince", "--patience"), ("--batch", None)],
)
def test_an_unknown_flag_is_named_with_the_nearest(refuse, tmp_path, flag, nearest):
    said = refuse(TrainerVanilla, flag, "3")
    assert repr(flag) in said and (nearest is None or nearest in said)
    assert not started(tmp_path)


def test_flags_are_not_abbreviated(refuse):
    assert "--n_epoc" in refuse(TrainerVanilla, "--n_epoc", "3")


def test_an_option_of_another_task_is_unknown(refuse, vanilla_run):
    assert "--patch_size" in refuse(TrainerVanilla, "--patch_size", "32")
    assert "--lr" in refuse(EvaluatorVanilla, "--model_path", vanilla_run / VANILLA, "--lr", "0.1")


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "nan"), ("--lr", "inf"), ("--lr", "0"), ("--lr", "-1e-3"), ("--lr", "fast"),
        ("--n_epoch", "0"), ("--n_epoch", "1.5"), ("--batch_size", "0"), ("--micro_batch_size", "-1"),
        ("--momentum", "1.1"), ("--momentum", "1"), ("--weight_decay", "-1"), ("--clip", "-0.1"), ("--clip_type", "l2"),
        ("--val_split", "0"), ("--val_split", "601"), ("--train_val_sample_rate", "99999"),
        ("--seed", "-1"), ("--seed", "1.0"), ("--num_workers", "-1"), ("--val_every", "-1"), ("--save_every", "0"),
        ("--log_every", "0"), ("--patience", "-1"), ("--warmup_epoch", "-1"), ("--warmup_multiplier", "0.5"),
        ("--lr_min", "1"), ("--lr_decay_rate", "0"), ("--lr_decay_rate", "1.5"), ("--gpu_devices", "first"),
        ("--gpu_devices", "0,0"), ("--optim", "adamw2"), ("--lr_scheduler", "cos"), ("--amp", "fp8"),
        ("--parallel", "ddpp"), ("--nproc", "0"), ("--max_restarts", "-1"), ("--dist_timeout", "0"),
        ("--monitor_mode", "most"), ("--monitor", "dice"), ("--model_type", "UNet"),
        ("--data_type", "CIFAR10"), ("--loss_type", "Dice"), ("--proj_name", "a/b"), ("--compile", "maybe"),
        ("--lr_scheduler", "step"), ("--n_channels", "3"), ("--n_classes", "9"), ("--pretrained",), ("extra",),
        ("--lr",), ("--config",), ("--num_workers", "Auto"),
        ("--freeze", "nothing.*"), ("--freeze", "*"), ("--freeze", "critic:*"), ("--freeze", " "), ("--freeze",),
        ("--train_only", "head.*"), ("--param_lr", "layers.0.*"), ("--param_lr", "layers.0.*=0"),
        ("--param_lr", "layers.0.*=nan"), ("--param_lr", "layers.0.*=1y"),
        ("--param_clip", "layers.0.*"), ("--param_clip", "layers.0.*=0"), ("--param_clip", "=1"),
        ("--no_decay", "head.*"), ("--ema", "1"), ("--ema", "-0.1"), ("--ema", "nan"), ("--swa_start", "0"),
        ("--swa_start", "1.5"), ("--swa_start", "3"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_before_anything_is_written(refuse, tmp_path, flags):
    said = refuse(TrainerVanilla, *flags)
    assert flags[0].lstrip("-") in said and (len(flags) == 1 or flags[1].lstrip("-") in said)
    assert not started(tmp_path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--loss_args", '{"reduction": "none"}'), "takes no argument 'reduction'"),
        (("--loss_type", "torch.nn:MultiMarginLoss", "--loss_args", '{"reduction": "sum"}'), "must be mean"),
        (("--loss_args", '{"weight": [1, 2]}'), "10 weights"),
        (("--loss_args", '{"label_smoothing": 7}'), "from 0 to 1"), (("--set", "loss_args.ignore_index=x"), "type int"),
        (("--loss_type", "CE", "Brier:2", "--set", "loss_args.Brierr.x=1"), "did you mean 'Brier'"),
        (("--loss_type", "ce:-1"), "did you mean 'CE'"), (("--loss_type", "CE:nan"), "nan"),
        (("--loss_type", "CE:"), "CE:"),
        (("--optim_args", '{"bettas": [0.9, 0.99]}'), "did you mean 'betas'"),
        (("--optim_args", '{"amsgrad": "no"}'), "type bool"),
        (("--lr_scheduler", "StepLR", "--scheduler_args", '{"stepsize": 3}'), "did you mean 'step_size'"),
        (("--model_args", '{"n_classes": 3}'), "contradicts --n_classes 10"),
        (("--set", "optim_args..eps=3"), "is not NAME=VALUE"), (("--set", "lr"), "is not NAME=VALUE"),
        (("--set", "lr.x=3"), "no network 'x' is trained; there are model"),
        (("--lr", '{"modell": 3}'), "did you mean 'model'"), (("--lr", "{}"), "names no network"),
        (("--optim", "{}"), "names no network"), (("--lr", '{"model": -1}'), "'-1' is not a finite number > 0"),
        (("--set", "batch_size.x=3"), "flat"), (("--set", "optim_args.eps=[1"), "is not JSON"),
        (("--set", "lrr=3"), "'lr'"),
        (("--metrics", "accuracyy"), "did you mean 'accuracy'"), (("--metrics", "top11"), "at least 11 classes"),
        (("--init", "kaimin"), "did you mean 'kaiming'"), (("--micro_batch_size", "automatic"), "or auto"),
        (("--doctor",), "python -m tools.doctor"), (("--logger", "tensorbord"), "did you mean 'tensorboard'"),
        (("--logger", "none", "csv"), "none stands alone"), (("--model_type", "torchvision:resnet19"), "'resnet18'"),
        (("--callbacks", "no_such_module:Mine"), "no module 'no_such_module'"),
        (("--callbacks", "utils.errors:Nothing"), "has no 'Nothing'"),
        (("--callbacks", "utils.errors:UserError"), "is no class derived from callbacks.callback.Callback"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_arguments_and_names_that_cannot_be_are_refused_before_there_is_a_run(refuse, tmp_path, flags, told):
    said = refuse(TrainerVanilla, *flags)
    assert told in said and said.count("\n") == 1
    assert not started(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--optim", "SparseAdam"), "SparseAdam does not support dense gradients"),
        (("--model_args", '{"size": 32}'), "shapes cannot be multiplied"),
    ],
    ids=["optimizer", "network"],
)
def test_a_component_that_fails_with_the_first_batch_is_named_in_one_line(refuse, flags, words):
    said = refuse(TrainerVanilla, *flags)
    assert "Failed in the first update: RuntimeError" in said and words in said


def test_loggers_and_networks_of_packages_that_are_not_there_say_so(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install wandb" in refuse(TrainerVanilla, "--logger", "wandb")
    assert "needs the package timm" in refuse(TrainerVanilla, "--model_type", "timm:resnet10t")
    assert not started(tmp_path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--freeze", "layers.0.*", "--param_lr", "layers.0.*=1e-4"), "--param_lr 'layers.0.*' matches only"),
        (("--train_only", "layers.0.*", "--no_decay", "layers.4.*"), "--no_decay 'layers.4.*' matches only"),
        (("--train_only", "layers.0.*", "--freeze", "layers.0.*"), "nothing is left"),
        (("--ema", "0.9", "--swa_start", "1"), "--ema and --swa_start"),
        (("--param_lr", "head.*=1e-3"), "--param_lr 'head.*' matches no parameter"),
        (("--param_clip", "head.*=1"), "--param_clip 'head.*' matches no parameter"),
        (("--freeze", "layer.0.weight"), "did you mean 'layers.0.weight'"),
    ],
)  # fmt: skip
def test_fine_tuning_that_contradicts_itself_is_refused(refuse, tmp_path, flags, told):
    assert told in refuse(TrainerVanilla, *flags)
    assert not started(tmp_path)


def test_a_split_that_leaves_no_training_part_says_which_options_to_change(refuse, tmp_path):
    said = refuse(TrainerVanilla, "--val_split", "1")
    assert "train part is empty" in said and "--val_split" in said
    assert not started(tmp_path)


@pytest.mark.parametrize(
    "flags",
    [("--patch_size", "8"), ("--mode", "crop"), ("--up", "nearest"), ("--width", "0"), ("--n_channels", "4"),
     ("--deep_supervision",), ("--test_sample_rate", "100"), ("--val_split", "24")],
    ids=" ".join,
)  # fmt: skip
def test_a_value_of_segmentation_that_cannot_be_is_refused(refuse, tmp_path, flags):
    assert flags[0].lstrip("-") in refuse(TrainerSeg, *flags)
    assert not started(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"batchsize": 3}', "batchsize"), ('{"lr": NaN}', "nan"), ('{"lr": "fast"}', "fast"), ("{", "Cannot read"),
        ("[1, 2]", "mapping"), ('{"batch_size": {"a": 1}}', "flat"), ('{"lr": {}}', "names no network"),
        ('{"lr": null}', "null"), ("", "Cannot read"),
    ],
)  # fmt: skip
def test_a_bad_option_file_is_named(refuse, tmp_path, text, named):
    path = tmp_path / "options.json"
    path.write_text(text)
    said = refuse(TrainerVanilla, "--config", path)
    assert str(path) in said and named in said


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("- 1\n- 2", "mapping"), ("lr: 1e-3\nlr: 1e-4", "'lr' is given twice"), ("lr: [1e-3", "Cannot read"),
        ("lr: !!python/object/apply:os.system [ls]", "python/object/apply:os.system"),
        ("a: &x 1\nlr: *x", "aliases"),
        ("optim_args: {eps: 1, eps: 2}", "'eps' is given twice"), ("base: options.yaml", "builds on itself"),
        ("base: nowhere.yaml", "nowhere.yaml"), ("base: {a: b}", "base is the name of a file"),
        ("base: .", "directory"),
        ("lr: 1e-3\nlrr: 3", "options.yaml: unknown option 'lrr'"), ("set: [lr=3]", "belongs on the command line"),
        ("optim_args.bettas: 3", "did you mean 'betas'"), ("optim_args: 3", "optim_args"), ("\tlr: 3", "Cannot read"),
        ("lr: 1e-3\n---\nlr: 3", "Cannot read"), (b"description: \xff\xfe", "utf-8"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_bad_yaml_file_is_named(refuse, tmp_path, content, named):
    path = tmp_path / "options.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refuse(TrainerVanilla, "--config", path)
    assert named in said and said.count("\n") == 1 and not started(tmp_path)


def test_files_that_build_on_each_other_in_a_circle_are_named(refuse, tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    said = refuse(TrainerVanilla, "--config", tmp_path / "a.yaml")
    assert "builds on itself" in said and "a.yaml -> " in said
    assert "directory" in refuse(TrainerVanilla, "--config", tmp_path)


def test_a_missing_option_file_is_named(refuse, tmp_path):
    assert "nowhere.json" in refuse(TrainerVanilla, "--config", tmp_path / "nowhere.json")


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def bad_file(kind, good, path):
    """Write a file that is no checkpoint."""
    content = good.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "one bit":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif kind == "text":
        path.write_text("these are not weights")
    elif kind == "directory":
        path.mkdir()
    elif kind == "object":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "bare state dict":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)


# The exit status tells a file that was damaged, 3, from one that does not belong here, 2.
BAD_FILES = [
    ("missing", 2), ("empty", 3), ("truncated", 3), ("one bit", 3), ("text", 3), ("directory", 2), ("object", 2),
    ("bare state dict", 2),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "status"), BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_not_evaluated(refuse, vanilla_run, tmp_path, kind, status):
    path = tmp_path / "bad.pth"
    bad_file(kind, vanilla_run / VANILLA, path)
    assert str(path) in refuse(EvaluatorVanilla, "--model_path", path, expected=status)
    assert not list(tmp_path.glob("test/*"))


@pytest.mark.parametrize(("kind", "status"), BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_not_resumed(refuse, vanilla_run, tmp_path, contents, kind, status):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    bad_file(kind, vanilla_run / VANILLA, run_dir / "Vanilla_InT_ckpt.pth")
    before = contents(run_dir)
    assert "Vanilla_InT_ckpt.pth" in refuse(
        TrainerVanilla, "--resume", run_dir / "Vanilla_InT_ckpt.pth", expected=status
    )
    assert contents(run_dir) == before


@pytest.mark.parametrize(("kind", "status"), BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_no_start(refuse, vanilla_run, tmp_path, kind, status):
    path = tmp_path / "bad.pth"
    bad_file(kind, vanilla_run / VANILLA, path)
    assert str(path) in refuse(TrainerVanilla, "--pretrained", "--model_path", path, expected=status)


def test_a_missing_or_empty_run_directory_is_named(refuse, tmp_path):
    assert "no such run directory" in refuse(TrainerVanilla, "--resume", tmp_path / "nowhere")
    assert "no checkpoint to resume from" in refuse(TrainerVanilla, "--resume", tmp_path)


def test_a_checkpoint_of_another_task_is_refused(refuse, vanilla_run, seg_run, contents):
    before = contents(vanilla_run) | contents(seg_run)
    refuse(EvaluatorVanilla, "--model_path", seg_run / SEG)
    refuse(EvaluatorSeg, "--model_path", vanilla_run / VANILLA)
    refuse(TrainerVanilla, "--resume", seg_run)
    refuse(TrainerSeg, "--resume", vanilla_run)
    assert contents(vanilla_run) | contents(seg_run) == before


@pytest.mark.parametrize("flags", [("--width", 8), ("--model_type", "UNetpp"), ("--n_classes", 3)])
def test_a_run_is_not_resumed_with_another_network(refuse, seg_run, tmp_path, flags):
    run_dir = shutil.copytree(seg_run, tmp_path / seg_run.name)
    assert f"{flags[0]} {flags[1]} contradicts the run" in refuse(TrainerSeg, "--resume", run_dir, *flags)
    for name in (SEG, "UNet_last_ckpt.pth"):
        assert load_checkpoint(run_dir / name)["options"]["width"] == 4


def test_a_start_of_which_nothing_fits_is_refused(refuse, vanilla_run):
    said = refuse(TrainerSeg, "--pretrained", "--model_path", vanilla_run / VANILLA)
    assert "Nothing in" in said and "layers.0.weight" in said


def test_an_evaluation_needs_a_checkpoint(refuse):
    assert "a checkpoint, the directory of a run, or latest" in refuse(EvaluatorVanilla)


# ---- data ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def damaged(cars, seg_run, tmp_path):
    """A function that copies the cars, truncates the first image of a part, and returns the directory and its name."""

    def damage(part):
        directory = shutil.copytree(cars, tmp_path / "cars")
        name = json.loads((seg_run / "split.json").read_text())[part][0]
        path = directory / "train" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:500])
        return directory, path.name

    return damage


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_image_that_cannot_be_read_is_named(refuse, damaged, part):
    # With loading processes: tests/test_commands.py, in a process that ends, and they with it.
    directory, name = damaged(part)
    assert name in refuse(TrainerSeg, "--data_dir", directory)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_by_the_evaluator(refuse, damaged, seg_run, num_workers):
    directory, name = damaged("test")
    flags = ("--model_path", seg_run / SEG, "--data_dir", directory, "--num_workers", num_workers)
    assert name in refuse(EvaluatorSeg, *flags)


def test_a_mask_that_cannot_be_read_is_named_before_training_starts(refuse, cars, tmp_path):
    directory = shutil.copytree(cars, tmp_path / "cars")
    path = sorted((directory / "train_masks").iterdir())[7]
    path.write_bytes(b"GIF89a")
    assert path.name in refuse(TrainerSeg, "--data_dir", directory)
    assert not started(tmp_path)


def test_a_missing_directory_of_images_says_what_belongs_there(refuse, tmp_path, seg_run):
    said = refuse(TrainerSeg, "--data_dir", tmp_path / "nowhere")
    assert "nowhere" in said and "make_carvana_like" in said
    assert "nowhere" in refuse(EvaluatorSeg, "--model_path", seg_run / SEG, "--data_dir", tmp_path / "nowhere")


def test_more_classes_in_the_masks_than_asked_for_is_an_error(refuse, tmp_path):
    from tools.synthetic.make_carvana_like import make_carvana_like

    make_carvana_like(tmp_path / "three", cars=6, views=4, size=(64, 48), n_classes=3)
    assert "3" in refuse(TrainerSeg, "--data_dir", tmp_path / "three")


def test_fashion_mnist_without_files_and_without_a_network(refuse, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    said = refuse(TrainerVanilla, "--data_type", "FashionMNIST", "--data_dir", tmp_path / "nothing")
    assert "FashionMNISTSample" in said
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not started(tmp_path) and files == [".FashionMNIST.lock"]


def test_damaged_fashion_mnist_files_are_named(refuse, tmp_path):
    from data.FashionMNIST import SAMPLE_DIR

    shutil.copytree(SAMPLE_DIR, tmp_path / "files")
    path = tmp_path / "files" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(tmp_path / "files") in refuse(TrainerVanilla, "--data_type", "FashionMNIST", "--data_dir", path.parent)


# ---- results ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_the_results_is_left_alone(refuse, vanilla_run, tmp_path, below):
    path = tmp_path / "taken"
    path.write_text("precious")
    assert "taken" in refuse(TrainerVanilla, "--output_dir", path / below)
    assert "taken" in refuse(EvaluatorVanilla, "--model_path", vanilla_run / VANILLA, "--save_path", path / below)
    assert path.read_text() == "precious"


def test_a_disk_that_is_full_does_not_hide_behind_the_rescue(build, monkeypatch):
    trainer = build()

    def full(state, *paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.checkpoints.checkpointer.save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    (log,) = trainer.run_dir.path.glob("*_log.txt")
    assert "could not be saved" in log.read_text()


# ---- where a file from elsewhere makes a program write ---------------------------------------------------------------
def with_options(source, target, **options) -> None:
    """Copy a checkpoint with other options, as an attacker can: the digest is right."""
    state = load_checkpoint(source)
    save_checkpoint({**state, "options": {**state["options"], **options}}, target)


def test_a_checkpoint_does_not_say_where_its_evaluation_writes(vanilla_run, tmp_path, monkeypatch):
    with_options(vanilla_run / VANILLA, tmp_path / "a.pth", save_path=str(tmp_path / "theirs"))
    opt = EvaluatorVanilla.parse_options(["--model_path", str(tmp_path / "a.pth")])
    assert opt.save_path == "./test_viz/"


def test_a_checkpoint_outside_a_run_does_not_say_where_its_run_is_continued(vanilla_run, tmp_path):
    with_options(vanilla_run / VANILLA, tmp_path / "Vanilla_last_ckpt.pth", output_dir=str(tmp_path / "theirs"))
    opt = TrainerVanilla.parse_options(["--resume", str(tmp_path / "Vanilla_last_ckpt.pth")])
    assert opt.output_dir == "./Results/Vanilla/"


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", "a\nb"])
def test_a_checkpoint_does_not_name_files_outside_its_directory(refuse, vanilla_run, tmp_path, name):
    with_options(vanilla_run / VANILLA, tmp_path / "Vanilla_last_ckpt.pth", proj_name=name)
    assert "proj_name" in refuse(TrainerVanilla, "--resume", tmp_path / "Vanilla_last_ckpt.pth")
