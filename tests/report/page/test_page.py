"""The page: its contents, hostile names, other data, narrow screens, accessibility (axe)."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from accessibility import violations

from lstm_mnist_jax import load
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.errors import DataError, RunError
from lstm_mnist_jax.report.page import make_page, write_page
from lstm_mnist_jax.report.page.build import choose_examples
from lstm_mnist_jax.report.style import Picture, new_figure

HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "<!--<script>",
    "\u2028\u2029'\"`${document.title='taken'}",
    "&lt;b&gt; $weights ${style}",
    "a very long name of a class that fits into no lane and no column of any phone",
    "数字の七",
)
FACTS = [("accuracy on the test set", "98.58 % (95 % confidence interval 98.33 to 98.80)"), ("preset", "tutorial")]


def picture(name="loss"):
    with new_figure(3.0) as figure:
        axes = figure.subplots()
        axes.plot([3, 2, 1], label="train")
        axes.imshow(np.zeros((4, 4)), extent=(0, 1, 0, 1))
        axes.set_xlabel("epoch")
        axes.legend()
    return Picture(name, f"Loss {HOSTILE[0]}", f"It falls from 3 to 1. {HOSTILE[1]}", figure)


def examples(rng, shape, classes, count=40):
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return Examples(images, (np.arange(count) % classes).astype(np.int32), classes)


@pytest.fixture(scope="module")
def whole_page(untrained):
    pictures = [picture(), picture("accuracy")]
    return make_page(untrained(Config(), name="runs/first"), pictures, FACTS, load().test[:500])


class Links(HTMLParser):
    """The links of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]


def overflow_of(frame):
    return frame.evaluate("frame => frame.scrollWidth - frame.clientWidth")


def width_of(page):
    return page.evaluate("document.documentElement.scrollWidth")


@pytest.mark.slow
def test_accessibility_and_width(whole_page, open_page):
    page = open_page(whole_page)

    def check():
        for scheme, width in (("light", 360), ("light", 1280), ("dark", 360)):  # the wide page has no other colours
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
            page.set_viewport_size({"width": width, "height": 800})
            assert page.locator(".enlarge").first.is_visible() == (width == 360)
            overflows = [overflow_of(frame) for frame in page.locator(".picture:not(.enlarged) .frame").all()]
            assert overflows
            assert not any(overflows)  # no figure is cut off
            assert violations(page) == ""
            assert width_of(page) == width

    check()
    page.locator("#position").fill("9")
    for summary in page.locator(".keys summary").all():
        summary.click()
    check()
    page.locator("#clear").click()
    page.wait_for_timeout(100)
    page.set_viewport_size({"width": 360, "height": 800})
    page.locator(".enlarge").first.click()
    assert overflow_of(page.locator(".enlarged .frame")) > 200  # scrolls
    check()


def test_facts_and_figures(whole_page, open_page, phone):
    page = open_page(whole_page, window=phone)
    assert page.title() == "Draw a digit: first"
    assert page.locator(".facts dt").all_text_contents() == [name for name, _ in FACTS]
    assert page.locator(".facts dd").all_text_contents() == [value for _, value in FACTS]
    assert page.locator(".picture").count() == 2
    assert page.locator(".picture svg image").first.get_attribute("xlink:href").startswith("data:image/png")
    assert page.locator("figcaption").first.text_content() == f"It falls from 3 to 1. {HOSTILE[1]}"
    assert "33,290 parameters" in page.locator(".network").text_content()
    assert page.locator("html").get_attribute("lang") == "en"
    assert "CC BY-SA 3.0" in page.locator("footer").text_content()


def test_the_page_is_small_and_loads_nothing(whole_page, untrained):
    assert len(whole_page.encode()) < 400_000
    assert len(make_page(untrained(Config()))) < 305_000  # 62 kB of it find and judge digits, 10 kB show photographs
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', whole_page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy  # default-src forbids it
    links = Links()
    links.feed(whole_page)
    assert links.found
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "@import" not in whole_page
    assert set(re.findall(r"url\(.", whole_page)) == {"url(#"}
    assert "CC BY-SA" not in make_page(untrained(Config()))  # no image of MNIST is in it


def test_a_page_without_figures_and_facts_has_no_empty_headings(untrained, open_page):
    page = open_page(make_page(untrained(Config())))
    assert page.locator("h2:visible").all_text_contents() == ["Drawing", "Prediction", "Row by row"]
    assert page.locator("#prediction").text_content() == "?"
    assert page.locator("#invitation").is_visible()
    assert violations(page) == ""


def test_names_with_markup_are_shown_as_text(untrained, open_page, phone, rng):
    run = untrained(Config(), (6, 5), HOSTILE, name="runs/<script>document.title='taken'</script>")
    html = make_page(run, facts=[(HOSTILE[0], HOSTILE[1])], examples=examples(rng, (6, 5), len(HOSTILE)))
    page = open_page(html, window=phone)
    assert page.title() == f"Draw a picture: {run.folder.path.name}"
    assert page.locator(".bar .name").all_text_contents() == list(HOSTILE)
    assert page.locator(".head").all_text_contents() == list(HOSTILE)
    assert page.locator(".facts dd").text_content() == HOSTILE[1]
    assert page.locator("body > script").count() == 3
    assert page.locator("img").count() == 0
    assert width_of(page) == 360
    assert violations(page) == ""


@pytest.mark.slow
def test_a_predicted_class_of_any_name_fits_a_narrow_screen(untrained, open_page, phone, rng):
    run = untrained(Config(), (6, 5), HOSTILE)
    images = examples(rng, (6, 5), len(HOSTILE))
    for label, name in list(enumerate(HOSTILE))[-3:]:
        run.params["dense"]["bias"] = np.float32(50 * (np.arange(len(HOSTILE)) == label))
        page = open_page(make_page(run, examples=images), window=phone)
        assert page.locator("#prediction").text_content() == name
        assert width_of(page) == 360


OTHERS = {
    "clothes": (Config(model=ModelConfig(hidden_features=(8,))), (28, 28), ("T-shirt/top", "Trouser", "Ankle boot")),
    "colours": (Config(model=ModelConfig(hidden_features=(8,), pooling="mean")), (32, 32, 3), ("airplane", "dog")),
    "columns": (Config(model=ModelConfig("columns", hidden_features=(8,))), (28, 28), tuple("0123456789")),
    "letters": (Config(model=ModelConfig(hidden_features=(8,))), (28, 28), tuple("abcdefghijklmnopqrstuvwxyz")),
    "one class": (Config(model=ModelConfig(hidden_features=(8,))), (9, 14), ("all",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_drawing_for_other_data(name, untrained, open_page, phone, rng):
    config, shape, classes = OTHERS[name]
    run = untrained(config, shape, classes)
    page = open_page(make_page(run, examples=examples(rng, shape, len(classes))), window=phone)
    assert violations(page) == ""
    assert width_of(page) == 360
    if page.locator("#clear").is_enabled():  # an example
        page.locator("#clear").click()
    box = page.locator("#pad").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(shape[1] / shape[0], rel=0.02)
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.3 * box["height"], steps=5)
    page.mouse.up()
    seen, found = page.evaluate(
        "lstm.settled().then(({ seen, found }) => [Array.from(seen), Array.from(found.at(-1))])"
    )
    image = np.array(seen, np.float32).reshape(1, *shape)
    np.testing.assert_allclose(found, run.predict(image)[1][0], atol=1e-5)
    assert page.locator("#prediction").text_content() == classes[int(np.argmax(found))]
    assert page.locator(".bar").count() == page.locator(".head").count() == min(len(classes), 10)
    if name != "columns":  # here the input is the pad as it is
        rows = np.flatnonzero(image[0].reshape(*shape[:2], -1).max(axis=(1, 2)) > 0.5)
        assert abs(rows.mean() + 0.5 - 0.3 * shape[0]) < 1


def test_the_page_is_written_atomically(untrained, tmp_path):
    run = untrained(Config(model=ModelConfig(hidden_features=(4,))))
    write_page(tmp_path / "new" / "report.html", run)
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == make_page(run)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    with pytest.raises(RunError, match=r"new cannot be written: .*irectory"):
        write_page(tmp_path / "new", run)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_examples_of_other_data_are_refused(untrained, rng):
    with pytest.raises(DataError, match=r"\[n, 28, 28\] were expected"):
        make_page(untrained(Config()), examples=examples(rng, (6, 5), 10))


def test_correctly_classified_examples_are_chosen_first(untrained, rng):
    run = untrained(Config())
    images = rng.integers(0, 256, (400, 1, 1), np.uint8) * (rng.random((400, 28, 28)) < 0.3)
    run.params["dense"]["bias"] -= np.log(run.predict(images)[1]).mean(axis=0)  # so that predictions differ
    guesses, _ = run.predict(images)
    one, other = np.argsort(np.bincount(guesses, minlength=10))[-2:]
    unseen = min({0, 1, 2} - {one, other})
    images = images[[np.flatnonzero(guesses == prediction)[0] for prediction in (one, other, one)]]
    chosen = choose_examples(run, Examples(images, np.array([other, other, unseen], np.int32), 10))
    found = {(example["label"], example["prediction"]) for example in chosen[:2]}
    assert found == {(other, other), (unseen, one)}
    assert [(example["label"], example["prediction"]) for example in chosen[2:]] == [(other, one)]
