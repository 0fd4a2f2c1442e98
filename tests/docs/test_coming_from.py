"""docs/coming_from.md: each of its lines is run, and does what its row claims where that can be seen."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoints.file import load_checkpoint
from tests.docs.page_lines import Done, faults_of, files_of, lines_of, make_workplace, rows_of, run_line

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "coming_from.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = {row.name: row for row in rows_of(TEXT)}
LESS_TO_DO = {  # later flags win
    "--n_epoch 39": "--n_epoch 1",
    "trainer_gan.py": "--judge_type Vanilla --judge Results/First/TIMESTAMP/Vanilla_best_ckpt.pth",
}

# ---- the page --------------------------------------------------------------------------------------------------------
def test_the_page_has_no_fault():
    assert faults_of(TEXT, PAGE.parent) == []
    assert len(ROWS) > 110 and sum(len(row.lines) for row in ROWS.values()) > 120


def test_every_option_that_the_page_names_is_there():
    """Also those in the text of a row, which no line runs."""
    from eval_vanilla import EvaluatorVanilla
    from options import test_parser, train_parser
    from trainer_vanilla import TrainerVanilla

    known = set(train_parser(TrainerVanilla).known) | set(test_parser(EvaluatorVanilla).known)
    text = " ".join(row.here for row in ROWS.values())
    assert set(re.findall(r"`--(\w+)", text)) - known - {"grid", "seeds", "pl_args"} == set()


# ---- its lines -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A directory with links to what the project has, the files of the page, MNIST's files, and the first run."""
    place = make_workplace(tmp_path_factory.mktemp("page") / "project")
    for name, content in files_of(TEXT).items():
        (place / name).write_text(content, encoding="utf-8")
    raw = place / "Dataset" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "data" / "sample").glob("*.gz"):  # pictures of clothes, in the format of MNIST
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    (first,) = lines_of(TEXT)[""]  # the run that others need
    assert run_line(first.command, place).status == 0
    return place


@pytest.fixture(scope="module")
def ended(workplace) -> Callable[[str], Done]:
    """A function that runs a line, once however many rows have it, and returns how it ended."""
    memory: dict[str, Done] = {}

    def ended(command: str) -> Done:
        if command not in memory:
            more = next((flags for words, flags in LESS_TO_DO.items() if words in command), "")
            memory[command] = run_line(command, workplace, more)
            memory[command].run = run_of(memory[command].stdout, workplace)
        return memory[command]

    return ended


def run_of(text: str, directory: Path) -> Path | None:
    found = re.search(r"^Run directory: (.+)$|^Resumed (\S+)/[^/]+\.pth", text, flags=re.MULTILINE)
    return directory / (found[1] or found[2]) if found else None


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.lines])
def test_the_lines_of_a_row_do_what_it_claims(ended, name):
    all_done = []
    for line in ROWS[name].lines:
        done = ended(line.command)
        said = f"{line.command}\nended with {done.status}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.status == line.status and "Traceback" not in done.stderr, said
        if line.status == 2:
            assert 1 <= len(done.stderr.splitlines()) <= 2, said
        all_done.append(done)
    if name in CLAIMS:
        assert CLAIMS[name](*all_done), f"{ROWS[name].there}\n{all_done[-1].stdout}"


# ---- what rows claim -------------------------------------------------------------------------------------------------
def option(done: Done, name: str):
    """The value that a run saved for an option."""
    return json.loads(next(done.run.glob("config_*.json")).read_text())[name]


def table(done: Done) -> list[dict[str, str]]:
    with open(done.run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def has(*names: str) -> Callable[..., bool]:
    """A claim: the last command's run has these files."""
    return lambda *done: all(list(done[-1].run.glob(name)) for name in names)


def says(*texts: str) -> Callable[..., bool]:
    """A claim: the last command prints these texts."""
    return lambda *done: all(text in done[-1].stdout for text in texts)


CLAIMS: dict[str, Callable[..., bool]] = {
    "A1": lambda d: option(d, "model_args") == {"width": 32} and "val/f1" in table(d)[-1],
    "A2": says("Finished after 3 updates"),
    "A3": lambda d: (len(table(d)), option(d, "log_every")) == (2, 1),
    "A4": lambda a, b: "Data: 255 train, 45 val" in a.stdout and "Data: 255 train, 45 val" in b.stdout,
    "A5": says("SmallNet", "500 train"),
    "A7": lambda a, b: "32x1x5x5" in a.stdout and "did you mean 'width'" in b.stderr,
    "A8": says("Network 'generator'", "Network 'discriminator'"),
    "A9": lambda d: {"train/loss_ce", "train/loss_brier"} <= table(d)[0].keys(),
    "A10": lambda d: {"val/accuracy", "val/f1", "val/top3"} <= table(d)[0].keys(),
    "A14": lambda a, b: "1,200 val" in a.stdout and " 100 val" in b.stdout,
    "A17": lambda d: "Resumed" in d.stdout and "Finished after 40 updates" in d.stdout,
    "A18": says("Finished after 25 updates"),
    "A19": lambda d: len(list(d.run.glob("*_last*_ckpt.pth"))) == 2,
    "A20": lambda d: [bool(row["val/accuracy"]) for row in table(d)] == [False, True, True],
    "A22": has("summary/events*", "metrics.csv", "*_log.txt"),
    "A23": has("code_at0.tar.gz", "provenance.json"),
    "A24": lambda d: int(re.search(r"([\d,]+) trainable", d.stdout)[1].replace(",", "")) == 7_808,
    "A25": lambda d: "averaging" in load_checkpoint(d.run / "Vanilla_last_ckpt.pth"),
    "A28": lambda a, b: isinstance(option(a, "seed"), int) and "--seed" in b.stderr,
    "A30": says("2 processes (ddp)"),
    "A31": lambda d: "files in" in d.stdout,
    "B3": says("Finished after 3 updates"),
    "B4": says("2 processes (ddp)"),
    "B5": lambda d: re.search(r"^batch_size: 64 +# .*faster.yaml", d.stdout, flags=re.MULTILINE)
    and re.search(r"^lr: 0.0003", d.stdout, flags=re.MULTILINE),
    "B6": says("2e-4", "4e-4", "table.csv"),
    "B9": lambda d: "val/accuracy" in table(d)[0],
    "B12": says("val/f1"),
    "B14": lambda d: option(d, "description") == "third try",
    "B15": lambda d: not list(d.run.glob("summary")) and not (d.run / "metrics.csv").exists(),
    "B16": has("Vanilla_best_ckpt.pth", "Vanilla_last_ckpt.pth"),
    "B17": lambda d: "--batch_size 64 contradicts" in d.stderr,
    "B18": lambda d: len(list(d.run.glob("*_last*_ckpt.pth"))) == 3,
    "B19": lambda a, b: "6 of 6 tensors" in a.stdout and "SqueezeNet" in b.stdout,
    "B20": says("Saved in"),
    "B24": lambda d: option(d, "param_clip") == ["layers.0.*=0.1", "layers.4.*=0.5"],
    "B25": lambda d: re.search(r"all +6,154 +4 +0.001 +0$", d.stdout, flags=re.MULTILINE),
    "B26": says("267,786 trainable"),
    "B29": lambda d: [row["lr"] for row in table(d)] == ["0.001", "0.000125"],
    "B32": lambda a, b, c: "Finished after 1 updates" in a.stdout and "val part" in c.stdout,
    "B33": says("Finished after 14 updates"),
    "B35": lambda d: "curves.png" in d.stdout,
    "B36": lambda a, b: "forward" in a.stdout and (a.run / "gradients.csv").exists() and "Profiled" in b.stdout,
    "B38": lambda a, b: "LeNet" in a.stdout and "5,100 train, 900 val, 1,000 test" in b.stdout,
    "C1": says("Finished after 5 updates"),
    "C2": lambda d: d.run.name and list(d.run.glob("config_test_*.json")),
    "C5": lambda d: option(d, "loss_args") == {"margin": 0.5},
    "C15": says("left", "val/accuracy"),
    "C16": lambda d: (d.run / "metrics.csv").exists() and not (d.run / "summary").exists(),
    "C17": says("The largest gradient norm"),
    "D1": says("Resumed Results/call/", "64 updates, [0.025]"),
    "D2": says("2 processes (ddp)", "64 updates, [0.025]"),
    "D5": says("Finished after 25 updates"),
    "D8": lambda a, b: len(list(b.run.glob("*_last*_ckpt.pth"))) == 2,
    "D11": says("Memory of a process"),
    "D14": lambda a, b: "1e-10 to 1e+00" in a.stdout and "from 1e-10 to 1," in b.stdout and "lr_finder.npz" in b.stdout,
    "D16": says("layers.4.weight"),
    "D17": lambda a, b, c: "32 (3, 32, 32) (32, 32)" in b.stdout and "UNet" in c.stdout,
    "D18": says("JPEG support ok"),
    "D19": lambda d: 0 < len(table(d)) < 9 and float(table(d)[-1]["train/loss"]) < 1.5,
    "D20": lambda a, b: option(b, "clip") == 1,
    "D21": says("Finished after 6 updates"),
    "E5": lambda a, b: "UNet" in b.stdout,
    "E6": says("val", "Saved in"),
}


def test_every_claim_is_of_a_row():
    assert CLAIMS.keys() <= ROWS.keys()
