"""Download FashionMNIST, where its four files are not at hand."""

import socket
from http.client import HTTPException
from pathlib import Path

from data.FashionMNIST import FILES, find_files
from extras.turns import locked
from utils.errors import UserError

TIMEOUT = 20  # seconds without an answer after which a mirror counts as out of reach


def download(data_dir: Path) -> None:
    """Let torchvision download the files. Of several processes one does, and the others wait."""
    from torchvision import datasets

    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / ".FashionMNIST.lock", f"downloads FashionMNIST into {data_dir}"):
            datasets.FashionMNIST(data_dir, download=True)
    except (RuntimeError, OSError, HTTPException) as error:
        raw = data_dir / "FashionMNIST" / "raw"
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        missing = ", ".join(name for name in FILES if name not in find_files(raw))
        raise UserError(
            f"FashionMNIST is not in {data_dir}, and the download failed: {reason}\n"
            f"Put its four files into {raw} (missing: {missing}), or take the sample that comes with the code: "
            f"--data_type FashionMNISTSample"
        ) from None
    finally:
        socket.setdefaulttimeout(earlier_timeout)
