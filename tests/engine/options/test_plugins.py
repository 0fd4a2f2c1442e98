"""Names of somebody's own: found, registered, and never imported because a checkpoint names them."""

import sys

import pytest

from engine.options.plugins import (
    REGISTERED,
    choices,
    find_own,
    import_module,
    is_reference,
    load,
    module_name,
    one_of_or_own,
    refuse_unrepeated,
    register_model,
    short_name,
    unrepeated,
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
    assert find_own("model", "my_module:Net").__name__ == "Net" and find_own("model", "UNet") is None


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


def test_a_type_lists_what_exists():
    from argparse import ArgumentTypeError

    take = one_of_or_own(["UNet", "Vanilla"], ["Adamax"], "of torch")
    assert [take(text) for text in ("UNet", "Adamax", "a:b")] == ["UNet", "Adamax", "a:b"]
    with pytest.raises(ArgumentTypeError, match=r"'UNetz' is not one of UNet, Vanilla; of torch: Adamax; or MODULE:"):
        take("UNetz")
    with pytest.raises(ArgumentTypeError):
        module_name("a:b")


# ---- registered names ------------------------------------------------------------------------------------------------
def test_a_registered_name_is_a_choice(registered):
    @register_model("mine")
    class Mine: ...

    assert choices("model", ["UNet"]) == ["UNet", "mine"] and find_own("model", "mine") is Mine
    assert choices("loss", ["CE"]) == ["CE"] and find_own("loss", "mine") is None
    assert register_model("mine")(Mine) is Mine  # the module is imported once more


def test_a_name_is_not_given_twice(registered):
    @register_model("mine")
    class Mine: ...

    with pytest.raises(ValueError, match="Mine has this name"):
        register_model("mine")(dict)
    with pytest.raises(UserError, match="the template has one of this name"):
        choices("model", ["mine"])
    for name in ("", "a:b", "a/b", "-a", "a b"):
        with pytest.raises(ValueError, match="a name has"):
            register_model(name)


def test_files_are_named_without_the_module():
    assert [short_name(text) for text in ("UNet", "a.b:Net", "torchvision:resnet18")] == ["UNet", "Net", "resnet18"]


# ---- what a checkpoint names -----------------------------------------------------------------------------------------
OWN = {"model_type": "UNet", "loss_type": "CE", "model_args": {}, "callbacks": None, "import": None, "optim": "adam"}


@pytest.mark.parametrize(
    ("saved", "asked", "flags"),
    [
        ({"model_type": "UNet", "optim": "Adamax", "loss_type": "ce:1.0"}, (), []),
        ({"model_type": "os:system"}, (), ["--model_type os:system"]),
        ({"model_type": "os:system"}, ("model_type",), []),  # what the user gives takes its place
        ({"import": ["evil", "worse"]}, (), ["--import evil worse"]),
        ({"callbacks": ["named", "a:B"]}, (), ["--callbacks named a:B"]),
        ({"callbacks": "a:B", "lr_scheduler": "c:D"}, (), ["--lr_scheduler c:D", "--callbacks a:B"]),
        ({"import": "a; rm"}, (), ["--import 'a; rm'"]),
    ],
)
def test_what_only_a_checkpoint_names_is_to_be_repeated(saved, asked, flags):
    assert unrepeated(saved, OWN, asked, is_foreign=False) == flags


def test_what_the_task_itself_names_need_not_be_repeated():
    assert unrepeated({"model_type": "my:Net"}, {"model_type": "my:Net"}, (), is_foreign=True) == []


def test_arguments_from_elsewhere_for_code_of_your_own_are_to_be_repeated():
    saved = {"model_type": "my:Net", "model_args": {"path": "/etc"}}
    own = {**OWN, "model_type": "my:Net"}
    assert unrepeated(saved, own, {"model_type"}, is_foreign=True) == ["""--model_args '{"path": "/etc"}'"""]
    assert unrepeated(saved, own, {"model_type", "model_args"}, is_foreign=True) == []
    assert unrepeated(saved, own, {"model_type"}, is_foreign=False) == []
    assert unrepeated({"model_type": "UNet", "model_args": {"up": "a"}}, OWN, (), is_foreign=True) == []


def test_the_refusal_says_what_to_repeat():
    refuse_unrepeated([], "a.pth")
    with pytest.raises(UserError, match=r"a.pth names code .* repeat: --model_type my:Net"):
        refuse_unrepeated(["--model_type my:Net"], "a.pth")
