"""The commands of the pages in docs/ run as they stand there, with less to do."""

import re
from pathlib import Path

import pytest

from tests.docs.page_lines import ROOT, make_workplace, run_line

NOT_RUN = "<!-- not run:"
LESS_TO_DO = {  # flags to add to a command that has these words; later flags win
    "tools.synthetic.make_carvana_like": "--cars 12 --views 4 --size 96x64",
    "extras.shards.make_shards": "--samples_per_shard 6 --train_val_sample_rate 1 --test_sample_rate 4",
    "trainer_seg_on_carvana.py": "--debug --width 4 --patch_size 32 --train_val_sample_rate 1 --test_sample_rate 4",
    "trainer_vanilla.py": "--debug",
    "trainer_gan.py": "--debug --batch_size 8",
    "examples.sam": "--debug", "examples.lbfgs": "--debug", "examples.own_task": "--debug",
    "examples.new_task": "--debug", "examples.text_task": "--debug", "examples.trainer_table": "--n_epoch 3",
    "examples.plain_loop": "--n_epoch 1", "examples.demo": "--n_epoch 1",
}  # fmt: skip
AS_IT_IS = ("--resume", "--help", "--config", "--limit_batches", "evaluate", "hash")  # nothing is added to these
ENDS = {"configcmp": 1, "tools.kill": -9}  # as diff ends when it finds a difference; as what is killed
PAGES = {  # README.md: see test_readme.py
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in ("coming_from.md", "own_data.md")  # see test_coming_from.py and test_own_data.py
}


def commands_of(text: str) -> list[str]:
    """Return the Python commands of the ```bash blocks, without those of a block after <!-- not run: reason -->."""
    found = []
    for before, block in re.findall(r"([^\n]*)\n+```bash\n(.*?)```", text, flags=re.DOTALL):
        if not before.startswith(NOT_RUN):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split(" # ")[0].strip() for line in lines if line.startswith("python")]
    return [command for command in found if not command.startswith("python -m venv")]


def fill_in(command: str, directory: Path) -> str:
    """Put the names of real files in the place of CONFIG_A.json and CONFIG_B.json."""
    configs = sorted(directory.glob("Results/**/config_*.json"))
    for place, name in enumerate(("CONFIG_A.json", "CONFIG_B.json")):
        command = command.replace(name, str(configs[place % len(configs)])) if configs else command
    return command


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands_of(text)])
def test_the_commands_of_a_page_run(tmp_path, page):
    if page == "docs/lightning.md":
        pytest.importorskip("lightning", reason="its commands need Lightning: pip install lightning")
    place = make_workplace(tmp_path / "project")
    run_commands(PAGES[page], place)


def run_commands(page: str, place: Path) -> None:
    """Run the commands of a page in a directory, each with less to do."""
    for command in commands_of(page):
        less = next((flags for name, flags in LESS_TO_DO.items() if name in command), "")
        if any(word in command.split() for word in AS_IT_IS) and not command.endswith("--resume auto"):
            less = ""
        done = run_line(fill_in(command, place), place, less)
        status = next((status for name, status in ENDS.items() if name in command), 0)
        assert done.status in (0, status) and "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


def test_no_placeholder_is_left_in_the_documentation():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        assert "@@" not in page.read_text(encoding="utf-8"), page
