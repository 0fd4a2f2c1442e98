"""The options of a checkpoint are data: what leads to code, a file or an address must be repeated."""

from functools import partial

import pytest
import torch

from engine.checkpoints.file import save_checkpoint
from engine.options.foreign import differ, harmless_options
from eval_vanilla import EvaluatorVanilla
from options import test_parser as parser_of_test
from options import train_parser
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

TRAIN = partial(train_parser, TrainerVanilla)
SEG = partial(train_parser, TrainerSeg)


def taken(saved, *argv, new_parser=TRAIN):
    return harmless_options(saved, "a.pth", new_parser, list(argv), [])


@pytest.mark.parametrize(
    "saved",
    [
        {"lr": 0.1, "optim": "Adamax", "optim_args": {"betas": [0.9, 0.95], "amsgrad": True}},
        {"model_type": "torchvision:resnet18", "model_args": {"zero_init_residual": True}, "no_such_option": "a:b"},
        {"metrics": ["accuracy", "torchmetrics.classification:MulticlassAUROC"], "loss_type": ["CE:1.0", "Focal:0.5"]},
        {"metric_args": {"MulticlassAUROC": {"average": "macro"}}, "description": "see https://example.org/a"},
        {"loss_args": {"weight": [1.0] * 10, "ignore_index": 3}, "callbacks": None, "import": None},
    ],
)
def test_plain_options_are_taken(saved):
    assert taken(saved) == saved


@pytest.mark.parametrize(
    "saved",
    [
        {"model_type": "os:system"}, {"import": ["evil", "worse"]}, {"callbacks": ["a:B"]}, {"lr_scheduler": "c:D"},
        {"optim": "os:system"}, {"loss_type": "evil:run:0.5"}, {"metrics": ["accuracy", "my:Metric"]},
        {"metrics": ["torchmetrics.image.fid:FrechetInceptionDistance"]},  # which downloads a network
        {"model_args": {"inner": [{"name": "my:Net"}]}}, {"model_args": {"file": "a"}}, {"model_args": {"a": "b.pkl"}},
        {"model_args": {"a": "../b"}}, {"model_args": {"a": "http://a"}}, {"model_args": {"weights": "DEFAULT"}},
        {"model_args": {"inner": {"pretrained_too": True}}}, {"data_args": {"cache_dir": "x", "size": 3}},
        {"data_dir": "https://example.org/shards"}, {"data_type": "FashionMNIST"},  # is not there
    ],
)  # fmt: skip
def test_what_is_more_than_data_is_repeated(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = saved
    if saved == {"data_type": "FashionMNIST"}:
        saved["data_dir"] = str(tmp_path)
    for new_parser in (TRAIN, partial(parser_of_test, EvaluatorVanilla)):
        if name not in new_parser().known or new_parser().get_default(name) == saved[name]:
            continue
        with pytest.raises(UserError, match=f"a.pth names user code, a path or an address.* repeat: --{name} "):
            taken(saved, new_parser=new_parser)


def test_what_a_person_says_counts(tmp_path):
    taken({"model_type": "os:system"}, "--model_type", "LeNet")
    taken({"model_args": {"path": "x"}}, "--model_args", '{"path": "x"}')
    taken({"model_args": {"path": "x"}}, "--model_args", "{}")
    with pytest.raises(UserError, match="--model_args"):
        taken({"model_args": {"path": "x"}}, "--set", "model_args.width=3")  # which keeps the rest
    (tmp_path / "mine.yaml").write_text("base: more.yaml")
    (tmp_path / "more.yaml").write_text("model_type: os:system")
    taken({"model_type": "os:system"}, "--config", str(tmp_path / "mine.yaml"))


def test_first_weights_are_not_fetched_again():
    """A checkpoint has the weights, so those that a network of timm started from are left out."""
    arguments = {"pretrained": True, "pretrained_cfg": {"url": "http://a"}, "checkpoint_path": "a.pkl"}
    saved = {"model_type": "timm:resnet18", "model_args": {"drop_rate": 0.1, **arguments}}
    assert taken(saved)["model_args"] == {"drop_rate": 0.1}
    assert not differ("model_args", saved["model_args"], {"drop_rate": 0.1})
    assert differ("model_args", saved["model_args"], {"drop_rate": 0.2})


def test_paths_are_left_out_but_for_data_that_is_there(tmp_path):
    saved = {"data_dir": str(tmp_path), "output_dir": "theirs", "cache_dir": "theirs", "shard_cache_dir": "/theirs"}
    assert taken(saved, new_parser=SEG) == {"data_dir": str(tmp_path)}
    (tmp_path / "file.zip").touch()
    assert taken({"data_dir": str(tmp_path / "file.zip")}, new_parser=SEG)  # the data says that it is no directory
    assert taken({"data_dir": str(tmp_path / "nowhere")}, new_parser=SEG) == {}


def test_data_that_is_not_where_it_was_is_noted():
    notes = []
    harmless_options({"data_dir": "/no/such"}, "a.pth", SEG, [], notes)
    assert notes == ["The --data_dir of a.pth is not here: '/no/such'. Going on with ./Dataset/Carvana/."]
    harmless_options({"data_dir": "/no/such"}, "a.pth", SEG, ["--data_dir", "/here"], notes)
    assert len(notes) == 1  # a person said where it is


def test_the_note_is_in_the_log_of_an_evaluation_and_of_a_resumed_run(train, tmp_path, monkeypatch):
    """The data of the sample is not read from --data_dir, so all goes on."""
    run = train("--n_epoch", 1, "--limit_batches", 2, "--data_args", "{}")
    state = torch.load(path := run.run_dir.path / "Vanilla_last_ckpt.pth", weights_only=True)
    note = f"The --data_dir of {path} is not here: '/no/such'. Going on with ./Dataset."
    state["options"]["data_dir"] = "/no/such"
    save_checkpoint(state, path)
    flags = ["--model_path", str(path), "--save_path", str(tmp_path / "tested"), "--no-viz", "--gpu_devices", "cpu"]
    EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options(flags))
    (log,) = tmp_path.glob("tested/*/eval_log.txt")
    assert log.read_text().count(note) == 1
    train("--resume", path, "--n_epoch", 2)
    assert next(run.run_dir.path.glob("*_log.txt")).read_text().count(note) == 1
