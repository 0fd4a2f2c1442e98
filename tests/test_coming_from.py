"""docs/coming_from.md: each of its lines is run, and does what its row claims where that can be seen."""

import csv
import doctest
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoints.file import load_checkpoint
from tests import page_lines
from tests.page_lines import Done, faults_of, files_of, lines_of, rows_of, run_line

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coming_from.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = {row.name: row for row in rows_of(TEXT)}
LESS_TO_DO = {  # later flags win
    "--n_epoch 39": "--n_epoch 1",
    "trainer_gan.py": "--judge_type Vanilla --judge Results/First/TIMESTAMP/Vanilla_best_ckpt.pth",
}

# What users of each template look for: words that their table must have.
WORDS = {
    "A": "run.py -d; comments; val_epoch; save_checkpoint_epoch; log_iter; debug_split; args; validation_split; each "
    "GPU; resume_state; n_epoch; n_iter; progress bar; log file; TensorBoard; results directory; backup; "
    "finetune_norm; ema_start; ema_iter; ema_decay; normal; xavier; xavier_uniform; kaiming; orthogonal; "
    "negative; cuDNN; DDP; script; several networks; several losses; several metrics; torch.optim; lr_scheduler; "
    "blank; for validation",
    "B": "-d cpu; -d 0,1; -c CONFIG; key.sub=value; MASTER_ADDR; MASTER_PORT; -nn; -n RANK; static; dynamic; "
    "config.additional; sweep.sweep_params; @data_module_register; @model_register; @criterion_register; "
    "@trainer_register; 'inputs'; 'targets'; return dicts; (loss, metrics); reduced; TensorBoard; W&B; tags; one "
    "id; watch; special.no_logger=True; best and last; critical; checkpoint_keep_interval; pretrained; CFG_PATH; "
    "tester.use_best; bf16; fp16; EMA; accumulation; limits; by name and by dimension; frozen; scaled; warm-up; "
    "phased; several optimizers; NaN; one iteration, one epoch, one validation; fixed length; copies; summary; "
    "curves; timers; collectors; ordered printing; clones; LeNet on MNIST; two GPUs",
    "C": "train_pl.py; train.py; --gpu; --name; @models.register; losses; data sets; callbacks; wrappers; make(spec); "
    "load_sd; data_module; train_wrapper; model_spec; loss_spec; optim_spec; trainer_params; max_epochs; strategy; dp; "
    "ddp; log_every_n_steps; every_n_epochs; monitor; mode; seed; source; ckpt/; config.yaml; log.txt; "
    "TensorBoard; ETA; file logger; custom callbacks; GAN; MLP; ResNet-18; MNIST",
    "D": "dataset; batch_size; shuffle; snapshot_prefix; num_iters; num_epochs; iter_size; display_iter; "
    "snapshot_interval; load_snapshot_path; restore_dataloader; display_gpu; schedule_on_iter; its own loss; "
    "SyncBatchNorm; environment; counters; replays; train_model; find_lr; min_lr; max_lr; iter_per_run; num_runs; "
    "results.npz; make_param_groups; MultiImgsDataset; fast_img_loader; loss is low; closure; clipping; reset; GANs; "
    "loader or sampler",
    "E": "85.0 %; 39 epochs; 8 %; 7.5 minutes; GTX 1080 Ti; 0.993; 256; 52 epochs; 20 minutes; RTX 2080 Ti; "
    "TrainerBase; EvaluatorBase; directories; command lines; saved configuration; an evaluator",
}  # fmt: skip


# ---- the page --------------------------------------------------------------------------------------------------------
def test_the_page_has_no_fault():
    assert faults_of(TEXT, PAGE.parent) == []
    assert len(ROWS) > 110 and sum(len(row.lines) for row in ROWS.values()) > 120


@pytest.mark.parametrize("letter", WORDS)
def test_every_word_that_users_look_for_is_in_their_table(letter):
    there = " ".join(row.there for name, row in ROWS.items() if name[0] == letter).lower()
    assert [word for word in WORDS[letter].split("; ") if word.lower() not in there] == []


def test_every_option_that_the_page_names_is_there():
    """Also those in the text of a row, which no line runs."""
    from base_options import test_parser, train_parser
    from eval_vanilla import EvaluatorVanilla
    from trainer_vanilla import TrainerVanilla

    known = set(train_parser(TrainerVanilla).known) | set(test_parser(EvaluatorVanilla).known)
    text = " ".join(row.here for row in ROWS.values())
    assert set(re.findall(r"`--(\w+)", text)) - known - {"grid", "seeds", "pl_args"} == set()


GOOD = """
| A1 | `x` | [here](a.md#b-c) |
| A2 | `y` | as [there](#d) |
| A3 | `z` | by a line |

```bash
# A1
python a.py --x 1
# A3
python a.py
```

## D
"""


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("# A3\npython a.py\n", "", "A3 has neither"),
        ("as [there](#d)", "as there", "A2 has neither"),
        ("# A3\n", "# A4\n", "A4 has lines and no row"),
        ("# A3\n", "# A3 ends with status 2\n", "A3 ends with status 2 has lines and no row"),
        ("a.md#b-c", "a.md#b-d", "leads nowhere"),
        ("a.md", "b.md", "leads nowhere"),
        ("| A2", "| B2", "B2 does not follow A1"),
        ("| `y`", "| ", "A2 has an empty cell"),
        ("## D", "## D\n```python\n# b.py\nx = 1\n```", "no line uses b.py"),
        ("## D", "## D\n```python\nx = 1\n```", "does not begin with the name"),
    ],
)
def test_a_fault_of_the_page_would_be_seen(tmp_path, before, after, fault):
    (tmp_path / "a.md").write_text("# A\n\n## B, C\n")
    assert faults_of(GOOD, tmp_path) == []
    found = faults_of(GOOD.replace(before, after), tmp_path)
    assert fault in " ".join(found)


def test_examples_in_the_docstrings():
    assert doctest.testmod(page_lines).failed == 0


# ---- its lines -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A directory with links to what the project has, the files of the page, MNIST's files, and the first run."""
    place = tmp_path_factory.mktemp("page") / "project"
    place.mkdir()
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in ("Results", "Dataset", "test_viz", "tests"):
            (place / path.name).symlink_to(path)
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


def test_a_line_with_a_wrong_option_would_be_seen(workplace):
    """Both ways of running one."""
    for flags in ("-d --ema_decay 0.9", "-d --ema_decay 0.9 --nproc 2"):
        done = run_line(f"python trainer_vanilla.py {flags}", workplace)
        assert done.status not in (0, None) and "--ema_decay" in done.stderr
    (workplace / "faulty.py").write_text("raise ZeroDivisionError")
    done = run_line("python faulty.py", workplace)
    assert done.status == 1 and "Traceback" in done.stderr


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
    "C17": says("The largest norm of a gradient"),
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
