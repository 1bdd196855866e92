"""A short name for a model's exact weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers import AutoConfig

WHOLE = 1 << 30  # bytes of a model hashed in full; of a larger one, both ends of each file
END = 1 << 20  # bytes


def fingerprint(model: str) -> str:
    """12 hexadecimal digits: a hash of a folder's weights and config, or a hub commit."""
    folder = Path(model)
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        return str(config._commit_hash)[:12]
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    whole = sum(f.stat().st_size for f in files) <= WHOLE
    digest = hashlib.sha256()
    for file in [*folder.glob("config.json"), *folder.glob("adapter_config.json"), *files]:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        _update(digest, file, whole=whole)
    return digest.hexdigest()[:12]


def _update(digest: hashlib._Hash, file: Path, *, whole: bool) -> None:
    with file.open("rb") as stream:
        if not whole and file.stat().st_size > 2 * END:
            digest.update(stream.read(END))
            stream.seek(-END, 2)
        while chunk := stream.read(END):
            digest.update(chunk)
