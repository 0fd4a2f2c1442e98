"""An evaluation of a run whose data was moved."""

from argparse import Namespace

import pytest

from engine.options.foreign import NOT_HERE
from extras.evaluation.moved_data import datasets_of
from extras.own_data.folder import build_image_folder
from utils.errors import UserError


class Evaluator:
    @staticmethod
    def build_datasets(opt):
        return build_image_folder(opt.data_dir)


def test_data_that_was_moved_is_asked_for():
    note = f"{NOT_HERE} a.pth is not here: '/mine'. Going on with /none."
    opt = Namespace(data_dir="/none", resume_notes=["another", note])
    words = "a.pth is not here: '/mine'. .*There is no directory /none.* Where the data .* now, say by --data_dir DIR"
    with pytest.raises(UserError, match=words):
        datasets_of(Evaluator, opt)
    opt.resume_notes = []
    with pytest.raises(UserError, match=r"^There is no directory /none"):
        datasets_of(Evaluator, opt)
