"""An error of the code of a task ends in one line that names its likely cause."""

from extras.failures import blame


def test_an_index_that_a_gpu_finds_out_of_range_is_explained():
    error = RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    assert blame(error).startswith("RuntimeError: the GPU found an index out of range, most often a label")
