"""Chance that belongs to a row: a hash of where it stands, which says to which split it goes and whether it is sampled.

A row's hash is a pure function of the seed, the number of its file and its place in that file, so that any process can
tell it of any row without having seen the others.
"""

import hashlib

import numpy as np

from nn_train.schema import SPLITS
from nn_train.settings import SplitConfig

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SPLIT_SALT, SAMPLE_SALT, FOLD_SALT = (np.uint64(number * int(GOLDEN) % 2**64) for number in (1, 2, 3))
TRAIN, VAL, TEST = range(len(SPLITS))


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64. Source: Steele, Lea and Flood 2014."""
    values = values + GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def row_hashes(*, seed: int, file_number: int, first_row: int, num_rows: int) -> np.ndarray:
    """Hashes of rows that follow one another in a file (B,) uint64."""
    key = mix(mix(np.array([seed], np.uint64)) + np.array([file_number], np.uint64))
    return mix(np.arange(first_row, first_row + num_rows, dtype=np.uint64) + key)


def text_hashes(texts: list[str], *, seed: int) -> np.ndarray:
    """Hashes of texts (B,) uint64, the same on every machine."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return mix(np.frombuffer(b"".join(digests), "<u8") + mix(np.array([seed], np.uint64)))


def shares(hashes: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Even chances in [0, 1) from hashes; another salt gives independent ones."""
    return (mix(hashes + salt) >> np.uint64(11)).astype(np.float64) / 2**53


def deal_splits(hashes: np.ndarray, config: SplitConfig) -> np.ndarray:
    """The split of each row as its place in SPLITS (B,) int8, by split.val and split.test or by split.folds."""
    chance = shares(hashes, SPLIT_SALT)
    if config.folds is None:
        is_val = chance < config.test + config.val
    else:
        is_val = (shares(hashes, FOLD_SALT) * config.folds).astype(np.int64) == config.fold
    dealt = np.where(is_val, VAL, TRAIN)
    return np.where(chance < config.test, TEST, dealt).astype(np.int8)
