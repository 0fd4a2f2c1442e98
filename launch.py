"""What the command of a trainer does: it trains, unless an option asks for something else."""

import gc
from argparse import Namespace
from collections.abc import Sequence

from utils.distributed import place
from utils.options import run_main
from utils.processes import own_command, reported, start_processes


def launch(trainer_class: type, argv: Sequence[str] | None = None) -> None:
    """Do what a command line asks of a task's trainer, and end with its exit status.

    Args:
        trainer_class: the task's.
        argv: the command line; None for this process's.
    """
    run_main(lambda: run(trainer_class, argv))


def run(trainer_class: type, argv: Sequence[str] | None) -> None:
    """Train in this process, or start those that train; or prove that a resume is exact, or look into an update."""
    gc.freeze()  # what the imports made stays to the end: the garbage collector need not go through it again and again
    with reported():
        opt = trainer_class.parse_options(argv)
        if opt.verify_resume:
            from utils.verify_resume import verify_resume

            verify_resume(opt.verify_resume, opt.seed, opt.num_workers)
        elif opt.replay:
            from utils.replay import replay

            replay(lambda directory: trainer_class(Namespace(**vars(opt) | {"output_dir": directory})), opt.replay)
        elif (count := num_processes(opt)) > 1 and place()[1] == 1:
            on_cpus = ["--gpu_devices", "cpu"] if opt.nproc > 1 else []
            start_processes([*own_command(argv), *on_cpus], count, opt.max_restarts)
        else:
            trainer_class(opt).train()


def num_processes(opt: Namespace) -> int:
    """How many processes the options ask for: --nproc, or one for each of several GPUs."""
    of_gpus = len(opt.gpu_devices.split(",")) if opt.parallel in ("ddp", "fsdp") else 1
    return opt.nproc if opt.nproc > 1 else of_gpus
