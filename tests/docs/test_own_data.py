"""The walk of docs/own_data.md on odd files: look, train, kill, resume, evaluate, predict, export."""

from engine.checkpoints.file import load_checkpoint
from tests.docs.page_lines import ROOT, make_workplace
from tests.docs.test_pages import run_commands
from tests.own_data import make_all
from tools.digest import digests


def test_the_commands_run_and_a_killed_run_ends_as_one_that_was_not(tmp_path):
    place = make_workplace(tmp_path / "project")
    make_all(place / "mine")
    run_commands((ROOT / "docs" / "own_data.md").read_text(encoding="utf-8"), place)
    for name in ("Mine", "Masks"):
        whole, resumed = {"Mine": ("Mine", "Killed"), "Masks": ("Masks", "MasksKilled")}[name]
        ends = [load_checkpoint(next(place.glob(f"Results/{run}/*/*_last_ckpt.pth"))) for run in (whole, resumed)]
        assert ends[0]["progress"] == ends[1]["progress"] and ends[0]["progress"]["update"] == 3
        assert digests(ends[0])["run"] == digests(ends[1])["run"]
        assert list(place.glob(f"Results/{name}/*/*.pt2"))
    for kind in ("Vanilla", "Carvana"):
        assert list(place.glob(f"Results/{kind}/look/*/data.png"))
    predicted = {path.name for path in place.glob("Results/Prediction/*/masks/*")}
    assert predicted == {f"{path.stem}.png" for path in (place / "mine/new/masks/train").iterdir()}
    assert len(list(place.glob("Results/Prediction/*/predictions.csv"))) >= 2
