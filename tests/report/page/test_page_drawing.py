"""Drawing on the page with mouse, finger and keyboard; predictions against JAX."""

import itertools
import re

import numpy as np
import pytest
from pad import FOUR, SEVEN, clear, draw, prediction, reading_of

from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.report.page import make_page


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
            for share in np.linspace(0.25, 1, 4):
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
    page.clock.install()  # goes on as the real one, and can be put forward
    position, play = page.locator("#position"), page.locator("#play")
    expect(position).to_have_value("28")  # at the beginning an example with its result
    expect(play).to_have_text("Play")
    page.get_by_role("button", name="0", exact=True).click()
    expect(play).to_have_text("Pause")
    expect(position).to_have_value(re.compile(r"^1?\d$"))
    play.click()
    stopped = position.input_value()
    page.clock.run_for(300)
    assert position.input_value() == stopped != "28"
    play.click()
    page.clock.fast_forward(3_600)
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

    page.clock.install()
    draw(page, SEVEN)
    reading_of(page)
    page.clock.fast_forward(1_000)
    status = page.locator("#spoken[role=status]")
    assert page.locator("output").get_attribute("aria-live") == "off"  # it changes at each step of a replay
    expect(status).to_have_text(re.compile("^Prediction: 7, "))
    page.locator("#clear").click()
    page.clock.fast_forward(1_000)
    expect(status).to_have_text("The pad is empty.")


SLOW = {
    "many steps": ModelConfig("permuted", cell="ur_lstm", hidden_features=(96, 96)),
    "both ways": ModelConfig("pixels", hidden_features=(16,), bidirectional=True, pooling="mean"),
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
    draw(page, [[(0.5, 0.2), (0.5, 0.8)]])  # a new input cancels the run
    clear(page)
    assert prediction(page) == "?"
