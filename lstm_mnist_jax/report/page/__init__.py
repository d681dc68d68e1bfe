"""A trained run as one HTML file: draw a picture, and see the prediction after each row."""

from lstm_mnist_jax.report.page.build import make_page, write_page

__all__ = ["make_page", "write_page"]
