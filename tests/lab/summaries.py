"""What a `results.json` of no real run begins with."""

from lab.record import Summary


def summary(**values) -> Summary:
    """Return a summary with these fields."""
    fields = {
        "study": "s", "network": "n", "data": "d", "method": "dense", "metric": "m", "best": 2.0, "final": 1.0,
        "epochs": 4, "seed": 0, "rank_scale": 0.0, "parameters": 5, "dense_parameters": 10, "decay_budget": None,
        "validation": "v",
    }  # fmt: skip
    return Summary(**{**fields, **values})
