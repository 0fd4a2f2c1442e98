"""A wrong name gets the right answer or none: of options, in files and --set too, and of components."""

import json
import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from eval_vanilla import EvaluatorVanilla
from extras.functional import fit
from extras.wrong_names import FIELD, OF_EVALUATION
from options import test_parser as parser_of_test
from options import train_parser
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

# Flags of other templates and slips, each with the hint: its beginning where there is a remark, and None for none.
TRAINING = {
    "--learning_rate 1": "--lr'?)", "--learning-rate=1": "--lr'?)", "-lr 1": "--lr'?)", "--LR 1": "--lr'?)",
    "--epochs 3": "--n_epoch'?)", "--num_train_epochs 3": "--n_epoch'?)", "--max-epochs 3": "--n_epoch'?)",
    "--max_steps 100": "--max_updates'?)", "--bs 8": "--batch_size'? It counts the samples of one update",
    "--per_device_train_batch_size 8": "--micro_batch_size'? It counts the samples on a device",
    "--gradient_accumulation_steps 4": "--micro_batch_size'? It is --batch_size / 4: the samples in memory",
    "--grad_accum": "--micro_batch_size'? It is --batch_size / that number", "--wd 0.1": "--weight_decay'?)",
    "--fp16": "--amp fp16'?)", "--fp16 False": "--amp'?)", "--bf16 True": "--amp bf16'?)",
    "--mixed_precision bf16": "--amp bf16'?)", "--precision 16-mixed": "--amp fp16'?)",
    "--gpu 0": "--gpu_devices'? It takes ids", "--device cuda:1": "--gpu_devices 1'?",
    "--device cpu": "--gpu_devices cpu'?",
    "--no-cuda": "--gpu_devices cpu'?)", "--num_gpus 4": "--gpu_devices'? It takes ids, not a number",
    "-j 4": "--num_workers'?)", "--workers 4": "--num_workers'?)", "--ddp": "--parallel ddp'?)",
    "--nproc_per_node 2": "--nproc'? It is for CPUs", "--warmup_steps 500": "--warmup_epoch'? It counts epochs",
    "--weights a.pth": "--pretrained'?)", "--pretrained_weights a.pth": "--pretrained'?)",
    "--ckpt a.pth": "--resume'? It goes on with that run", "--resume_from_checkpoint a": "--resume'? It goes on",
    "--max_grad_norm 1": "--clip'?)", "--grad_clip 1": "--clip'?)",
    "--clip_value 1": "--clip_type value'? The limit is",
    "--optimizer adam": "--optim'?)", "--scheduler step": "--lr_scheduler'?)",
    "--lr_scheduler_type a": "--lr_scheduler'?)",
    "--min_lr 0": "--lr_min'?)", "--gamma 0.1": "--lr_decay_rate'?)", "--milestones 3": "--lr_decay_epochs'?)",
    "--model a": "--model_type'?)", "--arch a": "--model_type'?)", "--dataset a": "--data_type'?)",
    "--data a": "--data_dir'?)", "--img_size 32": "--image_size'?)", "--imgsz 32": "--image_size'?)",
    "--num_classes 3": "--n_classes'?)", "--in_chans 3": "--n_channels'?)", "--criterion CE": "--loss_type'?)",
    "--exp_name a": "--proj_name'?)", "--log_dir a": "--output_dir'?)", "--output a": "--output_dir'?)",
    "--early_stopping": "--patience'? It counts validations", "--val_ratio 0.1": "--val_split'?)",
    "--folds 5": "--fold'? It takes one part", "--class_weight a": "--class_weights'?)", "--aug": "--augment'?)",
    "--ema_decay 0.99": "--ema'? It takes the decay", "--print-freq 9": "--log_every'? It counts updates",
    "--eval_interval 2": "--val_every'? It counts epochs", "--save_steps 9": "--save_every_updates'?",
    "--gradient_checkpointing": "--activation_checkpointing'?)", "--torch_compile": "--compile'?)",
    "--use_wandb": "--logger wandb'?)", "--random_seed 0": "--seed'?)", "--cfg a.yaml": "--config'?)",
    "--batchsize 8": "--batch_size'?)", "--batch-size 8": "--batch_size'?)", "--n_epohc 8": "--n_epoch'?)",
    "--weigth_decay 0": "--weight_decay'?)", "--lrr 1": "--lr'?)", "--deb": "--debug'?)",
    "--no-comple": "--no-compile'?)",
    "lr 1": "--lr'?)",
} | dict.fromkeys(  # nothing here is what they mean
    [
        "--tta", "--eval", "--evaluate", "--test", "--train", "--val", "--dropout 0.1", "--pin_memory",
        "--local_rank 0",
        "--verbose", "--beta2 0.99", "--num_layers 3", "--width 8", "--depth 3", "--hidden_size 8", "--port 1",
        "--mode a",
        "--shuffle", "--rank 0", "--backend nccl", "--tf32", "--hflip", "--force", "--task a", "--train_split 0.8",
        "--load_best_model_at_end", "--start_epoch 1", "--cache", "-e 3", "-p", "--scale 2", "--alpha 0.2", "--t_max 9",
    ]
)  # fmt: skip
SEGMENTATION = {
    "--img_size 64": "--patch_size'?)", "--crop_size 64": "--crop'?)", "--encoder a": None, "--scale 0.5": None,
    "--model UNet": "--model_type'?)",
}  # fmt: skip
EVALUATION = {
    "--checkpoint a.pth": "--model_path'?)", "--weights a.pth": "--model_path'?)", "--output a": "--save_path'?)",
    "--device cpu": "--gpu_devices cpu'?", "--epochs 3": None, "--batch-size 3": None,
}  # fmt: skip


def last_line(parser, argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        parser.resolve(argv)
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1
    return line


@pytest.mark.parametrize("task", ["training", "segmentation", "evaluation"])
def test_a_wrong_flag_has_the_right_answer_or_none(task, capsys):
    table = {"training": TRAINING, "segmentation": SEGMENTATION, "evaluation": EVALUATION}[task]
    new_parser = {"training": lambda: train_parser(TrainerVanilla), "segmentation": lambda: train_parser(TrainerSeg)}
    parser = new_parser.get(task, lambda: parser_of_test(EvaluatorVanilla))()
    for flag, answer in table.items():
        line = last_line(parser, flag.split(), capsys)
        hint = f" (did you mean '{answer}" if answer else "; --help all"
        assert hint in line and (answer or "did you mean" not in line), line


def test_an_option_of_training_is_called_one_in_an_evaluation(capsys):
    line = last_line(parser_of_test(EvaluatorVanilla), ["--lr", "1"], capsys)
    assert "'--lr' (--lr is an option of training)" in line


def test_option_files_and_set_have_the_same_answers(capsys, tmp_path):
    path = tmp_path / "a.json"
    answers = {
        "epochs": (3, "did you mean 'n_epoch'?"), "fp16": (True, "did you mean 'amp' with the value 'fp16'?"),
        "fp16_": (True, ""), "device": ("cuda:1", "did you mean 'gpu_devices' with the value '1'?"),
        "accum_iter": (8, "did you mean 'micro_batch_size'? It is --batch_size / 8"), "tta": (1, ""),
    }  # fmt: skip
    for name, (value, answer) in answers.items():
        path.write_text(json.dumps({name: value}))
        for argv in (["--config", str(path)], ["--set", f"{name}={value}"]):
            line = last_line(train_parser(TrainerVanilla), argv, capsys)
            assert f"unknown option '{name}'" in line, line
            assert answer in line if answer else "did you mean" not in line, line


def test_arguments_of_the_function_have_them_too():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match=r"unknown argument 'max_grad_norm' \(did you mean 'clip'\?\)"):
        fit(model, optimizer, None, TensorDataset(torch.zeros(2, 1)), 1, num_epochs=1, max_grad_norm=3)


# The task, the option with a name, and the hint.
NAMES = [
    ("--optim adam_w", "did you mean 'adamW'"), ("--optim adafactr", "did you mean 'Adafactor'"), ("--optim lion", ""),
    ("--optim nag", "did you mean 'nesterov'"), ("--lr_scheduler cosine_annealing", "did you mean 'cosine'"),
    ("--lr_scheduler cosine_annealing_lr", "did you mean 'CosineAnnealingLR'"), ("--lr_scheduler inverse_sqrt", ""),
    ("--lr_scheduler plateau", "did you mean 'ReduceLROnPlateau'"), ("--lr_scheduler none", "did you mean 'constant'"),
    ("--model_type resnet18", "did you mean 'ResNet18'"), ("--model_type unet", "(UNet is not for classification)"),
    ("--model_type resnet50", "did you mean 'torchvision:resnet50'"), ("--model_type resnet20", ""),
    ("--loss_type cross_entropy", "did you mean 'CE'"), ("--loss_type bce", "(BCE is not for classification)"),
    ("--loss_type CE Focl:0.5", "did you mean 'Focal'"), ("--loss_type mse", ""),
    ("--metrics acc", "did you mean 'accuracy'"),
    ("--metrics miou", ""), ("--data_type cifar10", "did you mean 'torchvision:CIFAR10'"), ("--augment auto", ""),
    ("--augment rand_aug", "did you mean 'randaugment'"), ("--logger tb", "did you mean 'tensorboard'"),
    ("--logger mlflow", ""),
]  # fmt: skip
OF_SEGMENTATION = [
    ("--loss_type cross_entropy", "did you mean 'PixelCE'"), ("--loss_type dice_loss", "did you mean 'Dice'"),
    ("--model_type unet++", "did you mean 'UNetpp'"), ("--model_type unet", "did you mean 'UNet'"),
    ("--metrics miou", "did you mean 'iou'"), ("--metrics acc5", ""),
]  # fmt: skip


@pytest.mark.parametrize(("task_class", "table"), [(TrainerVanilla, NAMES), (TrainerSeg, OF_SEGMENTATION)])
def test_a_wrong_name_of_a_component_has_the_right_answer_or_none(task_class, table, capsys):
    parser = train_parser(task_class)
    for flags, answer in table:
        line = last_line(parser, flags.split(), capsys)
        assert answer in line if answer else line.endswith("of your own\n"), line


def test_what_the_tables_name_exists():
    parsers = (train_parser(TrainerVanilla), train_parser(TrainerSeg), parser_of_test(EvaluatorVanilla))
    known = {name for parser in parsers for name in parser.known}
    rows = [row.split("|") for row in re.split(r"\n(?=\S)", (FIELD + OF_EVALUATION).strip())]
    assert {option for target, *_ in rows for option in target.partition("=")[0].split()} <= known
    names = [name for _, names, *_ in rows for name in names.split()]
    assert len(names) > 400 and not [name for name in names if name != name.lower() or "-" in name]
