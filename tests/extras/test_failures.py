"""An error of the code of a task ends in one line that names its likely cause."""

from argparse import Namespace

from extras.failures import before_the_run, blame
from trainer_vanilla import TrainerVanilla


def test_an_index_that_a_gpu_finds_out_of_range_is_explained():
    error = RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    assert blame(error).startswith("RuntimeError: the GPU found an index out of range, most often a label")


def test_the_reason_is_said_also_where_no_traceback_can_be_written(tmp_path):
    opt = Namespace(output_dir=str(tmp_path / "a"), proj_name="vanilla")
    assert "The traceback is in" in str(before_the_run(TrainerVanilla, opt, ValueError("of my own")))
    (tmp_path / "file").touch()
    opt.output_dir = str(tmp_path / "file" / "a")
    said = str(before_the_run(TrainerVanilla, opt, ValueError("of my own")))
    assert said == "Failed before the first update: ValueError: of my own"
