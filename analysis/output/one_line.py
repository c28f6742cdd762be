"""A command's mistakes as one line each; imports nothing heavy, as every command begins with it."""

import argparse
import os
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says of arguments that it cannot read what is wrong and where help is, in one line on stderr; exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}: see {self.prog} --help\n")


def nobody_reads() -> int:
    """The exit code where stdout was closed, as ``| head`` does: that of a program that SIGPIPE ends. Nothing more is written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
