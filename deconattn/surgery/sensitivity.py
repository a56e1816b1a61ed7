"""The table layer x variant: one pass over the activations, and at each layer every variant in the layer's place."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import nn

from deconattn.analysis.losses import token_losses
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.surgery.activations import Activations
from deconattn.surgery.fitting import FitSettings, Targets, error, fit
from deconattn.surgery.folder import Cell, Heads, Own, SearchFolder
from deconattn.surgery.heads import HeadSplice, has_heads
from deconattn.surgery.request import Request
from deconattn.surgery.subject import Subject


class Stopped(Exception):
    """A stop was asked for."""


class View(Protocol):
    """Observer of the work."""

    def began(self, words: str) -> None:
        """Told of what is done between cells."""

    def ended(self, words: str, found: Cell | Heads, own: Own) -> None:
        """Told of a cell, or of a cell's heads, that has been measured or has failed."""


def losses_from(activations: Activations, mixers: Mapping[int, nn.Module], names: Mapping[int, str]) -> list[float]:
    """Return the mean loss of each sequence, nats a token, run on from where they are with these mixers.

    Args:
        names: the variants of `mixers`; all are of layers that are still to come.
    """
    subject = activations.subject
    part = subject.with_mixers(mixers, names, range(activations.layer, subject.depth))
    found: list[float] = []
    for rows in activations.batches():
        hidden = activations.finished(part, rows)
        found += token_losses(subject.head, hidden, activations.ids[rows]).mean(dim=1).tolist()
    return found


def measure_own(subject: Subject, folder: SearchFolder) -> Own:
    """Return the losses of the model itself, measured where they are not there yet.

    Raises:
        UserError: one is no finite number.
    """
    own = folder.own()
    if own is None:
        both = (subject.held_out, subject.tested)
        held_out, tested = (losses_from(Activations(subject, ids), {}, {}) for ids in both)
        own = Own(held_out, tested)
        if not all(map(math.isfinite, held_out + tested)):
            raise UserError(f"{subject.label}: its loss on the text is no finite number: give another model")
        folder.record_own(own)
    return own


class Sensitivity:
    """Fits and measures the cells of some layers.

    Args:
        layers: from 0, those of a shard, which follow each other.
        stop: asked before each batch.
    """

    def __init__(
        self,
        subject: Subject,
        request: Request,
        folder: SearchFolder,
        own: Own,
        layers: range,
        view: View,
        stop: Callable[[], bool],
    ) -> None:
        self.subject, self.request, self.folder, self.own = subject, request, folder, own
        self.layers, self.view, self.stop = layers, view, stop
        self.settings = FitSettings(request.fit_steps, request.fit_batch, request.fit_lr, request.seed)

    def run(self) -> None:
        """Measure what is missing (raises Stopped where that is asked for)."""
        wanted = [layer for layer in self.layers if self.missing(layer)]
        if not wanted:
            return
        fitted, held_out = (Activations(self.subject, ids) for ids in (self.subject.fit, self.subject.held_out))
        for layer in range(wanted[-1] + 1):
            if layer in wanted:
                self._layer(fitted, held_out)
            else:
                self.view.began(f"passing layer {layer + 1} of {self.subject.depth}")
            if layer < wanted[-1]:
                for activations in (fitted, held_out):
                    activations.advance(self._check)

    def missing(self, layer: int) -> list[tuple[str, bool]]:
        """Return what is still to be measured in a layer's place: variants, and whether it is their heads."""
        found: list[tuple[str, bool]] = []
        for variant in variants_for(self.subject, self.request, layer):
            if self.folder.cell(layer, variant) is None:
                found.append((variant, False))
            heads = self.request.heads and has_heads(self.subject.mixer(layer), self.subject.config, variant)
            if heads and self.folder.heads(layer, variant) is None:
                found.append((variant, True))
        return found

    def count(self) -> int:
        """Return how many cells there are in all in these layers, measured or not, heads beside them."""
        config, found = self.subject.config, 0
        for layer in self.layers:
            for variant in variants_for(self.subject, self.request, layer):
                found += 1 + (self.request.heads and has_heads(self.subject.mixer(layer), config, variant))
        return found

    def _layer(self, fitted: Activations, held_out: Activations) -> None:
        layer, targets, wanted = fitted.layer, Targets.of(fitted), Targets.of(held_out)
        for variant, heads in self.missing(layer):
            name = f"layer {layer + 1} {variant}"
            began = time.monotonic()
            try:
                mixer = self.subject.fresh_mixer(layer, variant, self.request.seed)
                if heads:
                    losses = self._heads(variant, HeadSplice(self.subject.mixer(layer), mixer), fitted, held_out)
                    by_head = Heads(losses, _since(began))
                else:
                    fit(mixer, fitted, targets, self.settings, self._check)
                    whole = self._finite(losses_from(held_out, {layer: mixer}, {layer: variant}))
                    cell = Cell(whole, error(mixer, held_out, wanted), _since(began))
            except Stopped:
                raise
            except Exception as fault:  # whatever a mixer of somebody else's does: it is told with the results
                why = f"{type(fault).__name__}: {reason(fault)}"
                cell, by_head = Cell(None, None, _since(began), why), Heads(None, _since(began), why)
            if heads:
                self.folder.record_heads(layer, variant, by_head)
                self.view.ended(f"{name}, heads", by_head, self.own)
            else:
                self.folder.record(layer, variant, cell, mixer.state_dict() if cell.losses else None)
                self.view.ended(name, cell, self.own)

    def _heads(self, variant: str, splice: HeadSplice, fitted: Activations, held_out: Activations) -> list[list[float]]:
        """Return the losses with each head replaced by itself."""
        splice.fit(fitted, self.settings, self._check)
        found: list[list[float]] = []
        for splice.head in range(self.subject.config.num_attention_heads):
            self._check()
            found.append(self._finite(losses_from(held_out, {held_out.layer: splice}, {held_out.layer: variant})))
        return found

    def _finite(self, losses: list[float]) -> list[float]:
        if not all(map(math.isfinite, losses)):
            raise ArithmeticError("the loss with it is no finite number")
        return losses

    def _check(self) -> None:
        if self.stop():
            raise Stopped


def variants_for(subject: Subject, request: Request, layer: int) -> list[str]:
    """Return the variants that can stand in a layer's place: all but its own."""
    return [variant for variant in request.variants if variant != subject.config.layer_variants[layer]]


def share_of(depth: int, number: int, count: int) -> range:
    """Return the layers, from 0, of the `number`-th of `count` shards: as many for each, and those follow each other.

    Each shard passes the layers before its own without measuring them.
    """
    return range(depth * (number - 1) // count, depth * number // count)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)
