"""Train a task under Lightning's Trainer: python train_pl.py TRAINER. The program is extras/lightning/train_pl.py."""

from engine.options.parser import run_main
from extras.lightning.train_pl import main

if __name__ == "__main__":
    run_main(main)
