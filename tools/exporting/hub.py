"""Upload an exported network to the Hugging Face Hub, with a page that says how to use it."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.exporting.formats import require
from utils.errors import UserError

LIBRARIES = {"onnx": "onnx", "pt2": "pytorch", "safetensors": "pytorch"}
CARD = """---
library_name: {library}
tags: [plainloop, {task}]
---
# {name}

`{file}` is a network of the type {model_type}, for {task}.

```json
{metadata}
```
"""


def push(path: Path, metadata: Mapping[str, Any], repository: str, private: bool = True) -> str:
    """Upload a file as model.SUFFIX of a repository, made if it does not exist, and return the repository's address.

    Raises:
        UserError: the package is missing, there is no network, or nobody is logged in.
    """
    require(["huggingface_hub"], "--push")
    from huggingface_hub import HfApi

    suffix = path.suffix.removeprefix(".")
    card = CARD.format(
        library=LIBRARIES.get(suffix, "pytorch"),
        task=metadata["task"],
        name=repository.partition("/")[2],
        file=f"model{path.suffix}",
        model_type=metadata["model_type"],
        metadata=json.dumps(metadata, indent=2),
    )
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(path, Path(directory, f"model{path.suffix}"))
        Path(directory, "README.md").write_text(card, encoding="utf-8")
        Path(directory, "config.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=directory)
        except Exception as error:  # of the network, of the service or of the login, by several packages
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--push {repository}: {reason.rstrip('.')}. The file is in {path}. It needs the network and a login: "
                f"hf auth login"
            ) from None
    return f"https://huggingface.co/{repository}"
