"""Pages in Chromium, offline. A test fails if the browser reports an error or a warning."""

import os
import shutil
from pathlib import Path

import pytest
from parameters import drawn

from lstm_mnist_jax import load, load_run
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.page import make_page
from lstm_mnist_jax.training.run_folder import DataFacts, RunFolder

NAMES = (os.environ.get("CHROME", ""), "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")
    executable = next(filter(None, map(shutil.which, filter(None, NAMES))), None)
    if executable is None:
        reason = "needs Chromium: install Debian's chromium, or say in $CHROME where a Chrome is"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """open_page(html, **options of a browser context) gives the page, opened as a file, offline; with window=, a page
    that was opened before, in its place."""
    contexts, errors, addresses = [], [], set()

    def opened(html: str, *, window=None, **options):
        path = tmp_path_factory.mktemp("page") / "page.html"
        path.write_text(html, "utf-8")
        addresses.add(path.as_uri())
        if window is not None:
            window.goto(path.as_uri())
            return window
        context = browser.new_context(**{"reduced_motion": "reduce", "offline": True} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)

        def check_request(request):
            if request.url not in addresses and not request.url.startswith("data:"):
                errors.append(f"the page asked for {request.url}")

        def check_message(message):
            if message.type in ("error", "warning"):
                errors.append(f"console: {message.text}")

        page.on("request", check_request)
        page.on("console", check_message)
        page.on("pageerror", lambda error: errors.append(f"error: {error}"))
        page.goto(path.as_uri())
        return page

    opened.errors, opened.contexts = errors, contexts
    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(autouse=True)
def no_browser_errors(request):
    """Fails the test whose page had an error, and closes the pages that it alone has opened."""
    if "open_page" not in request.fixturenames:
        yield
        return
    opened = request.getfixturevalue("open_page")
    shared = len(opened.contexts)
    yield
    while len(opened.contexts) > shared:
        opened.contexts.pop().close()
    found, opened.errors[:] = list(opened.errors), []
    assert found == []


@pytest.fixture(scope="module")
def phone(open_page):
    """A window as wide as a phone: to open one takes longer than to load another page in it."""
    return open_page("", viewport={"width": 360, "height": 800})


@pytest.fixture(scope="session")
def untrained():
    """untrained(config, image_shape, class_names) gives a run with drawn parameters."""

    def made(config: Config, image_shape=(28, 28), class_names=tuple("0123456789"), name="untrained") -> TrainedRun:
        params = drawn(config.model, image_shape, len(class_names))
        data = DataFacts("made up", image_shape, class_names, "")
        folder = RunFolder(Path(name), config, data, {})
        return TrainedRun(folder, 0, params, None)

    return made


@pytest.fixture(scope="session")
def examples():
    return load().test


@pytest.fixture(scope="session")
def trained(digits_run):
    return load_run(digits_run)


@pytest.fixture(scope="session")
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
