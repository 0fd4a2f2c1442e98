"""Files as people have them."""

import numpy as np
import pytest
from PIL import Image

from tools.prediction.command import main


@pytest.fixture
def photos(tmp_path):
    """A directory of one grey ramp, 24 x 40 pixels, in many encodings; two names twice, and two files that fail."""
    directory = tmp_path / "photos"
    (directory / "below").mkdir(parents=True)
    ramp = np.add.outer(np.arange(24), np.arange(40)).astype(np.uint8) * 4
    grey = Image.fromarray(ramp)
    grey.save(directory / "a.png")
    grey.convert("RGB").save(directory / "a.tif")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(directory / "deep.png")
    grey.convert("RGBA").save(directory / "rgba.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    grey.rotate(90, expand=True).save(directory / "turned.png", exif=exif)
    grey.save(directory / "below" / "a.png")
    (directory / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (directory / "notes.txt").write_text("no image")
    (directory / ".hidden.png").write_bytes(b"")
    return directory


@pytest.fixture
def predict(tmp_path):
    """A function that predicts as a user does, and returns the exit status and the directory of the results."""

    def predict(*argv):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, argv), "--output_dir", str(tmp_path / "out"), "--device", "cpu"])
        return ended.value.code, max((tmp_path / "out").iterdir())

    return predict
