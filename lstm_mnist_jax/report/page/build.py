"""The assembly of the page: the files beside this one, a trained run's weights, examples and pictures in one HTML file.

Everything that comes from data (names of classes, of the run, of facts) is text: escaped in the HTML, and in the
JSON, which no word of it can end. A content security policy forbids the page every connection, and every script but
its own, by hash.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.model import describe_layers, task_of
from lstm_mnist_jax.report.files import themed_svg
from lstm_mnist_jax.report.page import description
from lstm_mnist_jax.report.style import Picture
from lstm_mnist_jax.training.run_folder import write_atomically
from lstm_mnist_jax.version import __version__

SCRIPTS = (
    "network.js",
    "normal_form.js",
    "pixels.js",
    "pad.js",
    "bars.js",
    "reading.js",
    "reader.js",
    "main.js",
)
"""In the order in which they stand in the page, as one module."""

MNIST_CREDIT = "MNIST's images are by Yann LeCun and Corinna Cortes, under CC BY-SA 3.0. "


def write_page(
    path: Path | str,
    run: TrainedRun,
    pictures: Sequence[Picture] = (),
    facts: Iterable[tuple[str, str]] = (),
    examples: Examples | None = None,
) -> None:
    """Writes the page of a run, whole or not at all; a file of this name is replaced.

    Args:
      path: the file; its folder is made.
      run, pictures, facts, examples: see `make_page`.

    Raises:
      RunError: it cannot be written, or see `make_page`.
    """
    path = Path(path).expanduser()
    page = make_page(run, pictures, facts, examples)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error


def make_page(
    run: TrainedRun,
    pictures: Sequence[Picture] = (),
    facts: Iterable[tuple[str, str]] = (),
    examples: Examples | None = None,
) -> str:
    """The page of a run, as the text of an HTML file that needs no other.

    Args:
      run: its network answers on the page.
      pictures: shown below, in this order.
      facts: (name, value), in plain text: what is to be said of the run.
      examples: images of the run's data to click on: one of each class, rightly read if any is, and some misread.

    Raises:
      RunError: the run's parameters are not finite numbers; its training diverged.
      DataError: the examples are of another shape than the run's images.
    """
    script = "\n".join(_asset(name) for name in SCRIPTS)
    height, width, *_ = run.folder.data.image_shape
    spec, weights = description.network(run)
    chosen = [] if examples is None else description.choose_examples(run, examples)
    data = {
        "network": spec,
        "image": {"height": height, "width": width, "channels": spec["channels"], "form": run.form},
        "step": description.step_names(run),
        "examples": chosen,
    }
    texts = _texts(run, len(weights))
    texts["credit"] = MNIST_CREDIT if run.folder.config.data.source == "mnist" and (chosen or pictures) else ""
    blocks = {
        "facts": _facts(facts),
        "pictures": _pictures(pictures),
        "icon": f"data:image/svg+xml;base64,{_base64(_asset('icon.svg').encode())}",
        "style": _asset("page.css"),
        "script": script,
        "script_hash": _base64(hashlib.sha256(f"\n{script}\n".encode()).digest()),
        "weights": _base64(weights.tobytes()),
        "data": _json(data),
    }
    escaped = {name: html.escape(text) for name, text in texts.items()}
    return Template(_asset("page.html")).substitute(escaped | blocks)


def _texts(run: TrainedRun, parameters: int) -> dict[str, str]:
    """What page.html has names for, as plain text."""
    config, step = run.folder.config.model, description.step_names(run)
    layers = describe_layers(config).replace("->", "→")
    sequence = task_of(config).describe(run.folder.data.image_shape)
    name = run.folder.path.absolute().name
    what = "a digit" if run.form == "digit" else "a picture"
    return {
        "title": f"Draw {what}: {name}",
        "what": what,
        "run": name,
        "network": f"{sequence} → {layers} → {len(run.class_names)} classes, {parameters:,} parameters",
        "version": __version__,
        "step": step["one"],
        "Step": step["one"].capitalize(),
        "steps": step["many"],
        "Steps": step["many"].capitalize(),
        "Where": "Above" if step["sideways"] else "Left",
    }


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8").strip("\n")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(data: object) -> str:
    """JSON that can stand in a <script>: in ASCII, and nothing in it is markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = [f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts]
    return _section("facts", "The run", '<dl class="facts">', *rows, "</dl>") if rows else ""


def _pictures(pictures: Sequence[Picture]) -> str:
    return _section("pictures", "What it came to", *map(_figure, pictures)) if pictures else ""


def _figure(picture: Picture) -> str:
    """A picture; where it is wider than the screen, it is moved within its frame, by keys too."""
    title = html.escape(picture.title)
    frame = f'<div class="frame" tabindex="0" role="group" aria-label="{title}, picture">'
    drawn = themed_svg(picture.figure, f"picture-{picture.name}", picture.title)
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    return "\n".join(['<figure class="picture">', f"<h3>{title}</h3>", frame, drawn, "</div>", caption, "</figure>"])


def _section(name: str, heading: str, *lines: str) -> str:
    """A part of the page; the lines are HTML."""
    return "\n".join([f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{heading}</h2>', *lines, "</section>"])
