"""Say which option or component a wrong name may mean: first by the names of the field, then by the letters.

Other templates call the same option otherwise, and their names are often nearer by letters to another option: of
--gpus, --max_grad_norm or --warmup_steps no edit leads to the right one. So what they mean is in a table. By letters,
only a name with one wrong letter in four is near; where nothing is near, nothing is suggested.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.options.parser import OptionParser
from engine.registry import names as names_of

# A row, whose later lines are indented, has an option, or several of which the first that the program has is meant;
# maybe the value that it needs; the names of the field; and where these mean something else, a sentence about the
# option, in which {} stands for the value that was given.
FIELD = """
lr | learning_rate lr0 base_lr blr init_lr initial_lr max_lr lr_max peak_lr eta eta0 learning_rate_init
n_epoch | epochs epoch n_epochs num_epochs num_epoch num_train_epochs train_epochs max_epochs max_epoch nb_epoch
    nb_epochs total_epochs end_epoch
max_updates | max_steps max_iters max_iter n_iter n_iters num_steps num_iters iterations steps train_steps
    training_steps max_train_steps num_train_steps total_steps
batch_size | bs b batch train_batch_size train_bs total_batch_size global_batch_size effective_batch_size
    mini_batch_size mbs | It counts the samples of one update, over all devices.
micro_batch_size | per_device_train_batch_size per_gpu_batch_size device_batch_size batch_size_per_gpu | It counts
    the samples on a device at once; --batch_size those of an update, over all devices.
micro_batch_size | gradient_accumulation_steps gradient_accumulation grad_accum grad_accum_steps
    grad_accumulation_steps accumulate_grad_batches accumulate_grad accumulate_steps accum_iter accum_steps
    accumulation_steps accumulate iter_size update_freq | It is --batch_size / {}: the samples in memory at once,
    while --batch_size counts those of an update.
eval_batch_size | val_batch_size test_batch_size valid_batch_size validation_batch_size per_device_eval_batch_size
    eval_bs val_bs test_bs
weight_decay | wd l2 l2_reg l2_penalty l2_regularization
momentum | mom sgd_momentum
optim=nesterov | nesterov use_nesterov
optim | optimizer opt optimiser optimizer_type optimizer_name optim_type optim_name solver
lr_scheduler | scheduler sched lr_scheduler_type lr_schedule schedule scheduler_type scheduler_name sched_type
    lr_policy lr_sched
lr_min | min_lr eta_min final_lr end_lr lr_end
lr_min | lrf final_lr_ratio min_lr_ratio min_lr_rate | It is a rate, not a share of --lr.
lr_decay_rate | gamma lr_gamma decay_rate lr_decay lr_decay_factor lr_decay_gamma
lr_decay_every | lr_step lr_step_size step_size decay_epochs lr_drop lr_step_period | It counts epochs.
lr_decay_epochs | milestones lr_milestones lr_steps
warmup_epoch | warmup warmup_epochs num_warmup_epochs lr_warmup_epochs n_warmup_epochs warm_up warmup_steps
    num_warmup_steps lr_warmup_steps warmup_iters warmup_iterations warmup_ratio warmup_proportion warmup_updates |
    It counts epochs, and may be a fraction.
clip_type=value | clip_value clip_grad_value grad_clip_value gradient_clip_value | The limit is --clip.
clip | grad_clip gradient_clip gradient_clipping gradient_clip_val grad_clipping clip_grad clip_grad_norm clip_norm
    grad_norm_clip grad_clip_norm grad_max_norm max_grad_norm max_norm gradient_clip_norm clipping clip_gradient
    clip_gradients
clip_type | gradient_clip_algorithm clip_mode
amp=fp16 | fp16 half float16 use_fp16
amp=bf16 | bf16 bfloat16 use_bf16
amp=no | fp32 no_amp
amp | mixed_precision precision use_amp autocast dtype amp_dtype
gpu_devices=cpu | no_cuda no_gpu cpu use_cpu force_cpu cpu_only
gpu_devices | gpu gpus gpu_id gpu_ids device devices cuda cuda_device cuda_devices visible_devices device_ids
    device_id accelerator use_gpu use_cuda | It takes ids as 0 or 0,1, or cpu.
gpu_devices | num_gpus n_gpus n_gpu ngpus ngpu num_gpu num_devices gpus_per_node ngpus_per_node devices_per_node |
    It takes ids, not a number: 0,1 with --parallel ddp are two GPUs.
nproc | nproc_per_node num_processes n_proc nprocs world_size num_procs | It is for CPUs; for GPUs give
    --gpu_devices 0,1 --parallel ddp.
parallel=ddp | ddp distributed use_ddp multi_gpu multigpu dist distributed_data_parallel multiprocessing_distributed
parallel=dp | data_parallel dp dataparallel
parallel=fsdp | fsdp use_fsdp
parallel | strategy distribution_strategy
sync_bn | sync_batchnorm syncbn sync_batch_norm
num_workers | workers j nworkers n_workers dataloader_num_workers loader_workers data_workers num_data_workers
    dataloader_workers num_cpu_workers
model_type | model arch architecture network net backbone model_name model_arch net_type network_type
    model_architecture
data_type | dataset data_set dataset_name data_name dataset_type
data_dir | data data_path dataset_path dataset_dir root data_root datadir dataroot root_dir image_dir img_dir images
    train_dir input_dir data_folder dataset_root
resume | resume_from_checkpoint resume_from checkpoint ckpt ckpt_path checkpoint_path continue continue_training
    continue_train continue_from resume_path resume_training restore load_checkpoint model_checkpoint | It goes on
    with that run; --pretrained FILE starts a new one from its weights.
resume=auto | auto_resume autoresume resume_latest resume_last
pretrained | weights pretrained_weights pretrained_model pretrained_path pretrain init_from init_checkpoint
    load_weights init_weights initial_weights finetune finetune_from imagenet load load_from load_model
output_dir | log_dir logdir log_path save_dir savedir save_path output out outdir out_dir output_path output_folder
    o checkpoint_dir ckpt_dir work_dir workdir results_dir result_dir results_path default_root_dir run_dir runs_dir
    exp_dir model_dir save_folder checkpoints_dir save
proj_name | name exp_name exp experiment experiment_name expname run_name project project_name wandb_project
description | note notes comment tag tags
patience | early_stopping early_stop early_stopping_patience early_stop_patience es_patience earlystop earlystopping
    n_iter_no_change | It counts validations.
min_delta | early_stopping_delta early_stopping_min_delta tol
val_split | val_ratio validation_split valid_ratio val_frac val_fraction val_size val_percent val_pct valid_size
    valid_split validation_ratio validation_fraction holdout
test_sample_rate | test_ratio test_size test_split test_frac test_fraction
train_val_sample_rate | subset data_fraction train_fraction data_frac max_train_samples subset_size limit_data
    sample_rate train_subset num_train_samples n_samples
fold | folds k_fold kfold k_folds n_folds num_folds n_splits cv cross_validation | It takes one part, as 1/5; python
    -m tools.folds trains on all.
class_weights | class_weight weighted_loss loss_weights
sampler=balanced | weighted_sampler balanced_sampler oversample oversampling balanced balance_classes
    use_weighted_sampler
augment=randaugment | randaug rand_aug rand_augment
augment=trivial | trivial_augment trivialaugment
augment | aug augmentation augmentations data_aug data_augmentation use_aug use_augmentation aa auto_augment
    autoaugment
mixup | mixup_alpha mix_up
cutmix | cutmix_alpha
label_smoothing | smoothing label_smooth
loss_type | loss criterion loss_fn loss_function loss_func loss_name
metrics | metric eval_metrics
monitor | monitor_metric best_metric metric_for_best_model eval_metric selection_metric checkpoint_metric
    early_stopping_metric
monitor_mode | greater_is_better early_stopping_mode
seed | random_seed random_state manual_seed rng_seed manualseed
image_size patch_size | img_size imgsz image_sz img_sz size input_size im_size imsize img_dim resolution res resize
    image_resolution
crop | crop_size random_crop
n_classes | num_classes nc nclass classes n_class num_class num_labels nb_classes out_channels
n_channels | in_channels in_chans channels input_channels num_channels in_ch nchannels
log_every | log_interval log_freq log_frequency logging_steps log_every_n_steps log_step log_steps print_freq
    print_every print_interval disp_freq logging_interval | It counts updates.
val_every | val_interval val_freq val_frequency validate_every validation_interval eval_interval eval_freq
    eval_every eval_steps eval_epochs test_interval check_val_every_n_epoch val_check_interval evaluation_strategy
    eval_strategy | It counts epochs.
save_every_updates | save_steps checkpoint_steps | It counts updates.
save_every | save_freq save_frequency save_interval save_period save_epochs checkpoint_interval checkpoint_every
    checkpoint_freq ckpt_interval | It counts epochs.
keep | save_total_limit save_top_k max_to_keep keep_last keep_checkpoints max_checkpoints
ema | ema_decay model_ema use_ema weight_ema ema_rate | It takes the decay, as 0.999.
swa_start | swa use_swa stochastic_weight_avg | It takes the first epoch of the mean.
compile | torch_compile torchcompile compile_model use_compile
deterministic | cudnn_deterministic determinism use_deterministic_algorithms
logger=wandb | wandb use_wandb wandb_log log_wandb
logger=tensorboard | tensorboard use_tensorboard tb
logger | report_to log_with loggers
freeze | freeze_backbone freeze_layers freeze_encoder frozen_layers freeze_base freeze_bn | It takes patterns on the
    names of parameters, as 'layers.0.*'.
optim_args | betas adam_beta1 adam_beta2 adam_epsilon eps opt_eps optimizer_args optimizer_kwargs optim_kwargs
    adam_betas | It takes JSON, as '{"betas": [0.9, 0.95], "eps": 1e-6}'.
model_args | model_kwargs model_config model_params | It takes JSON, as '{"width": 64}'.
config | cfg c conf config_file config_path configuration yaml hparams params hyp
debug | dry_run dryrun fast_dev_run smoke_test quick
limit_batches | limit_train_batches limit_val_batches max_batches
max_time | time_limit walltime max_hours max_minutes max_seconds | It takes a time as 3h50m.
profile | profiler use_profiler profiling
activation_checkpointing | gradient_checkpointing grad_checkpointing grad_checkpoint use_checkpoint
    use_checkpointing activation_checkpoint
drop_last | droplast drop_remainder
nan_policy | skip_nan detect_nan nan_check
find_unused | find_unused_parameters
viz | visualize visualise plot show
split | part subset_name eval_split
"""
OF_EVALUATION = """
model_path | resume_from_checkpoint checkpoint ckpt ckpt_path checkpoint_path weights model_checkpoint
    pretrained_weights resume load load_from load_checkpoint restore
save_path | save_dir output output_dir out outdir out_dir output_path o results_dir result_dir log_dir
"""  # what the names mean there

# The names of the field for components, of each kind: the name here, then the others without case, _ and -.
COMPONENTS = {
    "optimizer": """
        adamW  adamwtorch adamwtorchfused adamwfused fusedadamw
        adam  fusedadam adamoptimizer
        sgd  momentum sgdm sgdmomentum msgd
        nesterov  nag sgdnesterov nesterovsgd
        rmsprop  rms""",
    "scheduler": """
        cosine  cosineannealing cos cosinelr cosinedecay cosineschedule cosinewithwarmup warmupcosine cosinewarmup
        linear  linearwithwarmup lineardecay linearwarmup
        constant  none no fixed constantwithwarmup off null flat
        step  stepdecay
        exponential  exp expdecay
        ReduceLROnPlateau  plateau reduceonplateau lronplateau rop
        MultiStepLR  multistep
        OneCycleLR  onecycle onecyclepolicy
        PolynomialLR  poly polynomial polylr polydecay
        CosineAnnealingWarmRestarts  cosinewithrestarts cosinerestarts warmrestarts sgdr cosinewarmrestarts
        CyclicLR  cyclic clr""",
    "loss": """
        CE PixelCE  crossentropy crossentropyloss celoss nll nllloss softmax xent categoricalcrossentropy
        Focal  focalloss
        Dice  diceloss softdice dicecoefficient
        CEDice  dicece dicecrossentropy combo celdice
        BCE  bceloss bcewithlogits bcewithlogitsloss binarycrossentropy
        LeastSquares  lsgan mse mseloss l2""",
    "metric": """
        accuracy  acc top1 acc1 top1accuracy
        top5  acc5 top5accuracy
        f1  f1score fscore macrof1 f1macro
        precision  prec
        recall  rec sensitivity
        iou  miou meaniou jaccard
        dice  dicescore dsc dicecoef
        torchmetrics.classification:MulticlassAUROC  auc auroc rocauc""",
    "model": """
        Vanilla MLP  mlp
        ResNet18  resnet
        UNetpp  unet++ unetplusplus nestedunet""",
    "data": """
        FashionMNIST  fmnist
        torchvision:MNIST  mnist
        torchvision:CIFAR10  cifar10 cifar
        torchvision:CIFAR100  cifar100
        ImageFolder  folder imagefolders
        Table  csv tabular""",
    "augmentation": """
        randaugment  randaug
        trivial  trivialaugment trivialaugmentwide
        light  basic simple default standard weak flip""",
    "logger": """
        tensorboard  tb tensorboardx
        wandb  weightsandbiases weightsbiases""",
}
OF_TORCHVISION = re.compile(
    r"resnet(34|50|101|152)|vgg(11|13|16|19)(_bn)?|efficientnet_b[0-7]|convnext_(tiny|small|base|large)|mobilenet_v2|"
    r"densenet(121|161|169|201)|mobilenet_v3_(small|large)|vit_[bl]_(16|32)|swin_[tsb]|alexnet|googlenet|inception_v3"
)

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
LEAST_PREFIX = 0.6  # of a name, that is taken for the whole
PRECISIONS = {
    "fp16": "fp16", "float16": "fp16", "16": "fp16", "16-mixed": "fp16", "half": "fp16", "bf16": "bf16",
    "bfloat16": "bf16", "bf16-mixed": "bf16", "fp32": "no", "float32": "no", "32": "no", "no": "no",
}  # fmt: skip


# ---- options ---------------------------------------------------------------------------------------------------------
def of_flag(parser: OptionParser, text: str, argv: Sequence[str]) -> str:
    """Return a hint for an unknown flag, or "".

    Args:
        parser: does not know it.
        text: the flag, maybe with = and a value.
        argv: the command line.
    """
    flag, _, value = text.partition("=")
    behind = argv[argv.index(text) + 1 :]
    if not value and behind and not behind[0].startswith("-"):
        value = behind[0]
    flags = [text for action in parser._actions for text in action.option_strings]
    name = flag.lstrip("-")
    if f"--{name}" not in flags and name in parser.passed_over:
        return f" (--{name} is an option of training)"
    dashes = {text.lstrip("-"): text for text in flags}
    return in_brackets(name, value, dashes, "{} {}")


def of_name(name: str, value: Any, known: Iterable[str]) -> str:
    """Return a hint for the wrong name of an option in a file, a --set or an argument of a function; or ""."""
    text = "" if isinstance(value, (dict, list)) else str(value)
    return in_brackets(name, text, dict.fromkeys(known), "{}' with the value '{}")


def in_brackets(name: str, value: str, known: Mapping[str, str | None], joined: str) -> str:
    """Return `` (did you mean 'X'? REMARK)``, or ``""``.

    Args:
        name: the wrong name.
        value: the text that it was given.
        known: each name with the text that is shown for it; None for the name itself.
        joined: joins the name and the value that it needs.
    """
    option, needed, remark = meant(name[:60].lower().replace("-", "_"), known) or (near(name[:60], known), "", "")
    if option is None:
        return ""
    value = value.strip().lower()
    if needed and value in ("false", "no", "0"):
        needed = ""
    elif option == "amp" and not needed:
        needed = PRECISIONS.get(value, "")
    elif option == "gpu_devices" and not needed:
        cuda = re.fullmatch(r"cuda(?::([0-9]+))?", value)
        needed = (cuda[1] or "0") if cuda else "cpu" if value == "cpu" else ""
    text = known[option] or option
    text = joined.format(text, needed) if needed else text
    remark = remark.replace("{}", value if NUMBER.fullmatch(value) else "that number")
    return f" (did you mean '{text}'?{' ' + remark if remark else ''})"


def meant(name: str, known: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the option, the value that it needs, and the remark of the first row of `FIELD` with `name`, or None."""
    table = FIELD if "n_epoch" in known else OF_EVALUATION + FIELD
    for row in re.split(r"\n(?=\S)", table.strip()):
        target, names, *remark = (" ".join(part.split()) for part in row.split("|"))
        options, _, needed = target.partition("=")
        taken = [option for option in options.split() if option in known]
        if taken and name in names.split():
            return taken[0], needed, "".join(remark)
    return None


# ---- components ------------------------------------------------------------------------------------------------------
def of_component(kind: str, text: str, known: Sequence[str], task: str | None) -> str:
    """Return a hint for a wrong name of a component, or "".

    Args:
        kind: of the registry.
        text: the wrong name.
        known: the names that the option takes.
        task: of the program; None for any.
    """
    for row in COMPONENTS.get(kind, "").strip().splitlines():
        targets, names = row.strip().split("  ")
        for target in targets.split():
            is_taken = target in known or (task == "classification" and (":" in target or target == "top5"))
            if is_taken and plain(text) in names.split():
                return f" (did you mean '{target}'?)"
    elsewhere = [name for name in names_of(kind) if plain(name) == plain(text)]
    found = near(text, known)
    if elsewhere and found not in elsewhere:
        return f" ({elsewhere[0]} is not for {task})"
    if found:
        return f" (did you mean '{found}'?)"
    if kind == "model" and task == "classification" and OF_TORCHVISION.fullmatch(text.lower()):
        return f" (did you mean 'torchvision:{text.lower()}'?)"
    return ""


# ---- letters ---------------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """Return a name without case, _ and -.

    >>> plain("Adam_W"), plain("batch-size")
    ('adamw', 'batchsize')
    """
    return re.sub(r"[ _.-]", "", text.lower())


def near(text: str, known: Iterable[str]) -> str | None:
    """Return the known name that `text` may be a slip of, or None: a wrong letter in four, or a long beginning.

    >>> near("batchsize", ["batch_size"]), near("n_epohc", ["n_epoch"]), near("deb", ["debug"]), near("tta", ["data"])
    ('batch_size', 'n_epoch', 'debug', None)
    """
    by_letters = {plain(name): name for name in known}
    wrong = plain(text)
    if wrong in by_letters:
        return by_letters[wrong]
    of_digits = re.sub(r"\D", "", wrong)  # a name with another number is another thing
    others = [name for name in by_letters if len(name) > 1 and re.sub(r"\D", "", name) == of_digits]
    begun = [name for name in others if name.startswith(wrong) and len(wrong) >= LEAST_PREFIX * len(name)]
    if len(wrong) > 2 and len(begun) == 1:
        return by_letters[begun[0]]
    most = max(1, len(wrong) // 4) if len(wrong) > 2 else 0
    distances = [(distance(wrong, name), -len(name), name) for name in others if abs(len(name) - len(wrong)) <= most]
    steps, _, nearest = min(distances, default=(most + 1, 0, ""))  # of two, the longer: a letter is sooner left out
    return by_letters[nearest] if steps <= most else None


def distance(one: str, other: str) -> int:
    """Return how many letters must be changed, added, removed or swapped with their neighbour.

    >>> distance("lrr", "lr"), distance("epohc", "epoch"), distance("ema", "amp")
    (1, 1, 3)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, target in enumerate(other, start=1):
            steps = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                steps = min(steps, last[j - 2] + 1)
            row.append(steps)
    return row[-1]
