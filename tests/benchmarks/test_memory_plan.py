"""The plan adds up what a process really holds, and says where it differs from the arithmetic."""

import pytest

from benchmarks import memory_plan
from benchmarks.memory_plan import BEGIN, END, Size, plan, table_of, write

SMALL = Size(layers=2, width=16, inner=24, heads=2, words=32)
LAYER = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
COUNT = 2 * LAYER + 2 * 32 * 16 + 16


def test_a_process_holds_its_part_of_everything_and_one_block_is_whole():
    told = plan(SMALL, num_devices=8)
    assert told["count"] == COUNT
    assert told["parameters"] == told["gradients"] == 4 * COUNT / 8
    num_tensors = 2 * 9 + 3
    assert told["optimizer state"] == 2 * 4 * COUNT / 8 + 4 * num_tensors  # and a count of steps for each
    assert told["largest block"] == 4 * LAYER


def test_rows_that_cannot_be_shared_out_evenly_make_the_part_larger():
    told = plan(SMALL, num_devices=16)  # 24 rows for 16 devices: the first of them have two
    assert told["parameters"] == 4 * (COUNT + 2 * 2 * 8 * 16) / 16
    assert told["sum"] > told["arithmetic"]


def test_seven_billion_parameters_are_what_the_table_is_about(monkeypatch):
    size = Size()
    layer = 4 * size.width**2 + 3 * size.width * size.inner + 2 * size.width
    assert size.layers * layer + 2 * size.words * size.width + size.width == 6_738_415_616


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write("new", page)
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


def test_the_table_is_in_gigabytes():
    told = {"parameters": 1e9, "gradients": 1e9, "optimizer state": 2e9, "sum": 4e9, "arithmetic": 4e9,
            "largest block": 5e8, "count": 10}  # fmt: skip
    assert table_of({1024: told}).splitlines()[-1] == (
        "| 1,024 | 1.000 | 1.000 | 2.000 | 4.000 | 4.000 | 1.0000 | 0.500 | 4.50 |"
    )


@pytest.mark.parametrize("flags", [["--devices", "8"], ["--layers", "2"]])
def test_a_part_of_the_table_is_not_written(flags, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memory_plan", "--write", *flags])
    with pytest.raises(SystemExit) as end:
        memory_plan.main()
    assert end.value.code == 2 and "--write is for the whole table" in capsys.readouterr().err
