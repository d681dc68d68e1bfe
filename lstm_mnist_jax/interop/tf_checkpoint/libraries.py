"""The checksum and the compression of TensorFlow's files, by google-crc32c and cramjam of the extra `interop`."""

from lstm_mnist_jax.interop.files import require
from lstm_mnist_jax.interop.tf_checkpoint.wire import Malformed

MASK_DELTA = 0xA282EAD8
"""TensorFlow stores rotated checksums plus this, so that a checksum of data with checksums in it is still good."""

MAX_EXPANSION = 22
"""No element of Snappy's raw format makes more of its bytes: 64 of 3."""


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`, masked as TensorFlow stores it.

    Raises:
      WeightsError: google-crc32c is not installed.
    """
    crc = require("google_crc32c").value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def decompress_snappy(data: bytes) -> bytes:
    """Decompresses Snappy's raw format.

    Raises:
      Malformed: the data are damaged.
      WeightsError: cramjam is not installed.
    """
    cramjam = require("cramjam")
    try:
        size = cramjam.snappy.decompress_raw_len(data)
        if size > MAX_EXPANSION * len(data):  # before that much memory is taken
            raise Malformed(f"{len(data)} compressed bytes cannot hold {size}")
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise Malformed(str(error)) from error
