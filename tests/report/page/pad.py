"""What a person does with the pad of a page, and what is read from it."""

import numpy as np

SEVEN = [[(0.3, 0.2), (0.7, 0.2), (0.62, 0.4), (0.45, 0.85)]]
FOUR = [[(0.35, 0.15), (0.3, 0.5), (0.7, 0.5)], [(0.62, 0.2), (0.6, 0.9)]]


def draw(page, strokes):
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=8)
        page.mouse.up()


def reading_of(page):
    """The input of the network, the steps, and the probabilities after them; None for an empty pad."""
    found = page.evaluate(
        """async () => {
          const read = await lstm.settled();
          return read && [Array.from(read.seen), read.stops, read.found.map((each) => Array.from(each))];
        }"""
    )
    return found and tuple(np.array(part) for part in found)


def prediction(page):
    return page.locator("#prediction").text_content()


def clear(page):
    page.locator("#clear").click()
    assert reading_of(page) is None
