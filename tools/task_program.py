"""The class that a program defines, by the program's name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from engine.registry import error_line, import_module, is_reference, load
from utils.errors import UserError, nearest

LOADED = "loaded_program"  # the name that a file is loaded under, so that it does not begin to run


def load_class(program: str, base: type, option: str) -> type:
    """Return the one subclass of `base` that a program defines itself.

    Args:
        program: a file such as trainer_vanilla.py, a module such as examples.own_task, or ``module:Class``.
        base: a base class of the task.
        option: the option that names the program, for messages.

    Raises:
        UserError: when there is no such program, it ends in an error, or does not define exactly one such class.
    """
    if is_reference(program):
        made = load(program, option)
        if not (isinstance(made, type) and issubclass(made, base)):
            raise UserError(f"--{option} {program} is no class derived from {base.__name__} ({base.__module__}.py).")
        return made
    module = load_file(program) if program.endswith(".py") else import_module(program, f"--{option} {program}")
    found = {kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)}
    own = [kind for kind in found if kind.__module__ == module.__name__]
    own = own or [kind for kind in found if kind is not base]  # a program may import its task from another file
    if len(own) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in own))
        raise UserError(
            f"{program} defines {len(own)} trainers{f' ({names})' if names else ''}; it must define one class derived "
            f"from {base.__name__}."
        )
    return own[0]


def command_of(program: str) -> list[str]:
    """Return the start of the command that runs a program: a file, or a module.

    Raises:
        UserError: it is a class, which is no program.
    """
    if is_reference(program):
        raise UserError(f"{program} is not a program: give a file, or a module such as examples.own_task.")
    return [sys.executable, program] if program.endswith(".py") else [sys.executable, "-m", program]


def load_file(program: str) -> ModuleType:
    """Load a file as a module; it may import its neighbours."""
    sys.path.insert(1, str(Path(program).resolve().parent))
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location(LOADED, program))
    sys.modules[LOADED] = module  # where pickle and dataclasses look for its classes
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except OSError as error:
        names = sorted(path.name for path in Path(program).parent.glob("*.py")) if error.filename else []
        hint = nearest(Path(program).name, names)
        raise UserError(f"Cannot load the trainer {program}: {error.strerror or error}{hint}.") from None
    except Exception as error:
        raise UserError(f"Cannot load the trainer {program}: {error_line(error)}") from error
    return module
