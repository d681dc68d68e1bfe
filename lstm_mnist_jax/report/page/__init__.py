"""A trained run as one HTML file: draw a digit, and watch the network change its mind while it reads.

    write_page(path, run, pictures=(), facts=(), examples=None)     # writes the file, whole or not at all
    make_page(run, pictures=(), facts=(), examples=None) -> str     # its text

`run` is an `inference.TrainedRun`, `pictures` are `report.contents.Picture`s, `facts` pairs (name, value) of plain
text such as ("accuracy on the test set", "98.58 % (95 % confidence interval 98.33 to 98.80)"), and `examples` are
labelled images to click on, such as `load().test`: of each class the first. The file needs no network and no server.
"""

from lstm_mnist_jax.report.page.build import make_page, write_page

__all__ = ["make_page", "write_page"]
