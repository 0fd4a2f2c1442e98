"""The training loops that the vanilla task is measured against, each as its users write it.

Each takes a `Job` and returns its figures: "seconds", of a whole epoch with all that the loop does in it, and "train",
of the updates alone and what they wait for. The first epoch is the warm-up and is not in them.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from model.vanilla_model import VanillaModel
from utils.errors import UserError

LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 1e-3, 0.01, 0.1
LOG_EVERY = 50  # updates between two entries of a log, for all that have one


@dataclass
class Job:
    """A training task.

    Attributes:
        parts: "train" and "val", each images (N, 1, 28, 28) uint8 and labels (N,) int64, on the CPU.
        batch_size: samples of an update, and of a batch of the validation.
        num_epochs: with the first, which is not measured.
        device: where to compute.
        learned: what the loss on the training samples is below in the end, when the network has learned.
    """

    parts: dict[str, tuple[Tensor, Tensor]]
    batch_size: int
    num_epochs: int
    device: torch.device
    learned: float = 0.9

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return VanillaModel().to(self.device)

    def floats(self, part: str) -> TensorDataset:
        """A part as most keep it in memory: images as float32 in [0, 1]."""
        images, labels = self.parts[part]
        return TensorDataset(images.float() / 255, labels)

    def wait(self) -> float:
        """The time, when the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def figures(job: Job, epochs: Sequence[tuple[float, float]], model: nn.Module) -> dict[str, float]:
    """The means over the epochs, without the first, and the loss that shows whether the network has learned.

    Args:
        job: what was trained.
        epochs: of each epoch the seconds of all and of the updates.
        model: the trained network.

    Raises:
        UserError: when it has not learned.
    """
    seconds, train = (sum(column) / len(column) for column in zip(*epochs[1:], strict=True))
    images, labels = (part[:10_000].to(job.device) for part in job.parts["train"])
    with torch.no_grad():
        loss = cross_entropy(model(images.float() / 255), labels, label_smoothing=SMOOTHING).item()
    if not loss < job.learned:
        told = f"the loss is {loss:.3f} after {job.num_epochs} epochs, not below {job.learned}"
        raise UserError(f"it did not learn: {told}")
    return {"seconds": seconds, "train": train, "loss": loss}


def build_adamw(model: nn.Module, **how: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **how)


# ---- by hand ---------------------------------------------------------------------------------------------------------
def best(job: Job, keep_floats: bool = False) -> dict[str, float]:
    """The fastest that we can write: nothing but updates. No log, no validation, no checkpoint, no waiting.

    Args:
        job: what to train.
        keep_floats: convert the images once, which is faster and takes four times the memory.
    """
    model = job.build_model()
    optimizer = build_adamw(model, fused=True)
    images, labels = (part.to(job.device) for part in job.parts["train"])
    if keep_floats:
        images = images.float() / 255
    epochs = []
    for _ in range(job.num_epochs):
        started = job.wait()
        for indices in torch.randperm(len(labels), device=job.device).split(job.batch_size):
            batch = images.index_select(0, indices)
            batch = batch if keep_floats else batch.float().mul_(1 / 255)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(batch), labels.index_select(0, indices), label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()
        seconds = job.wait() - started
        epochs.append((seconds, seconds))
    return figures(job, epochs, model)


# ---- as PyTorch's tutorial -------------------------------------------------------------------------------------------
class Pictures(Dataset):
    """One sample at a time, as torchvision's FashionMNIST gives it with `transform=ToTensor()`."""

    def __init__(self, images: Tensor, labels: Tensor):
        from torchvision.transforms import ToTensor

        self.images, self.labels, self.transform = images.squeeze(1), labels, ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index].numpy(), mode="L")), int(self.labels[index])


def use_all_cores(worker: int) -> None:
    """Let a loading process run on any core, also when the threads of the main process are bound to one each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count()))


def tutorial(job: Job, num_workers: int = 0) -> dict[str, float]:
    """The loop of https://docs.pytorch.org/tutorials/beginner/basics/quickstart_tutorial.html, with its test loop."""
    datasets = {part: Pictures(*job.parts[part]) for part in ("train", "val")}
    how = {"batch_size": job.batch_size, "num_workers": num_workers, "worker_init_fn": use_all_cores}
    train_loader = DataLoader(datasets["train"], shuffle=True, **how)
    val_loader = DataLoader(datasets["val"], **how)
    model, criterion = job.build_model(), nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    optimizer, epochs = build_adamw(model), []
    for _ in range(job.num_epochs):
        started = job.wait()
        model.train()
        for number, (images, labels) in enumerate(train_loader):
            images, labels = images.to(job.device), labels.to(job.device)
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if number % 100 == 0:
                print(f"loss: {loss.item():>7f} [{(number + 1) * len(images):>5d}/{len(datasets['train']):>5d}]")
        trained = job.wait()
        model.eval()
        test_loss, correct = 0.0, 0.0
        with torch.no_grad():
            for images, labels in val_loader:
                images, labels = images.to(job.device), labels.to(job.device)
                logits = model(images)
                test_loss += criterion(logits, labels).item()
                correct += (logits.argmax(1) == labels).type(torch.float).sum().item()
        print(f"Accuracy: {100 * correct / len(datasets['val']):>0.1f}%, loss: {test_loss / len(val_loader):>8f}")
        epochs.append((job.wait() - started, trained - started))
    return figures(job, epochs, model)


# ---- Lightning -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def needed(package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        told = f"{package} is missing ({error.name}): pip install -r requirements-bench.txt"
        raise UserError(told) from None


def lightning(job: Job) -> dict[str, float]:
    """Lightning's Trainer with the same equipment: both logs, a validation and a checkpoint each epoch."""
    with needed("Lightning"):
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    module, watch = build_module(lightning, job), build_watch(lightning, job)
    train_loader = DataLoader(job.floats("train"), batch_size=job.batch_size, shuffle=True)
    val_loader = DataLoader(job.floats("val"), batch_size=job.batch_size)
    with tempfile.TemporaryDirectory() as directory:
        trainer = lightning.Trainer(
            max_epochs=job.num_epochs,
            accelerator="cpu" if job.device.type == "cpu" else "gpu",
            devices=1,
            logger=[TensorBoardLogger(directory), CSVLogger(directory)],
            log_every_n_steps=LOG_EVERY,
            callbacks=[watch, ModelCheckpoint(monitor="val/accuracy", mode="max", save_last=True)],
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train_loader, val_loader)
    ends = [*watch.starts[1:], watch.end]
    pairs = zip(watch.starts, watch.trained, ends, strict=True)
    return figures(job, [(end - start, trained - start) for start, trained, end in pairs], module.model.to(job.device))


def build_module(lightning: Any, job: Job) -> Any:
    """The LightningModule of the vanilla task."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.criterion = job.build_model(), nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

        def training_step(self, batch, batch_idx):
            images, labels = batch
            loss = self.criterion(self.model(images), labels)
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            images, labels = batch
            logits = self.model(images)
            self.log("val/loss", self.criterion(logits, labels))
            self.log("val/accuracy", (logits.argmax(dim=1) == labels).float().mean())

        def configure_optimizers(self):
            return build_adamw(self.model)

    return Module()


def build_watch(lightning: Any, job: Job) -> Any:
    """A callback that notes when each epoch starts, and when its last update is done."""

    class Watch(lightning.Callback):
        def __init__(self):
            self.starts, self.trained, self.end = [], [], 0.0

        def on_train_epoch_start(self, trainer, module):
            self.starts.append(job.wait())

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx + 1 == trainer.num_training_batches:
                self.trained.append(job.wait())

        def on_train_end(self, trainer, module):
            self.end = job.wait()

    return Watch()


# ---- Accelerate ------------------------------------------------------------------------------------------------------
def accelerate(job: Job) -> dict[str, float]:
    """The loop of Accelerate's documentation, with a tracker, a validation and a checkpoint each epoch."""
    with needed("Accelerate"):
        from accelerate import Accelerator

    with tempfile.TemporaryDirectory() as directory:
        accelerator = Accelerator(cpu=job.device.type == "cpu", log_with="tensorboard", project_dir=directory)
        accelerator.init_trackers("vanilla")
        model = job.build_model()
        train_loader = DataLoader(job.floats("train"), batch_size=job.batch_size, shuffle=True)
        val_loader = DataLoader(job.floats("val"), batch_size=job.batch_size)
        model, optimizer, train_loader, val_loader = accelerator.prepare(
            model, build_adamw(model), train_loader, val_loader
        )
        criterion, epochs, update = nn.CrossEntropyLoss(label_smoothing=SMOOTHING), [], 0
        for _ in range(job.num_epochs):
            started = job.wait()
            model.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                update += 1
                if update % LOG_EVERY == 0:
                    accelerator.log({"train/loss": loss.item()}, step=update)
            trained = job.wait()
            model.eval()
            correct, count = 0, 0
            for images, labels in val_loader:
                with torch.no_grad():
                    predicted = model(images).argmax(dim=-1)
                predicted, labels = accelerator.gather_for_metrics((predicted, labels))
                correct, count = correct + (predicted == labels).sum().item(), count + len(labels)
            accelerator.log({"val/accuracy": correct / count}, step=update)
            accelerator.save_state(str(Path(directory) / "last"))
            epochs.append((job.wait() - started, trained - started))
        accelerator.end_training()
    return figures(job, epochs, accelerator.unwrap_model(model))


# ---- ours ------------------------------------------------------------------------------------------------------------
def plainloop(job: Job, flags: Sequence[str]) -> dict[str, float]:
    """TrainerVanilla as a user runs it: log, TensorBoard, metrics.csv, a validation and checkpoints each epoch.

    An epoch is from its start to the start of the next, so the writing of its checkpoints is in it.

    Args:
        job: what to train.
        flags: the command line that asks for the same.
    """
    from callbacks.callback import Callback
    from trainer_vanilla import TrainerVanilla

    class Watch(Callback):
        starts: list[float] = []
        train: list[float] = []

        def on_epoch_start(self, trainer):
            self.starts.append(job.wait())

        def on_epoch_end(self, trainer, row):
            self.train.append(row["time/train"])

        def on_train_end(self, trainer):
            self.starts.append(job.wait())

    class Watched(TrainerVanilla):
        def build_callbacks(self):
            return [Watch(), *super().build_callbacks()]  # first, so that the end of the others is not measured

    with tempfile.TemporaryDirectory() as directory:
        own = [f"--n_epoch={job.num_epochs}", f"--batch_size={job.batch_size}", f"--output_dir={directory}"]
        trainer = Watched(Watched.parse_options([*flags, *own]))
        trainer.train()
    lengths = [end - start for start, end in zip(Watch.starts, Watch.starts[1:], strict=False)]
    model = trainer.networks["model"].eval()
    return figures(job, list(zip(lengths, Watch.train, strict=True)), model)


