"""Train one task many times: python sweep.py TRAINER --grid ... The program is tools/sweep/command.py."""

from engine.options.parser import run_main
from tools.sweep.command import main

if __name__ == "__main__":
    run_main(main)
