import re
from pathlib import Path


def test_the_demo_trains_evaluates_and_says_where_to_look(command, tmp_path):
    flags = ("--train_val_sample_rate", "600", "--n_epoch", "2", "--output_dir", tmp_path / "runs")
    done = command("-m", "examples.demo", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    accuracy, low, high, n = re.search(
        r"Test accuracy: ([\d.]+)% \(95 % interval ([\d.]+)% to ([\d.]+)%, n = ([\d,]+)\)", done.stdout
    ).groups()
    assert float(low) < float(accuracy) < float(high) and n == "1,000"
    named = re.findall(r"^  (/\S+)  ", done.stdout, flags=re.MULTILINE)
    assert len(named) >= 3
    for path in named:
        assert Path(path).stat().st_size > 0


def test_the_demo_learns_the_sample(command, tmp_path):
    # Chance is 10 %. All of the sample, but a third of the epochs.
    done = command("-m", "examples.demo", "--n_epoch", "4", "--output_dir", tmp_path / "runs", "--seed", "0")
    assert done.returncode == 0
    assert float(re.search(r"Test accuracy: ([\d.]+)%", done.stdout)[1]) > 75
