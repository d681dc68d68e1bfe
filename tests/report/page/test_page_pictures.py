"""Pictures given to the page: photographs and files, against Python; and the warnings of what is no digit."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from accessibility import violations
from pad import SEVEN, clear, draw, reading_of
from PIL import Image

from lstm_mnist_jax.data.normal_form import SIGN, UNREAD
from lstm_mnist_jax.data.novelty import features_of
from lstm_mnist_jax.inference import UNLIKE
from lstm_mnist_jax.report.page import make_page
from lstm_mnist_jax.report.page.build import _asset, novelty_of


def test_warnings_match_python(page, trained, examples, rng):
    """The scores of digits, of noise, of ink as wide as two digits, and of what may be two digits by its width alone;
    the features of other sizes, also of one colour, which have none; and the text beside a drawing."""
    wide = np.zeros((28, 28), np.uint8)
    wide[10:18, 4:24] = rng.integers(0, 256, (8, 20))
    digits = examples.images[:2000]
    are_unlike, are_pairs = trained.novelty.unlike_and_pairs(digits)
    alone = are_pairs & ~are_unlike
    assert alone.sum() >= 3
    noise = rng.integers(0, 256, (3, 28, 28), np.uint8)
    images = np.stack([*digits[:20], wide, *noise, *digits[alone]])
    pixels = (images.reshape(len(images), -1) / 255).tolist()
    found = page.evaluate("(all) => all.map((pixels) => [lstm.noveltyOf(pixels), lstm.unlikeTraining(pixels)])", pixels)
    np.testing.assert_allclose([score for score, _ in found], trained.novelty.scores(images), rtol=1e-4)
    assert len(json.dumps(novelty_of(trained))) < 42_000
    warnings = trained.warnings(images)
    assert [text for _, text in found] == warnings
    unlike = "this looks unlike the training images"
    assert {None, unlike, f"{unlike}: {trained.pair}", trained.pair} == {*warnings}
    assert set(warnings[24:]) == {trained.pair}
    source = "\n".join(_asset(name) for name in ("normal_form.js", "novelty.js"))
    for others in (np.full((1, 40, 40), 0.7), rng.random((2, 19, 40))):
        height, width = others.shape[1:]
        found = page.evaluate(
            f"(pictures) => {{ {source} return pictures.map(featuresOf) }}",
            [{"height": height, "width": width, "levels": image.ravel().tolist()} for image in others],
        )
        np.testing.assert_allclose(found, features_of(others), atol=1e-4)
    clear(page)
    assert page.locator("#warning").text_content() == ""
    draw(page, [[(0.3, height), (0.7, height)] for height in np.linspace(0.3, 0.7, 7)])  # a square
    seen, _, _ = reading_of(page)
    [warning] = trained.warnings(seen.reshape(1, 28, 28))
    assert warning is not None
    assert page.locator("#warning").text_content() == f"Warning: {warning}."


GIVE = """async ([how, files]) => {
  const clipboardData = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    clipboardData.items.add(new File([bytes], name, { type }));
  }
  const options = { bubbles: true, cancelable: true };
  const event = how === "paste"
    ? new ClipboardEvent("paste", { ...options, clipboardData })
    : new DragEvent("drop", { ...options, dataTransfer: clipboardData });
  document.querySelector("h1").dispatchEvent(event);
  const reading = await lstm.settled();
  return [document.getElementById("found").textContent, Array.from(reading.seen), Array.from(reading.found.at(-1))];
}"""


def give(page, *files, how="drop"):
    """Drops or pastes files, (name, content) or (name, content, type): the text, the network's input, probabilities."""
    files = [[name, *(kind or [""]), base64.b64encode(content).decode()] for name, content, *kind in files]
    text, seen, probabilities = page.evaluate(GIVE, [how, files])
    return text, np.array(seen, np.float32).reshape(28, 28), probabilities


def photograph(rng, examples):
    """Three digits on a sheet in uneven light on a table: 750 x 1,000 pixels, grey, and where the digits are."""
    picture = np.full((750, 1000), 0.9)
    places = ((330, 120), (300, 410), (320, 700))
    for image, (top, left) in zip(examples.images[:3], places, strict=True):
        strokes = Image.fromarray(image).resize((200, 200), Image.Resampling.BICUBIC)
        picture[top : top + 200, left : left + 200] *= 1 - 0.8 * np.asarray(strokes, float) / 255
    picture *= np.linspace(1, 0.75, 1000)
    picture[:, :50] = 0.2
    picture = np.clip(picture + rng.normal(0, 0.01, picture.shape), 0, 1)
    return Image.fromarray(np.round(255 * picture).astype(np.uint8)), places


def encoded(image, kind="png", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_photograph_with_three_digits(page, trained, examples, rng):
    picture, places = photograph(rng, examples)
    digits = trained.find_digits(np.asarray(picture))
    labels, probabilities = trained.predict(np.stack([digit.image for digit in digits]))
    text, seen, found = give(page, ("three.png", encoded(picture)))
    assert text == "3 digits: " + " ".join(map(str, labels))
    np.testing.assert_allclose(seen, digits[0].image, atol=1e-5)
    np.testing.assert_allclose(found, probabilities[0], atol=1e-5)
    boxes = page.locator(".box")
    assert boxes.locator(".name").all_text_contents() == [str(label) for label in labels]
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert violations(page) == ""
        assert page.evaluate("document.documentElement.scrollWidth") == width
        shown = page.locator(".photo canvas").bounding_box()
        assert shown["width"] / shown["height"] == pytest.approx(4 / 3, rel=0.01)
        assert shown["x"] > 0
        assert shown["x"] + shown["width"] < width
        for number, (top, left) in enumerate(places):
            box, scale = boxes.nth(number).bounding_box(), shown["width"] / 1000
            x, y = (box["x"] - shown["x"]) / scale, (box["y"] - shown["y"]) / scale
            assert left - 20 < x < x + box["width"] / scale < left + 220
            assert top - 20 < y < y + box["height"] / scale < top + 220
    choose = (lambda box: box.click(), lambda box: box.press("Enter"))
    for number, act in zip((2, 1), choose, strict=True):
        act(boxes.nth(number))
        seen = page.evaluate("lstm.settled().then(({ seen }) => Array.from(seen))")
        np.testing.assert_allclose(np.reshape(seen, (28, 28)), digits[number].image, atol=1e-5)
        pressed = [box.get_attribute("aria-pressed") for box in boxes.all()]
        assert pressed == [str(n == number).lower() for n in range(3)]
        assert page.locator("#prediction").text_content() == str(labels[number])
        assert page.locator("#origin").text_content() == f"Digit {number + 1} of 3 on three.png"
    page.locator("#clear").click()
    assert page.locator("#pad").is_visible()
    assert page.locator(".box:visible").count() == 0
    assert page.locator("#found").text_content() == ""
    page.locator("#undo").click()
    assert boxes.count() == page.locator(".box:visible").count() == 3
    page.locator("#undo").click()  # to what was there before the picture
    assert page.locator("#pad").is_visible()
    with_minus = np.asarray(picture).copy()
    with_minus[420:438, 345:385] = 40
    [mark] = [mark for digit in trained.find_digits(with_minus) for mark in digit.marks]
    text, _, _ = give(page, ("minus.png", encoded(Image.fromarray(with_minus))))
    assert UNREAD in text
    drawn, shown = (page.locator(each).bounding_box() for each in (".mark", ".photo canvas"))
    for place, length, start, side in (("x", "width", mark[1], mark[3]), ("y", "height", mark[0], mark[2])):
        middle = (drawn[place] + drawn[length] / 2 - shown[place]) / shown[length]
        assert middle == pytest.approx(start + side / 2, abs=0.01)
    assert violations(page) == ""
    arrow = np.full((300, 400), 230, np.uint8)  # wide and unlike digits, but no two that touch
    arrow[148:154, 100:260] = 40
    for step in range(40):
        arrow[[148 - step, 153 + step], 256 - step : 264 - step] = 40
    [alone] = trained.find_digits(arrow)
    assert alone.warning == f"{UNLIKE}; {SIGN}"
    assert alone.warning in give(page, ("arrow.png", encoded(Image.fromarray(arrow))))[0]
    give(page, ("three.png", encoded(picture)))
    assert page.locator(".mark").count() == 0


@pytest.mark.slow
@pytest.mark.slow
def test_a_network_of_dark_digits_on_light_sees_such_images(open_page, trained, examples, rng):
    picture, _ = photograph(rng, examples)
    dark = trained.find_digits(np.asarray(picture))
    folder = replace(trained.folder, data=replace(trained.folder.data, is_light=True))
    run = replace(trained, folder=folder)
    for found, before in zip(run.find_digits(np.asarray(picture)), dark, strict=True):
        np.testing.assert_array_equal(found.image, 1 - before.image)
    np.testing.assert_array_equal(run.normalise([examples.images[0]]), 1 - trained.normalise([examples.images[0]]))
    plain = run.normalise([examples.images[0]], "plain")
    np.testing.assert_array_equal(plain, trained.normalise([examples.images[0]], "plain"))
    page = open_page(make_page(run))
    _, seen, _ = give(page, ("three.png", encoded(picture)))
    np.testing.assert_allclose(seen, 1 - dark[0].image, atol=1e-5)
    page.locator("#clear").click()
    draw(page, SEVEN)
    seen, *_ = reading_of(page)
    drawn = seen.reshape(28, 28)
    assert drawn[0].min() > 0.99
    assert drawn.min() < 0.1
    np.testing.assert_allclose(drawn, run.normalise([drawn])[0], atol=1e-5)  # it is in normal form


def test_pictures_that_are_turned_transparent_large_pasted_and_opened(page, examples, rng):
    picture, _ = photograph(rng, examples)
    text, upright, _ = give(page, ("three.png", encoded(picture)))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = encoded(picture.transpose(Image.Transpose.ROTATE_90), exif=turned)
    ink = np.zeros((750, 1000, 4), np.uint8)
    ink[..., 3] = np.where(np.asarray(picture) < 110, 255, 0)
    ink[:, :60] = 0
    large = picture.resize((4000, 3000), Image.Resampling.BICUBIC)
    for name, content in (
        ("lying.png", lying),
        ("black ink on nothing.png", encoded(Image.fromarray(ink))),
        ("white ink on nothing.png", encoded(Image.fromarray(ink | np.array([255, 255, 255, 0], np.uint8)))),
        ("large.jpg", encoded(large.convert("RGB"), "jpeg", quality=85)),
    ):
        assert give(page, (name, content), how="paste")[0] == text, name
    _, seen, _ = give(page, ("lying.png", lying))
    np.testing.assert_allclose(seen, upright, atol=1e-5)
    text_of_two, _, _ = give(page, ("notes.txt", b"notes", "text/plain"), ("three.png", encoded(picture), "image/png"))
    assert text_of_two == f"{text}. This is three.png; of 2 files, one is read."
    for chooser in ("#file", "#camera"):
        page.reload()
        page.locator(chooser).set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": encoded(picture)})
        page.evaluate("lstm.settled()")
        assert page.locator("#found").text_content() == text
    assert page.locator("#camera").get_attribute("capture") == "environment"


def test_files_without_digits_say_what_is_wrong(page):
    before = page.evaluate("lstm.settled().then(({ seen }) => Array.from(seen))")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for files, message in (
        ([("notes.txt", b"notes")], "notes.txt is no picture that this browser can decode. Choose a PNG, JPEG"),
        (
            [("cut.png", encoded(Image.new("L", (90, 90), 7))[:60])],
            "cut.png is no picture that this browser can decode",
        ),
        ([("IMG_1.HEIC", heic)], "IMG_1.HEIC is a HEIC picture, which this browser cannot decode. Save it as JPEG"),
        ([("none.png", b"")], "none.png is empty. Choose another file."),
        (
            [("white.png", encoded(Image.new("L", (300, 200), 250)))],
            "Nothing can be seen on white.png. It is of one colour",
        ),
        ([], "What was dropped is no file. Save the picture"),
    ):
        text, seen, _ = give(page, *files)
        assert text.startswith(message)
        np.testing.assert_array_equal(seen.ravel(), np.array(before, np.float32))
        assert page.locator(".box:visible").count() == 0
    assert violations(page) == ""
    clear(page)
    assert page.locator("#found").text_content() == ""
