"""Components by name: listed without torch, made with errors in one line, never imported because of a checkpoint."""

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from engine.registry import (
    BUILT_INS,
    REGISTERED,
    call,
    find,
    import_module,
    is_reference,
    load,
    make,
    module_name,
    name_type,
    names,
    register_loss,
    register_model,
    short_name,
    split_arguments,
    taken,
)
from utils.errors import UserError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes a module into the current directory, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = []

    def module(text: str, name: str = "my_module") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield module
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def registered(monkeypatch):
    """Names that are forgotten afterwards."""
    for kind in REGISTERED:
        monkeypatch.setitem(REGISTERED, kind, {})


@pytest.mark.parametrize("text", ["a:b", "my_package.nets:MyNet", "größe:Netz", "a.b.c:d"])
def test_what_is_a_reference(text):
    assert is_reference(text)


@pytest.mark.parametrize(
    "text", ["", ":", "a:", ":b", "a", "a.b", "ce:1.0", "ce:0.5", "torchvision:resnet18", "timm:vit", "a:b:c",
             "../a:b", "a/b:c", ".a:b", "a b:c", "a:b c", "a:b\n", "a.:b", "a:" + "b" * 300, None, 3, ["a:b"]],
)  # fmt: skip
def test_what_is_none(text):
    assert not is_reference(text)


def test_a_class_is_found_in_the_current_directory(module):
    module("class Net: ...\nnumber = 3")
    assert load("my_module:Net", "model_type").__name__ == "Net"
    assert find("model", "my_module:Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such:Net", ["--model_type no_such:Net", "no module 'no_such'"]),
        ("my_module.inner:Net", ["no module 'my_module.inner'"]),
        ("my_module:Ned", ["has no 'Ned'", "did you mean 'Net'", "it has Net"]),
        ("my_module:number", ["neither a class nor a function", "int"]),
        ("broken:Net", ["broken cannot be imported", "ZeroDivisionError", "broken.py:2"]),
        ("needs:Net", ["needs cannot be imported", "no_such_package"]),
    ],
)
def test_what_is_not_there_is_named_in_one_line(module, reference, words):
    module("class Net: ...\nnumber = 3")
    module("\n1 / 0", "broken")
    module("import no_such_package", "needs")
    with pytest.raises(UserError) as error:
        load(reference, "model_type")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_file_of_the_current_directory_hides_no_package(module):
    sys.modules.pop("colorsys", None)
    assert import_module(module("is_here = True", "colorsys"), "--import colorsys").rgb_to_hsv


def test_a_type_lists_the_names():
    take = name_type("optimizer")
    assert [take(text) for text in ("adamW", "Adamax", "a:b")] == ["adamW", "Adamax", "a:b"]
    message = r"'adamx' is not one of adam, .*; or of torch.optim: ASGD, .*; or MODULE:NAME.*mean 'Adamax'"
    with pytest.raises(ArgumentTypeError, match=message):
        take("adamx")
    assert name_type("model", "classification")("timm:resnet18") == "timm:resnet18"
    for kind, task in (("model", "segmentation"), ("loss", None)):
        with pytest.raises(ArgumentTypeError):
            name_type(kind, task)("timm:resnet18")
    with pytest.raises(ArgumentTypeError):
        module_name("a:b")


# ---- built in --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BUILT_INS for name in BUILT_INS[kind]])
def test_every_name_of_the_template_stands_for_a_class_or_function(kind, name):
    assert callable(find(kind, name)) and name in names(kind)


def test_names_fit_the_task():
    assert names("model", "generation") == ["DCGAN"] and names("loss", "segmentation") == ["CEDice", "PixelCE", "Dice"]
    assert names("data", "no such task") == [] and "adamW" in names("optimizer", "no such task")


def test_names_are_listed_without_torch(fresh_python):
    text = "import sys; from engine.registry import KINDS, names; print([*map(len, map(names, KINDS))]); "
    done = fresh_python("-c", text + "print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert done.stdout.split("\n")[1] == "False False", done.stderr


# ---- registered names ------------------------------------------------------------------------------------------------
def test_a_registered_name_is_a_choice(registered):
    @register_model("mine")
    class Mine: ...

    assert names("model", "generation") == ["DCGAN", "mine"] and find("model", "mine") is Mine
    assert "mine" not in names("loss")
    assert register_model("mine")(Mine) is Mine  # the module is imported once more


def test_a_name_is_not_given_twice(registered):
    @register_model("mine")
    class Mine: ...

    with pytest.raises(ValueError, match="Mine has this name"):
        register_model("mine")(dict)
    with pytest.raises(ValueError, match="the template has a model of this name"):
        register_model("UNet")
    for name in ("", "a:b", "a/b", "-a", "a b"):
        with pytest.raises(ValueError, match="a name has"):
            register_model(name)


def test_files_are_named_without_the_module():
    assert [short_name(text) for text in ("UNet", "a.b:Net", "torchvision:resnet18")] == ["UNet", "Net", "resnet18"]


# ---- make ------------------------------------------------------------------------------------------------------------
def test_a_component_is_made_of_others(registered):
    @register_loss("halved")
    class Halved(nn.Module):
        def __init__(self, inner: dict):
            super().__init__()
            self.inner = make("loss", inner)

    nested = {"name": "halved", "args": {"inner": {"name": "halved", "args": {"inner": {"name": "Focal"}}}}}
    assert make("loss", nested).inner.inner.gamma == 2.0
    nested["args"]["inner"]["args"]["inner"]["args"] = {"gama": 1.0}
    with pytest.raises(UserError, match=r"--loss_args: FocalLoss takes no argument 'gama'.*did you mean 'gamma'"):
        make("loss", nested)


def test_a_component_gets_what_it_names_and_arguments_win():
    assert make("loss", "CE", {"n_classes": 3, "other": 1}).weight is None
    assert make("model", {"name": "LeNet", "args": {"n_classes": 4}}, {"n_classes": 3}).classifier[-1].out_features == 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "is given as"), ({"name": 3}, "is given as"), ({"name": "Focal", "arg": {}}, "is given as"),
        ({"name": "Focal", "args": 3}, "is given as"), (3, "is given as"), ("Fokal", "did you mean 'Focal'"),
        ({"name": "Focal", "args": {"gamma": "x"}}, "gamma of FocalLoss is of type float"),
    ],
)  # fmt: skip
def test_a_component_that_cannot_be_made_is_named(spec, words):
    with pytest.raises(UserError, match=words) as error:
        make("loss", spec)
    assert "\n" not in str(error.value)


class Net:
    def __init__(self, width: int, depth: int = 2, *, up: str = "a"):
        if width < 1:
            raise ValueError("too narrow")
        self.given = (width, depth, up)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 1, "dept": 1}, ["--args", "Net takes no argument 'dept'", "mean 'depth'", "width, depth, up"]),
        ({}, ["needs the argument width", "--args"]),
        ({"width": 0}, ["Net cannot be made", '"width": 0', "ValueError: too narrow", "test_registry.py"]),
        ({"width": "x"}, ["--args: width of Net is of type int", "x"]),
        ({"self": 1, "width": 1}, ["'self'"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(UserError) as error:
        call(Net, {}, arguments, "--args")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_arguments_of_a_person_win():
    assert call(Net, {"width": 1, "depth": 3, "more": 5}, {"depth": 4, "up": "b"}, "--args").given == (1, 4, "b")


def test_errors_of_torch_are_one_line():
    with pytest.raises(UserError, match="Muon cannot be made: ValueError"):
        call(torch.optim.Muon, {}, {}, "--args", first=[[nn.Parameter(torch.ones(3))]])
    with pytest.raises(UserError, match="cannot be made: TypeError"):
        call(lambda: None, {}, {}, "--args", first=[1])


def test_only_named_parameters_are_offered():
    assert taken(Net, {"width": 1, "other": 2}) == {"width": 1}
    assert taken(lambda a, **more: None, {"a": 1, "b": 2}) == {"a": 1}
    assert call(lambda a, **more: (a, more), {"a": 1}, {"b": 2}, "--args") == (1, {"b": 2})
    assert call(lambda first, b: (first, b), {}, {"b": 2}, "--args", first=[1]) == (1, 2)
    with pytest.raises(UserError, match="takes no argument 'first'"):
        call(lambda first, b=1: (first, b), {}, {"first": 2}, "--args", first=[1])


class Typed:
    def __init__(self, count: int, share: float = 0.5, on: "bool" = True, seed: int = None, ends: Sequence[str] = ()):  # noqa: RUF013
        self.given = (count, share, on, seed, ends)


@pytest.mark.parametrize(
    "arguments", [{"count": 1.5}, {"count": True}, {"count": None}, {"share": "x"}, {"share": False}, {"on": "no"},
                  {"on": 1}],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(arguments):
    ((name, _),) = arguments.items()
    with pytest.raises(UserError, match=f"--args: {name} of Typed is of type"):
        call(Typed, {"count": 1}, arguments, "--args")


def test_values_of_the_annotated_type_are_accepted():
    arguments = {"count": 2, "share": 1, "on": False, "seed": None, "ends": ["a", "b"]}
    assert call(Typed, {}, arguments, "--args").given == (2, 1, False, None, ["a", "b"])


def test_the_arguments_of_several_go_by_their_names():
    assert split_arguments({"b": {"x": 1}}, ["a", "b"], "--args", "loss") == {"a": {}, "b": {"x": 1}}
    with pytest.raises(UserError, match=r"--args: there is no loss 'bb' \(did you mean 'b\w+'\?\); there are a, bbb"):
        split_arguments({"bb": {}}, ["a", "bbb"], "--args", "loss")
    with pytest.raises(UserError, match="give the arguments of b as"):
        split_arguments({"b": 3}, ["a", "b"], "--args", "loss")
