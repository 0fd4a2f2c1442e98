"""Texts of unequal length: padding changes nothing, a killed run goes on, and held-out chapters are recognized."""

import csv

import numpy as np
import pytest
import torch

from callbacks.callback import Callback
from engine.registry import REGISTERED
from examples.text_data import build_texts, build_verses, numbers_of, padded
from examples.text_task import EvaluatorText, TextCNN, TrainerText
from tests.own_data import text_rows, write_csv
from tools.prediction.command import main as predict
from utils.errors import UserError

# What the example registers is known in these tests only: others list the names of the template.
NAMES = (("model", "TextCNN"), ("data", "Text"), ("data", "Verses"))
COMPONENTS = {(kind, name): REGISTERED[kind].pop(name) for kind, name in NAMES}
OWN = ("--data_type", "Text", "--text", "message", "--target", "kind")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for (kind, name), component in COMPONENTS.items():
        monkeypatch.setitem(REGISTERED[kind], name, component)


class Killed(Callback):
    """Ends the run in the middle of an epoch."""

    def on_update_end(self, trainer, values):
        if trainer.progress.update == 9:
            raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path):
    def run(*flags, watched_by=()) -> TrainerText:
        given = ["--gpu_devices", "cpu", "--seed", "0", "--output_dir", str(tmp_path / "runs"), "--logger", "none"]
        given = list(flags) if "--resume" in flags else [*given, *flags]
        task = type("Watched", (TrainerText,), {"build_callbacks": lambda self: list(watched_by)})
        trainer = task(task.parse_options(given))
        trainer.train()
        return trainer

    return run


@pytest.fixture
def messages(tmp_path) -> list[str]:
    """The flags of four hundred messages, an eighth of them complaints."""
    write_csv(tmp_path / "messages.csv", text_rows(np.random.default_rng(5)))
    return [*OWN, "--data_dir", str(tmp_path / "messages.csv")]


def best(trainer) -> str:
    (path,) = trainer.run_dir.path.glob("*_best_ckpt.pth")
    return str(path)


def evaluate(trainer, tmp_path, *flags) -> EvaluatorText:
    flags = [best(trainer), "--save_path", str(tmp_path / "eval"), "--no-viz", *flags]
    return EvaluatorText.run_test(EvaluatorText.parse_options(flags))


def test_words_are_numbers_by_their_letters_alone():
    assert numbers_of("The LORD, the lord!").tolist() == numbers_of("the lord the lord").tolist()
    assert len(set(numbers_of("in the beginning").tolist())) == 3
    assert numbers_of(" ?! ").tolist() == [1] and numbers_of("über").min() > 1


def test_padding_changes_no_logits():
    torch.manual_seed(0)
    network = TextCNN(3).eval()
    short, long = numbers_of("and he said"), numbers_of("and it came to pass in those days " * 3)
    words, labels = padded([(short, 0), (long, 2)])
    assert words.shape == (2, 24) and words[0, 3:].tolist() == [0] * 21 and labels.tolist() == [0, 2]
    torch.testing.assert_close(network(words)[0], network(short[None])[0])
    torch.testing.assert_close(network(words)[1], network(long[None])[0])


def test_the_verses_of_a_chapter_are_in_one_part(run):
    verses = build_verses()["all"]
    assert len(verses) == 3190 and verses.found_options["class_names"] == ["gospels", "law", "letters", "prophets"]
    trainer = run("--debug")
    chapters = [set(part.groups) for part in trainer.datasets.values()]
    assert sum(map(len, chapters)) == len(set.union(*chapters)) == 98


def test_held_out_verses_are_recognized(run, tmp_path):
    trainer = run("--n_epoch", "3")
    evaluator = evaluate(trainer, tmp_path)
    results = evaluator.results()
    assert results["f1"] > 0.5  # a quarter of 0.61 if all are of the gospels
    other = evaluate(trainer, tmp_path, "--eval_batch_size", "17").results()  # other texts are beside each other
    assert results == pytest.approx(other, abs=1e-5)


def test_a_killed_run_goes_on_to_the_same_weights(run, messages, weights, differences, tmp_path):
    given = (*messages, "--n_epoch", "2")
    whole = weights(run(*given))
    assert not differences(whole, weights(run(*given, "--num_workers", "1")))
    with pytest.raises(KeyboardInterrupt):
        run(*given, watched_by=[Killed()])
    (killed,) = tmp_path.glob("runs/*/*InT*")
    assert not differences(whole, weights(run("--resume", str(killed.parent))))


def test_new_texts_are_predicted_in_their_order(run, messages, tmp_path):
    trainer = run(*messages, "--n_epoch", "6")
    assert evaluate(trainer, tmp_path).results()["f1"] > 0.8
    rows = text_rows(np.random.default_rng(6), 40)
    write_csv(tmp_path / "new.csv", [{"id": number, "message": row["message"]} for number, row in enumerate(rows)])
    (tmp_path / "new.txt").write_text("".join(f"{row['message']}\n" for row in rows))
    found = []
    for name in ("new.csv", "new.txt"):
        with pytest.raises(SystemExit) as end:
            predict([best(trainer), str(tmp_path / name), "--output_dir", str(tmp_path / f"{name} out")])
        assert end.value.code == 0
        with open(next((tmp_path / f"{name} out").iterdir()) / "predictions.csv", newline="") as file:
            found.append(list(csv.DictReader(file)))
    assert [row["message"] for row in found[0]] == [row["message"] for row in rows] and found[0][7]["id"] == "7"
    assert [row["class"] for row in found[0]] == [row["class"] for row in found[1]]
    assert np.mean([row["class"] == actual["kind"] for row, actual in zip(found[0], rows, strict=True)]) > 0.9


def test_columns_are_needed(tmp_path):
    (tmp_path / "texts.csv").write_text("a,b\nx,1\ny,2\n")
    with pytest.raises(UserError, match="--text and --target name the columns"):
        build_texts(tmp_path / "texts.csv", None, "a")
    with pytest.raises(UserError, match="has no column 'c'"):
        build_texts(tmp_path / "texts.csv", "b", "a", "c")
