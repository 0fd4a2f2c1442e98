"""Compare the results of an evaluation on the validation part with those that a checkpoint remembers."""

import math
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError

# Options that may differ without changing a score.
HARMLESS = (
    "model_path", "gpu_devices", "proj_name", "data_dir", "num_workers", "eval_batch_size", "seed", "metrics", "nproc",
)  # fmt: skip


def compare_with_stored(
    results: Mapping[str, float], num_samples: int, checkpoint: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """Compare results with the score in a checkpoint, and return a line for the log.

    A score is compared if it belongs to the checkpoint's weights, as many samples, and the same options.

    Args:
        results: of the validation part. Metrics that only one side has are ignored.
        num_samples: number of samples that were evaluated.
        checkpoint: its "score" with "update", "num_samples" and "results" (None before the first validation), its
            "progress" and its "options".
        options: of the evaluation.

    Raises:
        UserError: they differ by more than rounding does.
    """
    score, trained = checkpoint["score"], checkpoint["options"]
    if not score or score["num_samples"] != num_samples or score["update"] != checkpoint["progress"]["update"]:
        return "The checkpoint holds no score of these weights on these samples to compare with."
    if checkpoint.get("averaging") and not options.get("use_average", True):
        return "Not compared with the score in the checkpoint, which is that of the averaged weights."
    for name in trained:
        if name in options and name not in HARMLESS and options[name] != trained[name]:
            return f"Not compared with the score in the checkpoint, which was measured with {name}={trained[name]}."
    for name, old in score["results"].items():
        if not isinstance(old, int | float):
            raise UserError(f"The score {name!r} in the checkpoint is no number.")
        new = results.get(name, old)
        both_nan = math.isnan(new) and math.isnan(old)
        if not (both_nan or math.isclose(new, old, rel_tol=1e-4, abs_tol=1e-6)):
            raise UserError(
                f"{name} is {new:.6f}, but {old:.6f} was stored with the checkpoint: the data or the code has changed."
            )
    return "The score agrees with the one that is stored in the checkpoint."
