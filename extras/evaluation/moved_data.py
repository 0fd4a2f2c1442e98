"""Say that the data of a run is not where it was."""

from argparse import Namespace
from typing import Any

from engine.options.foreign import NOT_HERE
from utils.errors import UserError


def datasets_of(evaluator_class: Any, opt: Namespace) -> dict[str, Any]:
    """Return the data sets of an evaluation; UserError when they cannot be made, with what the checkpoint says of them.

    Args:
        evaluator_class: of the task.
        opt: the options; `resume_notes` tell when the place of the data is not that of the checkpoint.
    """
    try:
        return evaluator_class.build_datasets(opt)
    except UserError as error:
        notes = [note for note in opt.resume_notes if note.startswith(NOT_HERE)]
        if not notes:
            raise
        raise UserError(f"{notes[0]} {error} Where the data of this run is now, say by --data_dir DIR.") from None
