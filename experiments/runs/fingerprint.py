"""A name from what a file or a checkpoint folder holds, without reading all of it: 50 GB would take minutes at every command."""

import hashlib
from functools import lru_cache
from pathlib import Path

SAMPLES, BLOCK = 256, 1 << 14


@lru_cache
def fingerprint(path: Path) -> str:
    """Hex sha256 of the name, size and content of a file, or of a folder's .json and .safetensors files.

    Of a file larger than ``SAMPLES`` blocks of ``BLOCK`` bytes the first, the last and evenly spaced blocks between them stand for the
    whole. Training or converting changes every tensor; a single edited number may go unseen. ValueError where there is nothing to read.
    """
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".json", ".safetensors"))
    if not files:
        raise ValueError(f"nothing at {path}: give a file, or a checkpoint folder with .json and .safetensors files")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if file != path else ''} {size}\n".encode())
        with file.open("rb") as content:
            if size <= SAMPLES * BLOCK:
                digest.update(content.read())
                continue
            for i in range(SAMPLES):
                content.seek(i * (size - BLOCK) // (SAMPLES - 1))
                digest.update(content.read(BLOCK))
    return digest.hexdigest()
