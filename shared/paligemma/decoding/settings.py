"""Decoding settings: greedy, sampling, best of several samples, or beam search; and what weights are read as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from paligemma.choices import DecodingWeights
from paligemma.errors import InputError, one_of

NO_EOS = -1
"""An `eos_id` that matches no token, to decode the full length."""


@dataclass(frozen=True)
class DecodeSettings:
    """Decoding settings. Each combination of values compiles once, whatever the seed.

    Attributes:
        max_new_tokens: maximum tokens of an answer, including eos.
        temperature: 0 takes the most likely token; otherwise logits are divided by it and a token is drawn.
        top_k: draw only among this many most likely tokens; 0 for all.
        top_p: draw only among the fewest most likely tokens whose probabilities reach this sum; 1 for all.
        best_of: number of samples per prompt; the most likely sample is the answer.
        beams: number of sequences that a beam search keeps; 1 turns beam search off.
        seed: seed of the samples.
        weights: `int8` and `nf4` quantize weights while the model is loaded; `stored` leaves them as they are.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    best_of: int = 1
    beams: int = 1
    seed: int = 0
    weights: DecodingWeights = "stored"

    def __post_init__(self) -> None:
        for name, value, fine, expected in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("best_of", self.best_of, self.best_of >= 1, "at least 1"),
            ("beams", self.beams, self.beams >= 1, "at least 1"),
            ("seed", self.seed, 0 <= self.seed < 1 << 32, "0 or more, and less than 2^32"),
        ):
            if not fine:
                raise InputError(f"{name} is {value}.", expected=expected)
        one_of(self.weights, get_args(DecodingWeights), "weights")
        if self.beams > 1 and (self.temperature or self.best_of > 1):
            raise InputError("A beam search draws no samples.", fix="set beams to 1, or leave temperature and best_of alone")
        if not self.temperature and (self.best_of > 1 or self.top_k or self.top_p < 1):
            raise InputError("top_k, top_p and best_of need samples.", fix="set a temperature above 0")

    @property
    def loaded_as(self) -> str | None:
        """The `dtype` with which a model is loaded for these settings; see `paligemma.load`."""
        return None if self.weights == "stored" else self.weights
