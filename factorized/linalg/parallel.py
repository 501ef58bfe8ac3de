"""Many independent computations at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def for_each(call: Callable[[Item], object], items: Sequence[Item], on_gpu: bool) -> None:
    """Call `call(item)` for every item, without recording gradients, several at a time.

    As many as PyTorch has threads, which they share: a decomposition is a sequence of many short operations, which
    threads cannot split as well as they split a number of decompositions. One at a time on a GPU, which that fills.
    """
    threads = torch.get_num_threads()
    workers = 1 if on_gpu else min(threads, len(items))
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad  # every thread has its own

    def isolated(item: Item) -> None:
        with mode():
            call(item)

    if workers <= 1:
        for item in items:
            isolated(item)
        return
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            list(pool.map(isolated, items))
    finally:
        torch.set_num_threads(threads)  # of threads that are yet to come; this one's number has not changed
