"""The harness computes what the tables say. No test looks at a clock."""

import json
from argparse import Namespace

import pytest

from benchmarks import harness
from benchmarks.harness import Benchmark, Case, Column, Mark, measure, section_of, table_of, write_section
from utils.errors import UserError


def runs_of(**seconds) -> harness.Runs:
    return {name: [{"seconds": value, "memory": 100.0} for value in values] for name, values in seconds.items()}


@pytest.fixture
def benchmark():
    case = Case("small", "Small", "About it.", {"a": lambda opt: {}, "b": lambda opt: {}})
    return Benchmark("fake", "A fake.", [case])


def options(**changed) -> Namespace:
    return Namespace(**{"runs": 2, "variants": None, "record": None, "threads": 1, "quick": False} | changed)


# ---- ratios and marks ------------------------------------------------------------------------------------------------
def test_ratios_are_made_run_by_run():
    # The medians are 2 and 2, but run by run b is twice as slow, as slow, and half as slow.
    runs = runs_of(a=[1, 2, 4], b=[2, 2, 2])
    assert Mark("b / a", "b", "a").values(runs) == [2, 1, 0.5]
    assert Mark("a - b", "a", "b", difference=True).values(runs) == [1, 0, 2]
    assert Mark("a", "a").values(runs) == [1, 2, 4]
    assert Mark("memory", "a", "b", key="memory").values(runs) == [1, 1, 1]


def test_a_run_without_a_partner_makes_no_ratio():
    assert Mark("a / b", "a", "b").values(runs_of(a=[1, 2], b=[4])) == [0.25]
    assert Mark("a / c", "a", "c").values(runs_of(a=[1, 2])) == []


@pytest.mark.parametrize(
    ("limits", "value", "said"),
    [
        ({"at_most": 1.05}, 1.05, "met"),
        ({"at_most": 1.0}, 1.25, "**missed** by 0.25 (25%)"),
        ({"at_least": 4.0}, 4.1, "met"),
        ({"at_least": 4.0}, 3.0, "**missed** by 1 (25%)"),
        ({}, 7.0, "-"),
    ],
)
def test_a_mark_is_met_or_missed_by_so_much(limits, value, said):
    assert Mark("x", "a", **limits).verdict(value) == said


def test_the_table_shows_medians_ranges_and_verdicts(benchmark):
    marks = [Mark("a / b", "a", "b", at_most=1.5), Mark("a", "a", at_least=1)]
    case = Case("small", "Small", "", benchmark.cases[0].variants, marks, [Column("seconds", "seconds", "{:.1f}")])
    table = table_of(case, runs_of(a=[2, 4, 9], b=[2, 2, 3]), {})
    assert "| a | 4.0 (2.0 to 9.0) | 3 |" in table and "| b | 2.0 (2.0 to 3.0) | 3 |" in table
    assert "| a / b | 2 | 1 to 3 | at most 1.5 | **missed** by 0.5 (33%) |" in table
    assert "| a | 4 | 2 to 9 | at least 1 | met |" in table


def test_what_failed_is_told_and_has_no_ratio(benchmark):
    case = Case("small", "Small", "", benchmark.cases[0].variants, [Mark("a / b", "a", "b", at_most=1)])
    table = table_of(case, runs_of(a=[1]), {"b": "no such | package"})
    assert "| b | failed: no such / package |" in table and "| a / b | - | - | at most 1 | not measured |" in table


# ---- runs ------------------------------------------------------------------------------------------------------------
def test_the_variants_take_turns(benchmark):
    asked, case = [], benchmark.cases[0]
    runs, failed = measure(benchmark, case, options(), lambda name, _: asked.append(name) or {"seconds": 1})
    assert asked == ["a", "b", "a", "b"] and failed == {} and [len(of) for of in runs.values()] == [2, 2]


def test_a_variant_that_fails_does_not_stop_the_others(benchmark):
    def run(name, number):
        if name == "a":
            raise UserError("it is not installed")
        return {"seconds": 1}

    runs, failed = measure(benchmark, benchmark.cases[0], options(), run)
    assert failed == {"a": "it is not installed"} and len(runs["b"]) == 2


def test_recorded_runs_count_when_they_had_the_same_options(benchmark, tmp_path):
    opt, case, asked = options(record=str(tmp_path / "runs")), benchmark.cases[0], []
    run = lambda name, number: asked.append(f"{name}{number}") or {"seconds": len(asked)}  # noqa: E731
    measure(benchmark, case, options(record=opt.record, runs=1), run)
    runs, _ = measure(benchmark, case, opt, run)
    assert asked == ["a0", "b0", "a1", "b1"] and runs["a"] == [{"seconds": 1}, {"seconds": 3}]
    measure(benchmark, case, options(record=opt.record, threads=2), run)
    assert len(asked) == 8


def test_a_run_is_a_process_of_its_own_and_its_last_words_are_told(monkeypatch, tmp_path, benchmark):
    package = tmp_path / "benchmarks"
    package.mkdir()
    program = f"import os, sys\nif 'a' in sys.argv: print('noise\\n{harness.ANSWER}' + str(os.getpid()))\n"
    (package / "fake.py").write_text(program + "else: sys.exit('fake.py: error: out of luck')\n")
    monkeypatch.chdir(tmp_path)
    case = benchmark.cases[0]
    first, second = (harness.run_in_process(benchmark, case, "a", 0, [], threads=1) for _ in range(2))
    assert first != second
    with pytest.raises(UserError, match=r"^out of luck$"):
        harness.run_in_process(benchmark, case, "b", 0, [], threads=1)


def test_a_run_answers_with_its_figures_and_the_machine(capsys, benchmark):
    case = Case("small", "Small", "", {"a": lambda opt: print("noise") or {"seconds": 2.5}})
    harness.run_here(case, "a", options(threads=0))
    answer = json.loads(capsys.readouterr().out.removeprefix(harness.ANSWER))
    assert answer["seconds"] == 2.5 and answer["memory"] > 10 and "torch" in answer["machine"]


def test_peak_memory_grows_with_what_is_held():
    before = harness.peak_memory()
    assert len(bytearray(round(before * 1e6))) > 0 and harness.peak_memory() > 1.5 * before


# ---- the command line ------------------------------------------------------------------------------------------------
def test_only_whole_measurements_are_written(benchmark, capsys):
    for flags in (["--quick"], ["--runs", "4"], ["--variants", "a"]):
        with pytest.raises(SystemExit) as end:
            harness.run_benchmark(benchmark, ["--write", *flags])
        assert end.value.code == 2 and "--write is for all variants" in capsys.readouterr().err


def test_missed_marks_are_told_and_failed_variants_end_with_status_1(benchmark, monkeypatch, capsys):
    case = Case("small", "Small", "", {"a": None, "b": None}, [Mark("a / b", "a", "b", at_most=0.5)])
    answers = {"a": {"seconds": 2.0, "machine": "here"}, "b": {"seconds": 2.0, "machine": "here"}}
    monkeypatch.setattr(harness, "run_in_process", lambda benchmark, case, name, *rest, **more: answers[name])
    with pytest.raises(SystemExit) as end:
        harness.run_benchmark(Benchmark("fake", "", [case]), ["--runs", "2"])
    assert end.value.code == 0 and capsys.readouterr().out.splitlines()[-1].endswith("**missed** by 0.5 (100%) |")

    def fail(*arguments, **more):
        raise UserError("gone")

    monkeypatch.setattr(harness, "run_in_process", fail)
    with pytest.raises(SystemExit) as end:
        harness.run_benchmark(Benchmark("fake", "", [case]), [])
    assert end.value.code == 1


# ---- the page --------------------------------------------------------------------------------------------------------
def test_a_section_is_replaced_and_the_others_stay(tmp_path, benchmark):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{harness.BEGIN}\n{harness.END}\nafter\n")
    write_section("startup all", "## Start\n\nfirst", page)
    write_section("vanilla_epoch b64", section_of(benchmark.cases[0], "| t |", ["one", "one"], "python x"), page)
    write_section("vanilla_epoch b4", "## Four", page)
    write_section("startup all", "## Start\n\nsecond", page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "first" not in text
    assert text.index("## Small") < text.index("## Four") < text.index("## Start") < text.index("second")
    assert "About it.\n\n| t |\n\n`python x` on: one; " in text
    write_section("startup all", "## Start\n\nsecond", page)
    assert page.read_text() == text
