"""The vanilla task as one plain loop, with no class at all: python -m examples.plain_loop --seed 0

It computes the same as `trainer_vanilla.py`, without callbacks, checkpoints and resume. With the same seed both end
with the same weights, bit for bit, as a test shows. Start here to understand the template, or to leave it.
"""

import argparse
import math

import torch
from torch.nn.functional import cross_entropy

from data.FashionMNIST import build_fashion_mnist_sample
from data.sampler import epoch_order
from model.vanilla_model import VanillaModel

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_epoch", type=int, default=12)
    parser.add_argument("--save", default=None, help="write the weights of the last epoch here")
    opt = parser.parse_args()

    # data
    parts = build_fashion_mnist_sample()
    train_set, val_set = parts["train"], parts["val"]

    # model
    torch.manual_seed(opt.seed)
    model = VanillaModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    num_updates = opt.n_epoch * math.ceil(len(train_set) / BATCH_SIZE)
    update = 0

    for epoch in range(opt.n_epoch):
        # train
        model.train()
        order = epoch_order(len(train_set), opt.seed, epoch)
        total_loss = 0.0
        for start in range(0, len(order), BATCH_SIZE):
            images, labels = train_set.__getitems__(order[start : start + BATCH_SIZE])  # (N, 1, 28, 28), (N,)
            for group in optimizer.param_groups:  # half a cosine, from the learning rate to 0 at the last update
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * update / (num_updates - 1))) / 2
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels, label_smoothing=LABEL_SMOOTHING)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            update += 1

        # validate
        model.eval()
        with torch.no_grad():
            images, labels = val_set.__getitems__(range(len(val_set)))
            accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
        print(f"epoch {epoch + 1}/{opt.n_epoch}: loss {total_loss / len(train_set):.4f}, val/accuracy {accuracy:.4f}")

    if opt.save:
        torch.save(model.state_dict(), opt.save)


if __name__ == "__main__":
    main()
