"""What the command of a trainer does: it trains, unless an option asks for something else."""

import gc
from argparse import Namespace


def launch(trainer_class: type, opt: Namespace) -> None:
    """Train, or prove that a resume is exact, or look into an update that went wrong.

    Args:
        trainer_class: the task's.
        opt: its options.
    """
    gc.freeze()  # what the imports made stays to the end: the garbage collector need not go through it again and again
    if opt.verify_resume:
        from utils.verify_resume import verify_resume

        verify_resume(opt.verify_resume, opt.seed, opt.num_workers)
    elif opt.replay:
        from utils.replay import replay

        replay(lambda directory: trainer_class(Namespace(**vars(opt) | {"output_dir": directory})), opt.replay)
    else:
        trainer_class(opt).train()
