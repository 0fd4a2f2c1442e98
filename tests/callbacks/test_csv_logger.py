"""metrics.csv has one row per completed epoch, whatever interrupted the run."""

import csv

import pytest

from callbacks.csv_logger import CSVLogger
from utils.errors import UserError


def read(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def train(trainer, path, num_epochs: int, lr: float = 0.1, val_every: int = 1) -> None:
    """Go on from where `trainer` stands to `num_epochs`."""
    logger = CSVLogger(path)
    logger.on_train_start(trainer)
    for epoch in range(trainer.progress.epoch + 1, num_epochs + 1):
        trainer.progress.finish_epoch()
        row = {"epoch": epoch, "update": 4 * epoch, "train/loss": 1 / epoch, "lr": lr}
        if epoch % val_every == 0:
            row["val/accuracy"] = epoch / 10
        logger.on_epoch_end(trainer, row)


def test_row_for_every_epoch(trainer, tmp_path):
    path = tmp_path / "metrics.csv"
    train(trainer, path, num_epochs=3)
    rows = read(path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and [row["update"] for row in rows] == ["4", "8", "12"]
    assert [float(row["train/loss"]) for row in rows] == pytest.approx([1, 1 / 2, 1 / 3], rel=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_whole_after_every_epoch(trainer, tmp_path):
    train(trainer, tmp_path / "metrics.csv", num_epochs=1)
    assert len(read(tmp_path / "metrics.csv")) == 1


def test_column_that_appears_later_gets_its_place(trainer, tmp_path):
    train(trainer, tmp_path / "metrics.csv", num_epochs=4, val_every=2)
    assert [row["val/accuracy"] for row in read(tmp_path / "metrics.csv")] == ["", "0.2", "", "0.4"]


def test_rows_beyond_the_checkpoint_vanish_at_once_and_the_rest_stays(trainer, tmp_path):
    path = tmp_path / "metrics.csv"
    train(trainer, path, num_epochs=4, val_every=3)
    first = read(path)
    trainer.progress.epoch = 2  # the checkpoint that is resumed
    train(trainer, path, num_epochs=2)
    assert [(row["epoch"], row["train/loss"]) for row in read(path)] == [("1", "1"), ("2", "0.5")]
    train(trainer, path, num_epochs=4, lr=0.5, val_every=3)
    rows = read(path)
    assert rows[:2] == first[:2]
    assert [row["lr"] for row in rows] == ["0.1", "0.1", "0.5", "0.5"]
    assert [row["val/accuracy"] for row in rows] == ["", "", "0.3", ""]


def test_resuming_before_the_first_epoch_starts_the_file_anew(trainer, tmp_path):
    path = tmp_path / "metrics.csv"
    train(trainer, path, num_epochs=2)
    trainer.progress.epoch = 0
    for num_epochs in (0, 0, 1):
        train(trainer, path, num_epochs)
        assert len(read(path)) == num_epochs


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.25e-7, "1.25e-07"), (0.123456789, "0.123457"), (12345678.0, "1.23457e+07"), (float("nan"), "nan"), (7, "7")],
)
def test_numbers_keep_six_significant_digits(trainer, tmp_path, value, text):
    CSVLogger(tmp_path / "metrics.csv").on_epoch_end(trainer, {"epoch": 1, "lr": value})
    assert read(tmp_path / "metrics.csv")[0]["lr"] == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"loss\n1\n", "it has no column 'epoch'"),
        (b"loss\n", "it has no column 'epoch'"),
        (b"epoch,loss\nx,1\n", "'x'"),
        (b"loss,epoch\n1\n", "not 'NoneType'"),
        (b"epoch,loss\n1,2,3\n", "more entries than columns"),
        (b"epoch\n" + b"9" * 5000, "digits"),
        (b"epoch\n" + b"9" * 200_000, "field larger"),
        (b"\xff\xfe\x00", "codec"),
    ],
)
def test_file_that_is_none_of_ours_is_named_and_stays(trainer, tmp_path, content, reason):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is not the file of this run: .*{reason}.* resume again") as caught:
        CSVLogger(path).on_train_start(trainer)
    assert "\n" not in str(caught.value) and path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\r\n", b"epoch,loss\r\n"])
def test_file_without_rows_is_one_of_ours(trainer, tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    train(trainer, path, num_epochs=1)
    assert len(read(path)) == 1


def test_file_that_lost_rows_or_is_of_another_run_is_refused_and_one_that_is_gone_is_written_again(trainer, tmp_path):
    path = tmp_path / "metrics.csv"
    train(trainer, path, num_epochs=3, val_every=2)
    logger = CSVLogger(path)
    logger.on_train_start(trainer)
    state, whole = logger.state_dict(), path.read_text()
    for content in (whole.replace("2,8,", "2,9,"), whole[: whole.index("3,12")], "epoch\n", ""):
        path.write_text(content)
        resumed = CSVLogger(path)
        resumed.load_state_dict(state)
        with pytest.raises(UserError, match=r"its rows are not those of the checkpoint\. Mend it or move it away"):
            resumed.on_train_start(trainer)
        assert path.read_text() == content
    for lost in (True, False):
        path.unlink() if lost else path.write_text(whole + "4,16,0.1,0.1,0.2\n")
        resumed = CSVLogger(path)
        resumed.load_state_dict(state)
        resumed.on_train_start(trainer)
        assert path.read_text().split() == whole.split()
