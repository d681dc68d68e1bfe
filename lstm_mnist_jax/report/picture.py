"""A picture of a report, and what it says in words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a report.

    Attributes:
      name: of its files, without the ending; made of small letters and hyphens, and the only one of this name.
      title: a few words, for a heading.
      caption: sentences that say with numbers what is to be seen; they serve those who do not see it, too.
      figure: the picture.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
