"""Files that a test changes hundreds of times."""

from pathlib import Path


def rewrite(path: Path, contents: bytes) -> None:
    """Replaces what is in a file, or makes it. The file is never empty in between: ext4 writes one that was emptied to
    the disk as soon as it is closed, which takes milliseconds."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(contents)
        file.truncate()
