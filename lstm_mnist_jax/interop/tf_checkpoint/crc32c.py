"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, at some hundred megabytes a second in NumPy alone."""

from functools import cache

import numpy as np

POLYNOMIAL = np.uint32(0x82F63B78)  # reflected: RFC 3720, appendix B.4

MASK_DELTA = 0xA282EAD8
"""TensorFlow stores rotated checksums plus this, so that a checksum of data with checksums in it is still good."""


def masked_crc32c(data: bytes) -> int:
    """The checksum of `data` as TensorFlow stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`, 0 to 2^32 - 1.

    A CRC is linear over GF(2). Long data are cut into 2^k lanes of 2^l bytes, which go through the table together;
    then neighbours are joined, k times: the left one is moved on by the length of the right one, and added.
    """
    if len(data) < 64:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(TABLE[(crc ^ byte) & 0xFF]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    bits = (len(data) - 1).bit_length()
    length = 1 << bits // 2
    lanes = -(-len(data) // length)
    lanes = 1 << (lanes - 1).bit_length()
    padded = np.zeros(lanes * length, np.uint8)  # zeros in front of the data change nothing
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 0xFF  # the same as to begin with a register of ones
    columns = np.ascontiguousarray(padded.reshape(lanes, length).T)
    crcs: np.ndarray = np.zeros(lanes, np.uint32)
    for column in columns:
        crcs = TABLE[(crcs ^ column) & 0xFF] ^ crcs >> np.uint32(8)
    doublings = bits // 2
    while len(crcs) > 1:
        crcs = _apply(_zeros_matrix(doublings), crcs[::2]) ^ crcs[1::2]
        doublings += 1
    return int(crcs[0]) ^ 0xFFFFFFFF


def _make_table() -> np.ndarray:
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * POLYNOMIAL
    return table


@cache
def _zeros_matrix(doublings: int) -> np.ndarray:
    """What 2^doublings zero bytes do to a register, as a matrix over GF(2): element b is what becomes of bit b."""
    if doublings:
        half = _zeros_matrix(doublings - 1)
        return _apply(half, half)
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return TABLE[bits & 0xFF] ^ bits >> 8


def _apply(matrix: np.ndarray, registers: np.ndarray) -> np.ndarray:
    moved = np.zeros_like(registers)
    for bit in range(32):
        moved ^= (registers >> np.uint32(bit) & 1) * matrix[bit]
    return moved


TABLE = _make_table()
