"""--logger report writes the page of a run while it trains, as often as it costs next to nothing."""

import json
import re

import pytest

from extras.callbacks.report import Paced
from utils.errors import UserError


def curves_of(run):
    text = (run.run_dir.path / "report.html").read_text()
    return json.loads(re.search(r'id="curves">(.*?)</script>', text)[1]), text


def test_a_run_leaves_its_page_and_its_picture(train):
    run = train("--logger", "report", "csv", "--n_epoch", 2, callbacks=None)
    curves, text = curves_of(run)
    assert curves["epochs"] == [1, 2] and ">finished</span>" in text and "refresh" not in text.split("</head>")[0]
    assert (run.run_dir.path / "curves.png").exists()
    assert '<code>batch_size</code></td><td>64</td><td class="soft">32<' in text


def test_while_it_trains_the_page_has_the_newest_epoch_and_refreshes(build):
    run = build("--logger", "report", "csv", "--n_epoch", 2, callbacks=None)
    seen = []
    report = next(callback for callback in run.callbacks.callbacks if hasattr(callback, "write_page"))
    write = report.page.function
    report.page.function = lambda: (write(), seen.append(curves_of(run)))
    run.train()
    curves, text = seen[0]
    assert curves["epochs"] == [1] and '<meta http-equiv="refresh"' in text and ">running</span>" in text


def test_it_needs_the_rows_of_the_csv_logger(build):
    with pytest.raises(UserError, match="name csv, too"):
        build("--logger", "report", callbacks=None)


def test_what_is_costly_waits(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work():
        now[0] += 2.0

    paced = Paced(work, cost=0.5)
    for time, calls in ((40.0, 0), (50.0, 1), (60.0, 1), (251.0, 1), (252.0, 2)):
        now[0] = time
        paced()
        assert paced.calls == calls, time
    paced(is_last=True)
    assert paced.calls == 3
