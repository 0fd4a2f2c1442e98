"""Write curves for Weights & Biases (https://docs.wandb.ai), offline by default."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callbacks.callback import Callback

MODE = "WANDB_MODE"  # environment variable: online, offline or disabled


class WandB(Callback):
    """Writes `train/...` and `lr` per logged update and `val/...` per validation, over the number of updates.

    Offline, the default here, nothing is sent and no account is needed; `wandb sync RUN/wandb/offline-run-*` sends it
    later. A resumed run continues under the same id, and logs the updates after the checkpoint again.

    Args:
        run_dir: of the run; the files go to a directory `wandb` in it.
        project: the name of the project.
        options: of the run, shown beside its curves.
        monitor: the metric whose best value is the run's summary.
    """

    def __init__(self, run_dir: str | Path, project: str, options: Mapping[str, Any], monitor: str):
        self.run_dir, self.project, self.monitor = Path(run_dir), project, monitor
        self.options = {name: value for name, value in options.items() if name != "resume_notes"}
        self.id = uuid.uuid4().hex[:16]
        self._run: Any = None

    def on_train_start(self, trainer) -> None:
        import wandb

        mode = os.environ.get(MODE) or "offline"
        self._run = wandb.init(
            dir=str(self.run_dir),
            project=self.project,
            name=self.run_dir.name,
            id=self.id,
            config=self.options,
            mode=mode,
            resume=None if mode == "offline" else "allow",  # offline the id alone does it
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        named = {name if name.split("/")[0] == "lr" else f"train/{name}": value for name, value in values.items()}
        self._run.log({"update": trainer.progress.update, **named})

    def on_validation_end(self, trainer, results: Mapping[str, float]) -> None:
        self._run.log({"update": trainer.progress.update, **{f"val/{name}": v for name, v in results.items()}})

    def on_train_end(self, trainer) -> None:
        self._run.summary[f"best/{self.monitor}"] = trainer.stopper.best
        self._run.finish()

    def on_exception(self, trainer, error: BaseException) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state["id"], str) or not state["id"].isalnum():  # it becomes a part of a path
            raise ValueError(f"{state['id']!r} is no id of a run")
        self.id = state["id"]
