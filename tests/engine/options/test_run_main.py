"""A program ends quietly when its standard output is closed; any other broken pipe is an error."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("main", "status", "told"),
    [
        ("[print('x') for _ in range(99_999)]", 141, ""),
        ("print('x')", 0, ""),
        ("print('x') or sys.exit(3)", 3, ""),
        ("print('x') or fail(UserError('no such thing'))", 2, "no such thing"),
        ("print('x') or fail(BrokenPipeError('another one'))", 1, "Traceback"),
    ],
)
def test_output_that_nobody_reads_any_more_ends_quietly(main, status, told, unbuffered):
    if unbuffered and status != 1:
        status, told = 141, ""  # the first line is noticed at once
    program = f"""if True:
        import sys
        from utils.errors import UserError
        from engine.options.parser import run_main
        def fail(error):
            raise error
        input()
        {"sys.stdout = sys.stderr" if status == 1 else ""}
        run_main(lambda: {main})"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    said = process.stderr.read().decode()
    assert process.wait(timeout=20) == status
    assert told in said if told else said == ""
    process.stderr.close()
