"""The methods in the paper's short words: plain, SI (spectral initialization), FD (Frobenius decay), SI & FD."""

from collections.abc import Mapping
from typing import Any

PLAIN = "plain"
"""Factorized, random start, L2 decay of the factors: what the others are compared with."""
ORDER = ("dense", PLAIN, "CRS", "SI", "FD", "SI & FD")
"""In which methods are shown; others follow."""

DEEP = "deep "
"""What the names of methods with a middle factor begin with."""
_STUDENT = ", student"
_FORMS = {"lin": "", "qk": "_quekey", "ov": "_outval"}  # of a Transformer, with the ends of their flags


def method_of(results: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the method of a run.

    Besides the words above: `dense`; `CRS` for decay scaled by the compression ratio; `no decay` and `imposed norms` of
    the normalization experiment, the second after another decay where the run has one; `deep` before what has a middle
    factor, `student` after what learns from a teacher; and in brackets the forms of a Transformer (linear layers,
    query-key and output-value products) where not all of them have it. Pruned networks have the name of the pruning.
    """
    if results["method"].startswith("pruned: "):
        return results["method"].removeprefix("pruned: ").removesuffix(", L2 decay")
    dense = results["method"].startswith("dense")
    start, decay = (_forms(arguments, switch, dense) for switch in ("spectral", "wd2fd"))
    words = [f"SI{start}"] if start is not None else []
    if arguments.get("no_frob"):
        words.append("imposed norms" if arguments.get("normalize") else "no decay")
    elif decay is not None:
        words.append(f"FD{decay}")
    elif "nocrswd" in arguments and not arguments["nocrswd"] and not dense:
        words.append("CRS")
    if arguments.get("normalize") and not arguments.get("no_frob"):
        words += [*(["L2"] if decay is None else []), "imposed norms"]
    text = " & ".join(words) or ("" if dense else PLAIN)
    if dense:
        text = f"dense, {text}" if text else "dense"
    elif arguments.get("square"):
        text = f"{DEEP}{text}"
    return f"{text}{_STUDENT}" if arguments.get("mode") == "student" else text


def is_student(method: str) -> bool:
    """Return whether a method is one of what learns from a teacher."""
    return method.endswith(_STUDENT)


def _forms(arguments: Mapping[str, Any], switch: str, dense: bool) -> str | None:
    """Return what follows the word for a switch: nothing, or the forms that have it; None if it is off."""
    there = [form for form, end in _FORMS.items() if f"{switch}{end}" in arguments and not (dense and form == "lin")]
    on = [form for form in there if arguments[f"{switch}{_FORMS[form]}"]]
    if not on:
        return None
    return "" if on == there else f" ({', '.join(on)})"


def start_of(method: str) -> str:
    """Return how the factors of a method start, in its own word; `dense` and `pruned` of those that have no factors."""
    if method.startswith("dense"):
        return "dense"
    first = method.removesuffix(_STUDENT).removeprefix(DEEP).partition(" & ")[0]
    if first.startswith("SI"):
        return first
    is_factorized = first.startswith((PLAIN, "CRS", "FD", "L2", "no decay", "imposed norms"))
    return "random start" if is_factorized else "pruned"


def is_of_normalization(method: str) -> bool:
    """Return whether a method is an arm of the normalization experiment other than Frobenius decay itself."""
    return "no decay" in method or "imposed norms" in method


def place(method: str) -> tuple[int, str]:
    """Return by what methods are sorted."""
    return (ORDER.index(method) if method in ORDER else len(ORDER), method)
