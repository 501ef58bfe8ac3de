"""One training step after another, and validation."""

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lab import checkpoint
from lab.cli import UserError
from lab.devices import Computing

from .batches import Batch
from .criterion import label_smoothed_cross_entropy
from .meter import Loss, Meter, check_finite
from .optimization import Optimization
from .positions import PAD
from .schedule import Schedule
from .transformer import Transformer

_READ_EVERY = 50  # updates between two looks at the loss, which may not be finite


class Trainer:
    """A model and all that changes as it is trained.

    Args:
        model: on the device already.
        smoothing: share of label smoothing.
        clip_norm: largest gradient norm; 0 or less for any.
        seed: of dropout, together with the number of the update and the process.

    Attributes:
        updates: made so far.
        meter: sums over the present epoch; replace it by a new one for the next.
    """

    def __init__(
        self,
        model: Transformer,
        optimization: Optimization,
        schedule: Schedule,
        computing: Computing,
        *,
        smoothing: float = 0.0,
        clip_norm: float = 0.0,
        seed: int = 0,
    ):
        self.model, self.schedule, self.computing = model, schedule, computing
        self.optimizer, self.decay = optimization.optimizer, optimization.decay
        self.smoothing, self.clip_norm, self.seed = smoothing, clip_norm, seed
        # Not `computing.wrap`: gradients are summed over processes, not averaged, and shares may be empty.
        self._network = torch.compile(model, dynamic=True) if computing.compile else model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.updates = 0
        self.meter = Meter(computing)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.schedule.rate

    def step(self, batches: Sequence[Batch], *, tokens: int, sentences: int, samples: int) -> None:
        """Make one update from this process's share of the batches of all processes, which may be none.

        The gradient is that of the loss summed over all processes and divided by `samples`. Decay is added, then the
        norm clipped. A share that does not fit into memory is left out.

        Args:
            tokens, sentences: of the batches of all processes.
            samples: what the gradient is divided by: one of the two.

        Raises:
            RunError: if losses or gradients are not finite; that is looked at from time to time.
        """
        self.model.train()
        # Every update has random numbers of its own, so that a continued run needs no generator's state.
        place = self.updates * self.computing.world_size + self.computing.rank
        mixed = numpy.random.SeedSequence(self.seed, spawn_key=(place,))
        torch.manual_seed(mixed.generate_state(1, numpy.uint64).item())
        self.optimizer.zero_grad()
        sums = torch.zeros_like(self.meter.sums)
        try:
            for batch in batches:
                found = self._backward(batch, samples)
                sums[:2] += found[:2]
                sums[5] += found[2]
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad()
            sums.zero_()[2] = 1
        if self.computing.world_size > 1:
            self._sum_gradients()
        elif self._parameters[0].grad is None:
            self.meter.sums += sums
            return
        self.computing.scaler.unscale_(self.optimizer)
        self.decay.add_gradients()
        norm = get_total_norm([p.grad for p in self._parameters])
        if self.clip_norm > 0:
            sums[4] = norm > self.clip_norm
            clip_grads_with_norm_(self._parameters, self.clip_norm, norm)
        # A scaler makes no update where its scale was too large, so such a norm means nothing.
        sums[3] = norm.nan_to_num(0, 0) if self.computing.scaler.is_enabled() else norm
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.computing.scaler.step(self.optimizer)
        self.computing.scaler.update()
        self.updates += 1
        self.schedule.after_update(self.updates)
        self.meter.add(sums, tokens=tokens, sentences=sentences, samples=samples)
        if self.updates % _READ_EVERY == 0:
            self.meter.read(f"update {self.updates}")

    def practice(self, share: Sequence[Batch], samples: int) -> None:
        """Do a forward and a backward pass, but no update."""
        self.model.train()
        for batch in share:
            self._backward(batch, samples)

    def _backward(self, batch: Batch, samples: int) -> Tensor:
        """Add the gradient of the loss over `samples`; return what `_losses` does."""
        loss, nll, right = self._losses(self._network, batch)
        self.computing.scaler.scale(loss / samples).backward()
        return torch.stack([loss.detach(), nll, right])

    def _losses(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss, negative log-likelihood, tokens that no symbol is likelier than), summed over target tokens."""
        positions = batch.target.flatten().ne(PAD).nonzero()[:, 0]  # found before the move: a GPU would have to wait
        gold = batch.target.flatten()[positions]
        device = self.computing.device
        inputs = (t.to(device, non_blocking=True) for t in (batch.source, batch.decoder_input, positions))
        with self.computing.autocast():
            logits = network(*inputs)
        gold = gold.to(device, non_blocking=True)
        loss, nll = label_smoothed_cross_entropy(logits, gold, self.smoothing)
        scores = logits.detach()  # a maximum takes a fraction of the time of an argmax
        right = scores.amax(1) == scores.gather(1, gold[:, None])[:, 0]
        return loss, nll, right.sum().to(nll.dtype)

    def _sum_gradients(self) -> None:
        """Sum the gradients over all processes, in one message."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for p, part in zip(self._parameters, flat.split([g.numel() for g in gradients])):
            p.grad = part.view_as(p)

    def rehearse(self, share: Sequence[Batch], *, tokens: int, sentences: int, samples: int) -> None:
        """Make a first update and take it back, so that what fails in one fails before a run has a folder.

        The arguments are those of `step`.

        Raises:
            UserError: if the loss is not finite after it.
        """
        before, schedule = copy.deepcopy(self.state_dict()), copy.deepcopy(self.schedule)
        self.step(share, tokens=tokens, sentences=sentences, samples=samples)
        if self.updates:  # else it did not fit into memory
            loss = self._evaluate(share, tokens, samples).loss
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} after one update; lower --lr {self.lr:g}")
        self.meter, self.schedule = Meter(self.computing), schedule  # whose rate no state restores before an update
        self.load_state_dict(before)

    def state_dict(self) -> dict:
        """Return all that an exact continuation needs; all processes take part."""
        progress = {"updates": self.updates, "schedule": self.schedule.state_dict(), "meter": self.meter.state_dict()}
        return checkpoint.training_state(self.model, self.optimizer, self.computing, **progress)

    def load_state_dict(self, state: dict, source: Path = Path()) -> None:
        """Go on from `state_dict`, with the number of the `epoch` in it if that is not the first.

        Args:
            source: the file it comes from, for messages.

        Raises:
            UserError: if it belongs to another model or optimizer.
        """
        checkpoint.restore_training(state, self.model, self.optimizer, self.computing, source)
        self.updates = state["updates"]
        self.schedule.load_state_dict(state["schedule"])
        if state.get("epoch", 1) > 1:
            self.schedule.after_epoch(state["epoch"] - 1, None)
        if self.updates:
            self.schedule.after_update(self.updates)
        self.meter.load_state_dict(state["meter"])

    def evaluate(self, batches: Iterable[Batch], tokens: int, samples: int) -> Loss:
        """Return the averages over the batches of all processes, without dropout.

        Not compiled: that would take as long as compiling the training step, for a small part of the work.

        Args:
            batches: this process's share.
            tokens, samples: of all, the latter what the loss is divided by.

        Raises:
            RunError: if the loss is not finite.
        """
        loss = self._evaluate(batches, tokens, samples)
        check_finite("validation loss", loss.loss)
        return loss

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Batch], tokens: int, samples: int) -> Loss:
        self.model.eval()
        sums = self.meter.sums.new_zeros(3)
        for batch in batches:
            sums += torch.stack(self._losses(self.model, batch))
        loss, nll, right = self.computing.sum(sums).tolist()
        return Loss(loss / samples / math.log(2), nll / tokens / math.log(2), accuracy=100 * right / tokens)
