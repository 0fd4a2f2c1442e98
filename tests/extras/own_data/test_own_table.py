"""Tables: which columns are used, how they become inputs, and what is refused."""

import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.data_entry import build_datasets, seen_groups, with_found
from engine.options.parser import Options, changed
from extras.own_data.cells import texts_of
from extras.own_data.columns import encode, form_of, make_column
from extras.own_data.table import read_rows
from utils.errors import UserError


def line_of(number: int) -> str:
    x = "" if number == 7 else number
    return f"{number % 5},{x},{'ab'[number % 2]},p{number // 2},{10 * number}"


@pytest.fixture
def table(tmp_path) -> Path:
    """Forty rows, two of each patient, with a code, a number that is missing once, a text, and another number."""
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["code,x,kind,patient,y", *map(line_of, range(40))]))
    return path


def options(path: Path, **given) -> Options:
    usual = {"train_val_sample_rate": 1.0, "test_sample_rate": None, "val_split": 0.25, "split_seed": 0}
    usual |= {"features": None, "leave_out": None, "group": None, "categories": None, "columns": None, "target": "y"}
    usual |= {"n_channels": None, "n_classes": None, "class_names": None, "data_args": {}, "asked_to_cut": ()}
    return Options(**usual | {"data_type": "Table", "data_dir": str(path)} | given)


def test_a_column_is_standardized_by_the_training_part_alone(table):
    parts = build_datasets(options(table, features=["x"], group="patient"))
    rows = {part: [int(name.split()[1]) - 2 for name in dataset.names] for part, dataset in parts.items()}
    there = [float(number) for number in rows["train"] if number != 7]
    mean, std = np.mean(there), np.std(there)
    for part, numbers in rows.items():
        expected = [0.0 if number == 7 else (number - mean) / std for number in numbers]
        torch.testing.assert_close(parts[part].inputs[:, 0], torch.tensor(expected, dtype=torch.float32))
        assert parts[part].values[:, 0].tolist() == [10.0 * number for number in numbers]
    patients = {part: {number // 2 for number in numbers} for part, numbers in rows.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 20
    found = parts["train"].found_options
    assert found["columns"]["inputs"] == [{"name": "x", "mean": pytest.approx(mean), "std": pytest.approx(std)}]
    assert found["n_channels"] == found["n_classes"] == 1 and "class_names" not in found


def test_the_constants_of_a_checkpoint_are_used_instead(table, tmp_path):
    opt = options(table, features=["x", "kind"])
    opt = with_found(changed(opt, pretrained=False), build_datasets(opt))
    other = tmp_path / "new.csv"
    other.write_text("kind;x;note\nb;1,5;\nc;;nothing\n")  # semicolons, a decimal comma, an unknown text
    form = opt.columns["inputs"][0]
    inputs = torch.stack([inputs for _, inputs in read_rows(other, opt)])
    expected = [[(1.5 - form["mean"]) / form["std"], 0, 1], [0, 0, 0]]
    torch.testing.assert_close(inputs, torch.tensor(expected, dtype=torch.float32))
    assert texts_of(other)[1] == {"kind": "c", "x": "", "note": "nothing"}
    again = build_datasets(changed(opt, test_sample_rate=1.0, split="test"))
    assert [len(part) for part in again.values()] == [0, 0, 40]
    assert again["test"].found_options["columns"] == opt.columns


def test_categories_become_zeros_and_a_one(table):
    parts = build_datasets(options(table, features=["code", "kind"], categories=["code"]))
    assert parts["train"].inputs.shape[1] == 5 + 2
    assert parts["train"].inputs.sum(dim=1).tolist() == [2.0] * len(parts["train"])
    assert parts["train"].found_options["columns"]["inputs"][0] == {"name": "code", "values": list("01234")}


@pytest.mark.parametrize(
    ("given", "classes"),
    [({"target": "kind"}, ["a", "b"]), ({"target": "code", "categories": ["code"]}, list("01234")),
     ({"target": "kind", "class_names": ["b", "a"]}, ["b", "a"])],
)  # fmt: skip
def test_texts_and_codes_are_classes(table, given, classes):
    parts = build_datasets(options(table, **given))
    assert parts["train"].found_options["class_names"] == classes
    assert parts["train"].found_options["n_classes"] == len(classes)
    row = int(parts["test"].names[0].split()[1]) - 2
    label = {"kind": "ab"[row % 2], "code": str(row % 5)}[given["target"]]
    assert classes[parts["test"].values[0]] == label and parts["test"].values.dtype == torch.int64


def test_parts_of_their_own(tmp_path):
    for part, rows in (("train", "1,2\n3,4\n"), ("valid", "5,6\n"), ("test", "7,8\n")):
        (tmp_path / f"{part}.csv").write_text(f"x,y\n{rows}")
    parts = build_datasets(options(tmp_path))
    assert [len(part) for part in parts.values()] == [2, 1, 1]
    torch.testing.assert_close(parts["test"].inputs, torch.tensor([[5.0]]))  # (7 - 2) / 1
    path = tmp_path / "one" / "table.csv"
    path.parent.mkdir()
    path.write_text("x,y,split\n1,2,train\n3,4,train\n5,6,val\n7,8,test\n")
    one = build_datasets(options(path.parent))
    assert all(torch.equal(one[part].inputs, parts[part].inputs) for part in parts)


def test_equal_rows_stay_together_and_are_recognized(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("x,y\n" + "".join(f"{number // 4},{number // 4}\n" for number in range(60)))
    parts = build_datasets(options(path, test_sample_rate=0.2))
    seen_groups(parts)
    assert sum(len(set(part.groups)) for part in parts.values()) == 15


def test_arrays(tmp_path):
    x = np.arange(24.0).reshape(12, 2)
    x[3, 1] = math.nan
    np.savez(tmp_path / "table.npz", x=x, kind=np.array(list("aabb" * 3)), y=np.arange(12))
    parts = build_datasets(options(tmp_path / "table.npz", features=["x*"]))
    assert [form["name"] for form in parts["train"].found_options["columns"]["inputs"]] == ["x.0", "x.1"]
    assert parts["train"].inputs.isfinite().all()
    np.savez(tmp_path / "wrong.npz", x=x, y=np.arange(5))
    with pytest.raises(UserError, match="has columns of 5, 12 rows: give as many to each"):
        build_datasets(options(tmp_path / "wrong.npz"))
    np.savez(tmp_path / "object.npz", x=np.array([{}]))
    with pytest.raises(UserError, match="cannot be read as an npz file"):
        build_datasets(options(tmp_path / "object.npz"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target": None}, "--target names the column to predict: .* has code, x, kind, patient, y"),
        ({"target": "z"}, "has no column 'z'"),
        ({"target": "x"}, "line 9: the cell of the target x is missing, as in 1 rows"),
        ({"features": ["X"]}, r"--features 'X' is no column \(did you mean 'x'\?\)"),
        ({"leave_out": ["*"]}, "No column of .* is left to predict y from"),
        ({"features": ["x", "y"]}, "--features names 'y', which --target keeps from the inputs"),
        ({"features": ["x", "patient"], "group": "patient"}, "names 'patient', which --group keeps from the inputs"),
        ({"features": ["x", "code"], "leave_out": ["c*"]}, "names 'code', which --leave_out keeps from the inputs"),
        ({"features": ["x"], "categories": ["code"]}, "--categories 'code' has no effect: it is neither an input"),
        ({"target": "kind", "class_names": ["a", "b", "a"]}, "--class_names has 'a' twice"),
        ({"data_dir": "/nowhere.csv"}, "There is no table /nowhere.csv"),
        ({"target": "patient", "features": ["x"], "class_names": ["p0"]}, "has the class 'p1'"),
    ],
)
def test_options_that_do_not_fit_are_refused(table, given, words):
    with pytest.raises(UserError, match=words):
        build_datasets(options(table, **given))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,x\n1,2", "two columns have the name 'x'"),
        ("x,y\n1", "line 2: it has not as many values"),
        ("x,y\n1,2,3", "line 2: it has not as many values"),
        ("x,y", "has no line below a header"),
        ("x,y\n1,7\n2,7", "all cells of the target 'y' are 7: there is nothing to predict"),
        ("x,y\n1,yes\n2,NA", "are empty or na, n/a, .*: a class of such a name needs another one"),
        ("x,y\n" + "".join(f"{'big' if n % 5 == 0 else n},{n}\n" for n in range(40)), "has 'big' among its numbers"),
        ("x,y\n" + "".join(f"t{n},{n}\n" for n in range(300)), "different texts, such as .*, too many for a category"),
        ("x,y\n" + "".join(f",{n}\n" for n in range(30)), "'x' is empty in the training part"),
        ("x,y\n" + "".join(f"1e{290 + n},{n}\n" for n in range(19)), "numbers that are too large"),
        ("x,y\n" + "".join(f"{n},{'odd' if n == 5 else n}\n" for n in range(9)) + "3,a\n4,a\n", None),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    if words is None:  # texts make classes, of which each is a group here
        assert build_datasets(options(path, test_sample_rate=2))["train"].found_options["n_classes"] == 10
        return
    with pytest.raises(UserError, match=words):
        build_datasets(options(path))


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ("1,234 1,5 0,844", [1.234, 1.5, 0.844]), ("0,123 1,234", [0.123, 1.234]), ("1,234 5.5", [1234, 5.5]),
        ("1,234 1,234,567", [1234, 1234567]), ("-1,234.5 12", [-1234.5, 12]), ("1,234 12", None), ("1,234 9,989", None),
    ],
)  # fmt: skip
def test_a_column_tells_what_its_commas_separate_or_is_refused(cells, numbers):
    column = make_column("x", cells.split(), decimal_comma=True)
    if numbers is not None:
        assert column.numbers.tolist() == numbers
        return
    for use in (lambda: form_of(column, "t.csv"), lambda: encode(column, {"name": "x", "mean": 0, "std": 1}, [], "t")):
        with pytest.raises(UserError, match=r"'x' has '1,234', .* data_args.decimal=comma; .* data_args.decimal=point"):
            use()
    assert make_column("x", cells.split(), (), True, "comma").numbers[0] == 1.234
    assert make_column("x", cells.split(), (), True, "point").numbers[0] == 1234


def test_a_table_with_unclear_commas_is_read_as_one_says_also_for_a_prediction(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("x\ty\n" + "".join(f"{number},000\t{number}\n" for number in range(1, 40)))
    with pytest.raises(UserError, match="'x' has '1,000'"):
        build_datasets(options(path))
    with pytest.raises(UserError, match="'dot' is unknown: give comma or point"):
        build_datasets(options(path, data_args={"decimal": "dot"}))
    opt = options(path, data_args={"decimal": "point"})
    opt = with_found(changed(opt, pretrained=False), build_datasets(opt))
    assert opt.columns["inputs"][0]["mean"] > 1000
    assert len(read_rows(path, opt)) == 39


def test_a_text_among_numbers_of_another_part_is_refused():
    form = form_of(make_column("x", ["1", "2"]), "table.csv")
    with pytest.raises(UserError, match="line 3: 'much' in the column 'x' is no number"):
        encode(make_column("x", ["1", "much"]), form, ["line 2", "line 3"], "new.csv")


def test_a_column_that_does_not_vary_is_zero():
    column = make_column("x", ["0.1"] * 3)
    assert encode(column, form_of(column, "t"), ["", "", ""], "t").tolist() == [[pytest.approx(0)]] * 3


@pytest.mark.parametrize("columns", [{}, {"inputs": []}, {"inputs": [{"name": "x", "mean": 0, "std": 0}]},
                                     {"inputs": [{"name": 3, "values": []}]}, {"inputs": [{"name": "x"}]}])  # fmt: skip
def test_columns_from_elsewhere_are_checked(table, columns):
    with pytest.raises(UserError, match="--columns is no description of columns"):
        read_rows(table, Namespace(columns=columns, data_args={}))
