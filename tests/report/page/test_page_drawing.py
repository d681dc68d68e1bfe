"""Drawing on the page with mouse, finger and keyboard; pictures dropped on it; predictions against JAX."""

import base64
import io
import itertools
import json
import re

import numpy as np
import pytest
from accessibility import violations
from PIL import Image

from lstm_mnist_jax import load, load_run
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.report.page import make_page
from lstm_mnist_jax.report.page.build import novelty_of

SEVEN = [[(0.3, 0.2), (0.7, 0.2), (0.62, 0.4), (0.45, 0.85)]]
FOUR = [[(0.35, 0.15), (0.3, 0.5), (0.7, 0.5)], [(0.62, 0.2), (0.6, 0.9)]]


@pytest.fixture(scope="module")
def examples():
    return load().test


@pytest.fixture(scope="module")
def trained(digits_run):
    return load_run(digits_run)


@pytest.fixture(scope="module")
def html(trained, examples):
    return make_page(trained, examples=examples)


@pytest.fixture(scope="module")
def window(open_page, html):
    return open_page(html)


@pytest.fixture
def page(window):
    """The page as it is at first, loaded anew: to open a window for each test takes most of its time."""
    window.goto(window.url)
    return window


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


def test_warnings_match_python(page, trained, examples, rng):
    """The scores of digits, of noise, and of ink as wide as two digits; and the text beside a drawing."""
    wide = np.zeros((28, 28), np.uint8)
    wide[10:18, 4:24] = rng.integers(0, 256, (8, 20))
    images = np.stack([*examples.images[:20], wide, *rng.integers(0, 256, (3, 28, 28), np.uint8)])
    pixels = (images.reshape(len(images), -1) / 255).tolist()
    found = page.evaluate("(all) => all.map((pixels) => [lstm.noveltyOf(pixels), lstm.unlikeTraining(pixels)])", pixels)
    np.testing.assert_allclose([score for score, _ in found], trained.novelty.scores(images), rtol=1e-4)
    assert len(json.dumps(novelty_of(trained))) < 42_000
    warnings = trained.warnings(images)
    assert [text for _, text in found] == warnings
    assert {None, trained.pair, "this looks unlike the training images"} == {*warnings}
    clear(page)
    assert page.locator("#warning").text_content() == ""
    draw(page, [[(0.3, height), (0.7, height)] for height in np.linspace(0.3, 0.7, 7)])  # a square
    seen, _, _ = reading_of(page)
    [warning] = trained.warnings(seen.reshape(1, 28, 28))
    assert warning is not None
    assert page.locator("#warning").text_content() == f"Warning: {warning}."


def prediction(page):
    return page.locator("#prediction").text_content()


def clear(page):
    page.locator("#clear").click()
    assert reading_of(page) is None


@pytest.mark.parametrize(("strokes", "digit"), [(SEVEN, "7"), pytest.param(FOUR, "4", marks=pytest.mark.slow)])
def test_predictions_for_strokes_match_jax(strokes, digit, page, trained):
    draw(page, strokes)
    seen, _, found = reading_of(page)
    image = seen.reshape(1, 28, 28).astype(np.float32)
    _, probabilities = trained.predict(image)
    np.testing.assert_allclose(found[-1], probabilities[0], atol=1e-5)
    np.testing.assert_allclose(found, trained.read_along(image)[0], atol=1e-5)
    assert prediction(page) == digit
    rows, columns = (np.flatnonzero((image[0] > 0.05).any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (20, 21)  # MNIST's normal form


@pytest.mark.slow
def test_predictions_for_examples_match_jax(page, trained, examples):
    chosen = np.concatenate([np.flatnonzero(examples.labels == label)[:2] for label in range(10)])
    images = examples.images[chosen]
    labels, probabilities = trained.predict(images)
    along = trained.read_along(images)
    for n, image in enumerate(images):
        page.evaluate("pixels => lstm.show(pixels)", (image.ravel() / 255).tolist())
        seen, stops, found = reading_of(page)
        np.testing.assert_allclose(seen, image.ravel() / 255)
        np.testing.assert_allclose(found[-1], probabilities[n], atol=1e-5)
        np.testing.assert_allclose(found, along[n], atol=1e-5)
        assert stops.tolist() == list(range(1, 29))
        assert prediction(page) == str(labels[n])
    assert (trained.predict(examples.images)[0] == examples.labels).mean() > 0.9


@pytest.mark.slow
def test_undo_and_clear(page):
    clear(page)
    draw(page, SEVEN)
    seven, *_ = reading_of(page)
    draw(page, FOUR[1:])
    both, *_ = reading_of(page)
    assert not np.array_equal(seven, both)
    page.locator("#undo").click()
    np.testing.assert_array_equal(reading_of(page)[0], seven)
    clear(page)
    assert page.locator("#clear").is_disabled()
    assert page.locator("#play").is_disabled()
    page.keyboard.press("Control+z")  # clearing is undone too
    np.testing.assert_array_equal(reading_of(page)[0], seven)


@pytest.mark.slow
def test_a_dot_is_drawn(page):
    clear(page)
    draw(page, [[(0.5, 0.5), (0.5, 0.5)]])
    seen, *_ = reading_of(page)
    assert seen.max() == 1


@pytest.mark.slow
def test_the_keyboard_draws(page):
    clear(page)
    page.locator("#pad").focus()
    page.keyboard.press("ArrowUp")  # moves only
    assert reading_of(page) is None
    page.keyboard.down("Shift")
    for _ in range(10):
        page.keyboard.press("ArrowDown")
    page.keyboard.up("Shift")
    seen, *_ = reading_of(page)
    rows, columns = (np.flatnonzero((seen.reshape(28, 28) > 0.3).any(axis=axis)) for axis in (1, 0))
    assert len(rows) == 20 > 2 * len(columns)  # a line down
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    two, *_ = reading_of(page)
    assert not np.array_equal(two, seen)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(reading_of(page)[0], seen)
    page.keyboard.press("Delete")
    assert reading_of(page) is None


@pytest.mark.slow
def test_a_finger_draws_and_does_not_scroll(open_page, html, trained):
    page = open_page(html, has_touch=True, is_mobile=True, viewport={"width": 360, "height": 700})
    box = page.locator("#pad").bounding_box()
    devtools = page.context.new_cdp_session(page)

    def touch(kind, *point):
        points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in point]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for stroke in SEVEN:
        touch("touchStart", stroke[0])
        for start, end in itertools.pairwise(stroke):
            for share in np.linspace(0.1, 1, 10):
                touch("touchMove", tuple((1 - share) * a + share * b for a, b in zip(start, end, strict=True)))
        touch("touchEnd")
    seen, _, found = reading_of(page)
    np.testing.assert_allclose(found[-1], trained.predict(seen.reshape(1, 28, 28).astype(np.float32))[1][0], atol=1e-5)
    assert prediction(page) == "7"
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_drawing_on_an_example(page, trained, examples):
    guesses, _ = trained.predict(examples.images)
    wrong = np.flatnonzero(guesses != examples.labels)
    for label in range(10):  # the first correctly classified one of each digit
        first = np.flatnonzero((examples.labels == label) & (guesses == label))[0]
        page.get_by_role("button", name=str(label), exact=True).click()
        seen, *_ = reading_of(page)
        np.testing.assert_allclose(seen, examples.images[first].ravel() / 255)
        assert page.locator("#origin").text_content() == f"An example: {label}"
    draw(page, [[(0.1, 0.1), (0.2, 0.1)]])
    over, *_ = reading_of(page)
    assert (over >= seen - 1e-12).all()
    assert over.reshape(28, 28)[1:4, 3:6].min() > 0.5
    misread = page.locator("#misclassified button")
    assert 1 <= misread.count() <= 4
    misread.first.click()
    shown = np.round(255 * reading_of(page)[0]).reshape(28, 28)
    assert any(np.array_equal(shown, image) for image in examples.images[wrong[:4]])


@pytest.mark.slow
def test_undo_and_clear_during_a_stroke(page):
    clear(page)
    box = page.locator("#pad").bounding_box()
    clicked = "button => button.click()"
    for take_back in (lambda: page.keyboard.press("Control+z"), lambda: page.locator("#clear").evaluate(clicked)):
        page.mouse.move(box["x"] + 30, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 60, steps=3)
        take_back()
        page.mouse.move(box["x"] + 90, box["y"] + 60, steps=3)
        page.mouse.up()
        assert reading_of(page) is None
    draw(page, SEVEN)
    assert reading_of(page) is not None


@pytest.mark.slow
def test_the_first_stroke_replaces_the_example_at_the_beginning(page):
    assert reading_of(page) is not None
    assert page.locator("#invitation").is_visible()
    draw(page, SEVEN)
    seen, *_ = reading_of(page)
    assert not page.locator("#invitation").is_visible()
    clear(page)
    draw(page, SEVEN)
    np.testing.assert_array_equal(reading_of(page)[0], seen)


def test_the_slider_shows_the_prediction_after_so_many_rows(page, trained, examples):
    page.get_by_role("button", name="7", exact=True).click()
    _, _, found = reading_of(page)
    slider = page.get_by_label("Rows read")
    assert slider.input_value() == "28"
    slider.fill("9")
    leader = int(found[8].argmax())
    assert prediction(page) == str(leader)
    assert page.locator("#when").text_content() == "After 9 of 28 rows"
    assert slider.get_attribute("aria-valuetext").startswith(f"9 of 28 rows: {leader}, ")
    assert page.locator(".bar.leads .name").text_content() == str(leader)
    width = page.locator(".bar.leads .fill").evaluate("bar => parseFloat(bar.style.width)")
    assert width == pytest.approx(100 * found[8].max(), abs=0.01)
    turns = 1 + np.count_nonzero(np.diff(found.argmax(axis=1)))
    story = page.locator("#story").text_content()
    assert turns == 1 or {2: "once", 3: "2 times"}.get(turns, f"{turns - 1} times") in story
    box = page.locator("#lanes").bounding_box()
    page.mouse.click(box["x"] + 5, box["y"] + 3.5 / 28 * box["height"])
    assert slider.input_value() == "4"


@pytest.mark.slow
def test_play_and_pause(open_page, html):
    from playwright.sync_api import expect

    page = open_page(html, reduced_motion="no-preference")
    position, play = page.locator("#position"), page.locator("#play")
    expect(position).to_have_value("28")  # at the beginning an example with its result
    expect(play).to_have_text("Play")
    page.get_by_role("button", name="0", exact=True).click()
    expect(play).to_have_text("Pause")
    expect(position).to_have_value(re.compile(r"^1?\d$"))
    play.click()
    stopped = position.input_value()
    page.wait_for_timeout(300)
    assert position.input_value() == stopped != "28"
    play.click()
    expect(position).to_have_value("28")
    expect(play).to_have_text("Play")


@pytest.mark.slow
def test_no_animation_with_reduced_motion(page):
    page.get_by_role("button", name="0", exact=True).click()
    reading_of(page)
    assert page.locator("#position").input_value() == "28"
    assert page.locator("#play").text_content() == "Play"


@pytest.mark.slow
def test_screen_readers_get_the_prediction_after_a_stroke(page):
    from playwright.sync_api import expect

    draw(page, SEVEN)
    status = page.locator("#spoken[role=status]")
    assert page.locator("output").get_attribute("aria-live") == "off"  # it changes at each step of a replay
    expect(status).to_have_text(re.compile("^Prediction: 7, "))
    page.locator("#clear").click()
    expect(status).to_have_text("The pad is empty.")


SLOW = {
    "many steps": ModelConfig("permuted", cell="ur_lstm", hidden_features=(128, 128)),
    "both ways": ModelConfig("pixels", hidden_features=(32,), bidirectional=True, pooling="mean"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_page_responds_while_a_slow_network_runs(name, open_page, untrained):
    run = untrained(Config(model=SLOW[name]))
    page = open_page(make_page(run))
    draw(page, SEVEN)
    turns = page.evaluate(
        """async () => {
          let [turns, waits] = [0, true];
          lstm.settled().then(() => (waits = false));
          while (waits) {
            await new Promise((resolve) => setTimeout(resolve));
            turns++;
          }
          return turns;
        }"""
    )
    assert turns >= 5  # in which the page could respond
    seen, stops, found = reading_of(page)
    _, probabilities = run.predict(seen.reshape(1, 28, 28).astype(np.float32))
    np.testing.assert_allclose(found[-1], probabilities[0], atol=1e-5)
    assert len(stops) == (28 if name == "both ways" else 784)
    draw(page, SEVEN)  # a new input cancels the run
    clear(page)
    assert prediction(page) == "?"


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


@pytest.mark.slow
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
