"""Every benchmark can be asked what it does, and runs. No test looks at a clock."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import harness

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = {"__init__", "harness", "loops", "fashion", "processor"}
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED)
ALONE = {"accuracy", "gpu", "memory_plan"}  # they have no cases
CHEAP = [
    ("vanilla_epoch", "batch64", "plainloop"), ("vanilla_epoch", "batch64", "best"),
    ("evaluation", "images", "evaluator"),
    ("unet_step", "step", "bf16, channels_last"), ("time_to_accuracy", "mlp", "plainloop"),
    ("startup", "start", "torch and the data"), ("image_loading", "to_64", "load_pixels, draft"),
]  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_benchmark_says_what_it_does(command, name):
    done = command("-m", f"benchmarks.{name}", "--help")
    assert done.returncode == 0 and importlib.import_module(f"benchmarks.{name}").__doc__.split("\n")[0] in done.stdout


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - ALONE))
def test_every_benchmark_refuses_a_wrong_flag_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        harness.run_benchmark(importlib.import_module(f"benchmarks.{name}").BENCHMARK, ["--rnus", "5"])
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("name", "case", "variant"), CHEAP)
def test_a_variant_runs_in_a_small_size(command, tmp_path, name, case, variant):
    data = [] if name == "unet_step" else ["--data_dir", tmp_path / "none"]
    done = command("-m", f"benchmarks.{name}", "--quick", "--case", case, "--one", variant, *data)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1].removeprefix(harness.ANSWER))
    assert figures["seconds"] > 0 and figures["memory"] > 0


@pytest.mark.parametrize(("variant", "package"), [("lightning", "lightning"), ("accelerate", "accelerate")])
def test_another_framework_runs_in_a_small_size(command, tmp_path, variant, package):
    pytest.importorskip(package)
    flags = ("--quick", "--case", "batch64", "--one", variant, "--data_dir", tmp_path / "none")
    done = command("-m", "benchmarks.vanilla_epoch", *flags)
    assert done.returncode == 0 and '"train": ' in done.stdout, done.stderr[-2000:]


def test_the_gpu_benchmark_goes_on_when_a_variant_fails(command):
    flags = ("--quick", "--gpu", "cpu", "--runs", 2, "--case", "mlp_1024", "--seconds", 1)
    done = command("-m", "benchmarks.gpu", *flags)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])["mlp_1024"]
    assert len(answer["runs"]["plainloop, bf16"]) == 2 and "are over" in answer["failed"]["by hand, graphs, bf16"]


def test_a_loop_that_does_not_learn_is_refused():
    import torch

    from benchmarks.loops import Job, figures
    from utils.errors import UserError

    data = torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.arange(10)
    job = Job({"train": data, "val": data}, batch_size=2, num_epochs=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match="did not learn"):
        figures(job, [(9.0, 9.0), (2.0, 1.0)], job.build_model())
    job.learned = 10
    assert figures(job, [(9.0, 9.0), (2.0, 1.0), (4.0, 3.0)], job.build_model())["seconds"] == 3


def test_what_stands_in_for_the_data_has_its_shapes(tmp_path, capsys):
    from benchmarks.fashion import load_parts, prepare_data

    parts = load_parts(prepare_data(str(tmp_path / "none"), tmp_path), {"val_split": 0.15})
    assert "stands in" in capsys.readouterr().err
    assert {name: tuple(images.shape) for name, (images, _) in parts.items()} == {
        "train": (51_000, 1, 28, 28), "val": (9_000, 1, 28, 28), "test": (10_000, 1, 28, 28)
    }  # fmt: skip


def test_each_section_has_its_place_and_each_mark_its_variants():
    for name in set(PROGRAMS) - ALONE:
        benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
        assert benchmark.name == name and name in harness.ORDER
        for case in benchmark.cases:
            assert {mark.variant for mark in case.marks} <= set(case.variants)
            assert {mark.base for mark in case.marks} <= {None, *case.variants}
