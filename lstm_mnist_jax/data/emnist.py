"""What the files of EMNIST do not say: its images are transposed, and labels have characters.

Cohen, Afshar, Tapson and van Schaik 2017, "EMNIST: an extension of MNIST to handwritten letters". `letters` numbers its
26 classes from 1; TFDS declares 37 for it. `balanced` and `bymerge` join the cases of letters that look alike.
"""

import string

import numpy as np

_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
CHARACTERS = {  # those of `digits` and `mnist` are their labels
    "letters": string.ascii_lowercase,
    "balanced": _MERGED,
    "bymerge": _MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
}


def upright(images: np.ndarray) -> np.ndarray:
    """Images [n, rows, columns, ...] as EMNIST is read by people: rows and columns are exchanged."""
    return images.swapaxes(1, 2)


def character_names(part: str, labels: np.ndarray) -> tuple[tuple[str, ...] | None, int]:
    """The names of the classes of a part of EMNIST, and the label of the first.

    Args:
      part: such as "letters" or "balanced".
      labels: integers [n].

    Returns:
      One character a class, and 1 where `letters` numbers them from 1, else 0; (None, 0) for another part, or labels
      that are not of it.
    """
    names, first = CHARACTERS.get(part, ""), int(part == "letters" and labels.min(initial=1) > 0)
    fits = bool(names) and labels.min(initial=first) >= first and labels.max(initial=0) < len(names) + first
    return (tuple(names), first) if fits else (None, 0)
