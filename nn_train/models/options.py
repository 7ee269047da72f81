"""What the networks read of their settings."""

from typing import Protocol


class Options(Protocol):
    """Settings of `ModelConfig`, by the same names, once `resolve_model` has put values in place of `auto`.

    Those that a network does not have are left as they are, and not read. A bundle has them without pydantic.
    """

    name: str
    embedding: str
    num_blocks: int
    width: int
    dropout: float
    num_members: int
    num_heads: int
    hidden_factor: float
    residual_dropout: float
    attention_dropout: float
    num_embedding: int
    num_frequencies: int
    frequency_scale: float
    one_hot_max: int
    embedding_dropout: float
