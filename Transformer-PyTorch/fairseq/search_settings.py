"""How translations are searched for, or drawn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Raises:
        ValueError: for values that leave nothing to search for, and for settings of sampling without it.
    """

    beam: int = 5
    """Hypotheses that are kept for each sentence."""
    early_stop: bool = True
    """Whether a sentence is done when `beam` hypotheses have ended, or only when no better one can follow."""
    normalize: bool = True
    """Whether scores are divided by length ** lenpen."""
    lenpen: float = 1.0
    unkpen: float = 0.0
    """What is subtracted from the log-probability of an unknown word."""
    min_len: int = 1
    """Least words of a translation, without the end, where the greatest length allows them."""
    temperature: float = 1.0
    """What logits are divided by: below 1 likely words become likelier. Scores are those of the new probabilities."""
    sampling: bool = False
    """Draw `beam` translations from the model's distribution instead of searching for the best."""
    topk: int | None = None
    """Draw every word from this many, the likeliest."""
    topp: float | None = None
    """Draw every word from the likeliest words, as few as have this probability together."""

    def __post_init__(self):
        if self.beam < 1 or self.lenpen < 0 or self.min_len < 1:
            least = f"{self.beam}, {self.min_len} and {self.lenpen}"
            raise ValueError(f"beam and min_len must be at least 1 and lenpen at least 0, not {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if self.topk is not None and self.topk < 1 or self.topp is not None and not 0 < self.topp <= 1:
            raise ValueError(f"topk must be at least 1, and topp from 0 to 1, not {self.topk} and {self.topp}")
        if not self.sampling and (self.topk or self.topp):
            raise ValueError("topk and topp need sampling")
