import re
from pathlib import Path


def test_the_demo_learns_the_sample_and_lists_its_results(command, tmp_path):
    """Chance is 10 %. It trains on all of the sample, for a third of the epochs."""
    done = command("-m", "examples.demo", "--n_epoch", "4", "--output_dir", tmp_path / "runs", "--seed", "0")
    assert (done.returncode, done.stderr) == (0, "")
    accuracy, low, high, n = re.search(
        r"Test accuracy: ([\d.]+)% \(95 % interval ([\d.]+)% to ([\d.]+)%, n = ([\d,]+)\)", done.stdout
    ).groups()
    assert float(accuracy) > 75 and float(low) < float(accuracy) < float(high) and n == "1,000"
    named = re.findall(r"^  (/\S+)  ", done.stdout, flags=re.MULTILINE)
    assert len(named) >= 3
    for path in named:
        assert Path(path).stat().st_size > 0
