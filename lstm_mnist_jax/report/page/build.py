"""The page: the files beside this one, and a run's weights, examples and figures, in one HTML file.

All text that comes from data (names of classes, runs, facts) is escaped in the HTML and in the JSON. A content security
policy forbids the page every connection, and every script but its own, by hash.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import jax
import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax import __version__
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.errors import RunError, os_errors_as
from lstm_mnist_jax.inference import UNLIKE, TrainedRun, classify
from lstm_mnist_jax.model import Params, describe_layers, task_of
from lstm_mnist_jax.report.style import INK, Picture, file_bytes
from lstm_mnist_jax.training.run_folder import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPTS = (
    "network.js",
    "ink.js",
    "signs.js",
    "digits.js",
    "normal_form.js",
    "novelty.js",
    "pad.js",
    "bars.js",
    "reading.js",
    "reader.js",
    "photo.js",
    "main.js",
)
"""In the order in which they stand in the page, as one module."""

COMMENTS = re.compile(r"^ *(//.*|/\*\*(.|\n)*?\*/)\n", re.MULTILINE)
"""Comments with lines of their own, which the page is without: they are a tenth of the scripts."""

MNIST_CREDIT = "MNIST's images are by Yann LeCun and Corinna Cortes, under CC BY-SA 3.0. "

MAX_EXAMPLES = 20
"""Examples are shown of at most so many classes."""

MISCLASSIFIED_EXAMPLES = 4
"""Further examples, which are misclassified."""

SEARCHED = 10_000
"""Images among which examples are chosen."""

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

DARK_GREY = r"#([0-5][0-9a-f])\1\1"
"""Black and dark greys, which are drawn in the page's text colour, like ink."""


def write_page(
    path: Path | str,
    run: TrainedRun,
    pictures: Sequence[Picture] = (),
    facts: Iterable[tuple[str, str]] = (),
    examples: Examples | None = None,
) -> None:
    """Writes the page of a run atomically. A file of this name is replaced.

    Args:
      path: the file; its folder is made.
      run, pictures, facts, examples: see `make_page`.

    Raises:
      RunError: it cannot be written, or see `make_page`.
    """
    path = Path(path).expanduser()
    page = make_page(run, pictures, facts, examples)
    with os_errors_as(RunError, path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)


def make_page(
    run: TrainedRun,
    pictures: Sequence[Picture] = (),
    facts: Iterable[tuple[str, str]] = (),
    examples: Examples | None = None,
) -> str:
    """The page of a run, as the text of an HTML file that needs no other file, no network and no server.

    Args:
      run: the page contains its network.
      pictures: figures, shown in this order.
      facts: (name, value) of plain text, such as ("accuracy", "98.58 %").
      examples: labelled images of the run's data, such as `load().test`. Shown are one of each class, a correctly
        classified one if there is any, and some misclassified ones.

    Raises:
      RunError: a weight of the run is not finite: the training diverged.
      DataError: the examples have another shape than the run's images.
    """
    script = "\n".join(COMMENTS.sub("", _asset(name)).strip("\n") for name in SCRIPTS)
    model, shape = run.folder.config.model, run.folder.data.image_shape
    spec, weights = describe(model, run.params, shape, run.class_names)
    if not np.isfinite(weights).all():
        raise RunError(
            f"The weights of {run.folder.path} are not finite: its training diverged. Show another run, or another "
            "checkpoint of this one."
        )
    step: dict[str, Any] = {"one": run.step_name, "many": f"{run.step_name}s", "sideways": model.task == "columns"}
    chosen = [] if examples is None else choose_examples(run, examples)
    data = {
        "network": spec,
        "image": {
            "height": shape[0],
            "width": shape[1],
            "channels": spec["channels"],
            "form": run.form,
            "isLight": run.folder.data.is_light,
        },
        "step": step,
        "examples": chosen,
        "novelty": novelty_of(run),
    }
    name, what = run.folder.path.absolute().name, "a digit" if run.form == "digit" else "a picture"
    layers = f"{task_of(model).describe(shape)} → {describe_layers(model).replace('->', '→')}"
    texts = {
        "title": f"Draw {what}: {name}",
        "what": what,
        "run": name,
        "network": f"{layers} → {len(run.class_names)} classes, {len(weights):,} parameters",
        "version": __version__,
        "step": step["one"],
        "Step": step["one"].capitalize(),
        "steps": step["many"],
        "Steps": step["many"].capitalize(),
        "Where": "Above" if step["sideways"] else "On the left",
        "credit": MNIST_CREDIT if run.folder.config.data.source == "mnist" and (chosen or pictures) else "",
    }
    rows = [f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts]
    blocks = {
        "facts": _section("facts", "The run", '<dl class="facts">', *rows, "</dl>") if rows else "",
        "pictures": _section("pictures", "Results", *map(_figure, pictures)) if pictures else "",
        "icon": f"data:image/svg+xml;base64,{_base64(_asset('icon.svg').encode())}",
        "style": _asset("page.css"),
        "script": script,
        "script_hash": _base64(hashlib.sha256(f"\n{script}\n".encode()).digest()),
        "weights": _base64(weights.tobytes()),
        "data": _json(data),
    }
    escaped = {name: html.escape(text) for name, text in texts.items()}
    return Template(_asset("page.html")).substitute(escaped | blocks)


def describe(
    config: ModelConfig, params: Params, image_shape: tuple[int, ...], class_names: tuple[str, ...]
) -> tuple[dict[str, Any], Float32[np.ndarray, " parameters"]]:
    """A network for network.js, and its weights one after another.

    Args:
      config, params: as for `model.apply`.
      image_shape: (height, width) or (height, width, channels).
      class_names: a name for each class.
    """
    height, width, *channels = image_shape
    task = task_of(config)
    order = np.asarray(task.read(np.arange(height * width).reshape(1, height, width))).ravel()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = [(jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)) for path, leaf in leaves]
    spec = {
        "cell": config.cell,
        "layers": len(config.hidden_features),
        "bidirectional": config.bidirectional,
        "pooling": config.pooling,
        "activation": config.activation,
        "recurrentActivation": config.recurrent_activation,
        "dense": len(config.dense_features),
        "denseActivation": config.dense_activation,
        "steps": task.shape(image_shape)[0],
        "order": None if (order == np.arange(order.size)).all() else order.tolist(),
        "channels": channels[0] if channels else 1,
        "classes": list(class_names),
        "parameters": [[name, array.size] for name, array in arrays],
    }
    return spec, np.concatenate([array.ravel() for _, array in arrays]).astype("<f4")


def novelty_of(run: TrainedRun) -> dict[str, Any] | None:
    """What the run's training images look like, for novelty.js, with the texts of the warnings; None if it is not
    known. It takes about 40 kB."""
    if run.novelty is None:
        return None
    arrays = ("mean", "components", "component_steps", "class_means", "whitening", "whitening_steps", "left_weights")
    return {name: _base64(np.ascontiguousarray(getattr(run.novelty, name)).tobytes()) for name in arrays} | {
        "threshold": float(run.novelty.threshold),
        "pair_threshold": float(run.novelty.pair_threshold),
        "wide": float(run.novelty.wide),
        "unlike": UNLIKE,
        "pair": run.pair if run.form == "digit" else None,
    }


def choose_examples(run: TrainedRun, examples: Examples) -> list[dict[str, Any]]:
    """Chooses examples: the first of each class, a correctly classified one if there is any; some misclassified ones.

    Returns:
      Of each its true label, its predicted label, and its pixels: uint8, as base64.

    Raises:
      DataError: the images have another shape than the run's.
    """
    images, labels = examples.images[:SEARCHED], examples.labels[:SEARCHED]
    predictions, _ = classify(run, images)
    right_first = np.argsort(predictions != labels, kind="stable")
    _, firsts = np.unique(labels[right_first], return_index=True)
    firsts = right_first[firsts][:MAX_EXAMPLES]
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[~np.isin(wrong, firsts)][:MISCLASSIFIED_EXAMPLES]
    return [
        {"label": int(labels[n]), "prediction": int(predictions[n]), "pixels": _base64(images[n].tobytes())}
        for n in [*firsts, *wrong]
    ]


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8").strip("\n")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(data: object) -> str:
    """JSON for a <script>: ASCII, without markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(name: str, heading: str, *lines: str) -> str:
    """A part of the page; the lines are HTML."""
    return "\n".join([f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{heading}</h2>', *lines, "</section>"])


def _figure(picture: Picture) -> str:
    """A figure that fits the screen. On a narrow one a button enlarges it, and its frame scrolls, by keys too."""
    title = html.escape(picture.title)
    return f"""<figure class="picture">
<div class="heading">
<h3>{title}</h3>
<button type="button" class="enlarge" aria-pressed="false" aria-label="Enlarge: {title}" hidden>Enlarge</button>
</div>
<div class="frame" tabindex="0" role="group" aria-label="{title}, picture">
{themed_svg(picture.figure, f"picture-{picture.name}", picture.title)}
</div>
<figcaption>{html.escape(picture.caption)}</figcaption>
</figure>"""


def themed_svg(figure: "Figure", prefix: str, label: str = "") -> str:
    """A figure as an <svg> element for HTML, which takes its text colour and font from the page.

    Its background is transparent, and ink, black and dark grey become `currentColor`. It has a viewBox and no size: it
    is as wide as its place. Text stays text.

    Args:
      figure: of matplotlib, made within `styled`.
      prefix: of all ids, so that several figures fit into one page: letters, digits and hyphens.
      label: for screen readers. Without one, the element has no role.
    """
    root = ElementTree.fromstring(file_bytes(figure, "svg", transparent=True))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    # What the <style> sets, for this element alone; and black, which matplotlib leaves out as SVG's default.
    root.set("style", "stroke-linejoin: round; fill: currentColor")
    for element in root.iter():
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name, value in element.attrib.items():
            element.set(name, _themed(name, value, prefix))
    if label:
        root.set("role", "img")
        root.set("aria-label", label)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(name: str, value: str, prefix: str) -> str:
    """The value of an attribute in a page."""
    if name == "id":
        return f"{prefix}-{value}"
    if name in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in ("d", "x", "y", "transform"):  # to a hundredth of a point: half the size
        return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if name in ("style", "fill", "stroke", "color"):
        value = re.sub(f"{INK}|{DARK_GREY}", "currentColor", value, flags=re.IGNORECASE)
        value = re.sub(r"font-family:[^;]*", "font-family: inherit", value)
        # The shorthand "font: bold 10px 'DejaVu Sans', sans-serif" resets everything else.
        value = re.sub(r"(?<![-\w])font:\s*(bold|\d+)\s+([\d.]+px)[^;]*", r"font-weight: \1; font: \2", value)
        value = re.sub(r"(?<![-\w])font:\s*([\d.]+px)[^;]*", r"font-size: \1; font-family: inherit", value)
    return value
