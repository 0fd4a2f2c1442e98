"""Check that callbacks only watch: --debug."""

from callbacks.callback import Callback, call_one


def call_checked(callback: Callback, hook: str, trainer, *arguments) -> None:
    """Call a hook of one callback; RuntimeError when it changes weights, a learning rate or the train/eval mode."""
    before = fingerprint(trainer)
    call_one(callback, hook, trainer, *arguments)
    if fingerprint(trainer) != before:
        trainer.progress.is_exact = False  # a checkpoint written now must not be resumed from
        trainer.progress.is_spoiled = True
        raise RuntimeError(
            f"{type(callback).__name__}.{hook} changed weights, gradients, a learning rate or the train/eval mode. "
            "A callback only watches; to change the computation, override the trainer."
        )


def fingerprint(trainer) -> list:
    """Return a cheap record of the training's state: torch counts the in-place writes to each tensor."""
    record: list = []
    for network in trainer.networks.values():
        record += [module.training for module in network.modules()]
        for tensor in (*network.parameters(), *network.buffers()):
            record.append((id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad))
            record.append((id(tensor.grad), None if tensor.grad is None else tensor.grad._version))
    for optimizer in trainer.optimizers.values():
        record += [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return record
