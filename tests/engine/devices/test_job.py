"""A job is started in this process, and its place is read from the environment."""

import gc
from argparse import Namespace

from engine.devices import job


class Task:
    """Stands for a trainer."""

    def __init__(self, opt):
        self.opt = opt

    @classmethod
    def parse_options(cls, argv):
        return Namespace(nproc=1, parallel="none", gpu_devices="cpu", resume=None)

    def train(self):
        assert gc.get_freeze_count() > 0


def test_what_is_frozen_for_the_run_is_collected_at_its_end(monkeypatch):
    """Libraries that count what is freed at the end would report leaks."""
    registered = []
    monkeypatch.setattr(job.atexit, "register", registered.append)
    job.run(Task, [])
    assert registered == [gc.unfreeze]
    gc.unfreeze()
