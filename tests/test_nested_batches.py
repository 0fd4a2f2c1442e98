"""Batches and outputs that are nested dictionaries of tensors, texts and numbers go through all of a run."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

import eval as eval_module
from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from eval import EvaluatorBase
from trainer import TrainerBase
from utils.meter import AvgMeter
from utils.metrics import Accuracy

COUNTS = {"train": 26, "val": 7, "test": 5}


def sample(part: str, index: int) -> dict:
    image = torch.full((1, 4, 4), index / 100)
    return {"inputs": {"image": image, "scale": 2.0}, "targets": {"label": index % 3}, "name": f"{part}{index}"}


class Nested(Dataset):
    """One sample at a time, for a DataLoader."""

    is_random = False

    def __init__(self, part: str):
        self.part, self.names = part, [f"{part}{index}" for index in range(COUNTS[part])]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return sample(self.part, index)


class NestedInMemory(Nested):
    in_memory, num_bytes, device = True, 1, torch.device("cpu")
    collate_fn = staticmethod(lambda batch: batch)  # it comes whole

    def to(self, device):
        return self

    def __getitems__(self, indices):
        batch = default_collate([sample(self.part, int(index)) for index in indices])
        return {**batch, "part": self.part, "sizes": (4, 4)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, inputs: dict) -> dict:
        flat = inputs["image"].flatten(1) * inputs["scale"][:, None].float()
        return {"logits": self.layer(flat), "features": [flat], "note": "text"}


def check_names(batch: dict) -> None:
    numbers = [int("".join(filter(str.isdigit, name))) for name in batch["name"]]
    assert torch.allclose(batch["inputs"]["image"][:, 0, 0, 0], torch.tensor(numbers) / 100)
    assert batch["targets"]["label"].tolist() == [number % 3 for number in numbers]


class EvaluatorNested(EvaluatorBase):
    """Evaluate nested batches."""

    @classmethod
    def build_networks(cls, opt):
        return {"net": Model()}

    @classmethod
    def build_criterion(cls, opt):
        return nn.CrossEntropyLoss()

    def build_meters(self):
        return {"loss": AvgMeter(), "accuracy": Accuracy()}

    def eval_step(self, batch):
        check_names(batch)
        outputs, labels = self.model(batch["inputs"]), batch["targets"]["label"]
        self.meters["loss"].update(self.criterion(outputs["logits"], labels), n=len(labels))
        self.meters["accuracy"].update(outputs["logits"], labels)


class TrainerNested(TrainerBase):
    """Train on nested batches."""

    evaluator_class = EvaluatorNested

    def compute_loss(self, batch):
        check_names(batch)
        self.sizes = [*getattr(self, "sizes", []), len(batch["name"])]
        return self.criterion(self.model(batch["inputs"])["logits"], batch["targets"]["label"])


class Interrupts(Callback):
    def on_update_end(self, trainer, values):
        if trainer.progress.update == 5:
            raise KeyboardInterrupt


@pytest.fixture(params=[Nested, NestedInMemory])
def data(request, monkeypatch):
    monkeypatch.setattr(eval_module, "build_datasets", lambda opt: {part: request.param(part) for part in COUNTS})
    return request.param


def flags(tmp_path, *more):
    shared = ["--batch_size", 8, "--n_epoch", 2, "--gpu_devices", "cpu", "--seed", 0, "--output_dir", tmp_path]
    return list(map(str, [*shared, *more]))


@pytest.mark.parametrize("more", [(), ("--micro_batch_size", 3)])
def test_a_run_and_its_resume(data, tmp_path, more, differences):
    trainers = []
    for callbacks in ([], [Interrupts()]):
        task = type("Task", (TrainerNested,), {"build_callbacks": lambda self, c=callbacks: c})
        trainers.append(task(task.parse_options(flags(tmp_path, *more))))
    whole, broken = trainers
    whole.train()
    assert whole.sizes[: 4 if not more else 11] == ([8, 8, 8, 2] if not more else [3, 3, 2] * 3 + [2, 3])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    task = type(whole)
    resumed = task(task.parse_options(["--resume", str(broken.run_dir.path)]))
    resumed.train()
    states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert differences(*states, ("options", "callbacks", "seconds")) == []


def test_loading_processes_give_the_same(data, tmp_path):
    ends = []
    for workers in (0, 2):
        trainer = TrainerNested(TrainerNested.parse_options(flags(tmp_path, "--num_workers", workers)))
        trainer.train()
        ends.append(trainer.networks["net"].layer.weight.detach())
    assert torch.equal(*ends)
