"""Compare the options of runs: python -m utils.configcmp A B. The program is tools/configcmp.py."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also for `python utils/configcmp.py`
    runpy.run_module("tools.configcmp", run_name="__main__", alter_sys=True)
