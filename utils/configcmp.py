"""Compare the options of runs: python -m utils.configcmp A B. The program is tools/configcmp.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tools.configcmp", run_name="__main__", alter_sys=True)
