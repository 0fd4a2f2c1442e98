"""Predict on files: python predict.py CHECKPOINT|RUN FILE_OR_DIR... The program is tools/prediction/command.py.

In a notebook: `load_predictor("Results/.../..._best_ckpt.pth")(images)`.
"""

from engine.options.parser import run_main
from tools.prediction.command import load_predictor, main

__all__ = ["load_predictor"]

if __name__ == "__main__":
    run_main(main)
