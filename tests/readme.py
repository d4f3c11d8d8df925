"""The README's examples, run for real: `python -m tests.readme ADDRESS` writes their output into it.

A `console` block holds commands after `$ ` and the output of each; an `output` block holds what the Python program
before it prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
GUIDE = README.parent / "docs" / "guide.md"
ADDRESS = "127.0.0.1:8000"
_BLOCK = re.compile(r"```(console|python|output)\n(.*?)```", re.DOTALL)


def examples(text: str) -> Iterator[tuple[list[str], str]]:
    """Every command of a README, as an argument list, with the output that stands there."""
    program = ""
    for kind, body in _BLOCK.findall(text):
        if kind == "python":
            program = body
        elif kind == "output":
            yield [sys.executable, "-c", program], body
        else:
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield ["sh", "-c", command], output


def run(command: list[str], address: str) -> str:
    """Output of one command against the service at an address."""
    command = [part.replace(ADDRESS, address) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip("\n") + "\n"


def rewritten(text: str, address: str) -> str:
    """The README with fresh output."""
    program = ""

    def renew(match: re.Match[str]) -> str:
        nonlocal program
        kind, body = match[1], match[2]
        if kind == "python":
            program = body
        elif kind == "output":
            body = run([sys.executable, "-c", program], address)
        else:
            commands = [
                p.partition("\n")[0] for p in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
            ]
            body = "".join(f"$ {c}\n{run(['sh', '-c', c], address)}" for c in commands)
        return f"```{kind}\n{body}```"

    return _BLOCK.sub(renew, text)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(), sys.argv[1]))
