"""README.md: short, its commands and its task run as they stand there, its links lead somewhere, its error is real."""

import re

from tests.docs.page_lines import LINK, ROOT, files_of, is_there, make_workplace, run_line
from tests.docs.test_pages import run_commands
from tests.own_data import make_all

PAGE = ROOT / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")


def words_of(text: str) -> list[str]:
    """Return the words of a page, code and tables included, without marks that stand alone.

    >>> words_of("| `a b` | ![c d](e.png) |")
    ['`a', 'b`', '![c', 'd](e.png)']
    """
    return re.findall(r"\S*\w\S*", text)


def test_it_is_short():
    assert len(words_of(TEXT)) <= 900 and len(TEXT.splitlines()) <= 150


def test_its_commands_run_and_its_task_learns(tmp_path):
    place = make_workplace(tmp_path / "project")
    make_all(place / "mine")
    for name, content in files_of(TEXT).items():
        (place / name).write_text(content, encoding="utf-8")
    run_commands(TEXT, place)
    losses = [line.split(",") for path in place.glob("Results/Product/*/metrics.csv") for line in path.open()]
    column = losses[0].index("val/loss")
    assert len(losses) == 31 and float(losses[-1][column]) < 1e-3  # 20 epochs, then 10 more
    assert list(place.glob("Results/Prediction/*/contact_sheet.png"))


def test_its_task_is_as_short_as_it_says():
    (task,) = files_of(TEXT).values()
    code = [line for line in task.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= int(re.search(r"## A task in (\d+) lines", TEXT)[1])


def test_its_links_and_pictures_are_there():
    targets = {*LINK.findall(TEXT), *re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)}
    assert [target for target in targets if not is_there(target, TEXT, ROOT)] == []


def test_its_error_is_the_one_that_is_printed(tmp_path):
    command, line = re.search(r"\$ (python trainer_vanilla\.py --lrr .*)\n(.*)\n", TEXT).groups()
    done = run_line(command, make_workplace(tmp_path / "project"))
    assert done.status == 2 and done.stderr.strip() == line
