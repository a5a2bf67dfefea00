"""The one loop of merging: statistics first, then chunk after chunk, in memory that does not depend on the models."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.fused import fused
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.ranks import BINS, NEIGHBOURS, SAMPLE, Cut, Ranking, exactly, needs_search
from polytask.merge.engine.rule import Cuts, Prepared, Products, Rule, Statistic
from polytask.merge.engine.source import Source

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 2**16
"""Elements of one model in a chunk: a row of it stays in the cache that a core has to itself."""

READ = 2**20
"""Elements of one model that are asked for at a time, to be cut into chunks: of a memory map they are views."""

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, less the whole numbers in them, are spread evenly over 0 to 1 and never repeat."""

BLOCK = 2**12
"""Elements whose products are added up at once, in the merge's precision: sums do not depend on how chunks are cut."""


Write = Callable[[str, int, Tensor], None]
"""Takes merged elements of a tensor, from the element with this number on. Chunks of a tensor come in order, in one thread;
several tensors may come at once."""


class Merge:
    """A merge of some tensors, all of which every model has in the same shape.

    Args:
        rule: for all tensors, or from a tensor's name to its own.
        models: what is merged.
        base: what the models were fine-tuned from, if any.
        shapes: of the tensors, by name; they are merged in this order, which must not depend on how files are laid out.
        dtype: of the arithmetic, float32 or float64.
        chunk: elements of one model that are merged at a time, at least `BLOCK`; it is rounded down to whole blocks.
        threads: tensors that are merged at once. The result does not depend on it. A cut of all tensors together that goes
            through equal values, of which the first count, has to see them in order: then it is one at a time.
        measured: of each model, for rules that need it.

    Raises:
        InputError: the rule cannot do with these models, or with what was measured of them. Nothing is read for it.
    """

    def __init__(
        self,
        rule: Rule | Callable[[str], Rule],
        models: Sequence[Source],
        base: Source | None,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype = torch.float32,
        chunk: int = CHUNK,
        threads: int = 1,
        measured: Measured | None = None,
    ) -> None:
        self.models, self.base, self.threads, self.measured = list(models), base, threads, measured
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.rules = {name: rule if isinstance(rule, Rule) else rule(name) for name in shapes}
        self.dtype = dtype
        self.size = max(chunk // BLOCK, 1) * BLOCK
        for each in set(map(type, self.rules.values())):
            self._check(each)
        self._check_measured()
        self._found: dict[str, Any] = {}
        self._room = threading.local()

    def _check(self, kind: type[Rule]) -> None:
        if kind.needs_base and self.base is None:
            raise InputError(f"{kind.__name__} works on task vectors: expected a base model")
        if kind.models is not None and kind.models != len(self.models):
            raise InputError(f"{kind.__name__} merges {kind.models} models, not {len(self.models)}")
        if kind.needs_measured and self.measured is None:
            raise InputError(f"{kind.__name__} needs what was measured of each model, and nothing was")

    def _check_measured(self) -> None:
        if self.measured is None:
            return
        using = {name for name, rule in self.rules.items() if rule.needs_measured}
        if self.rules and not using:
            kind = type(next(iter(self.rules.values()))).__name__
            raise InputError(f"{kind} needs nothing that was measured of models, expected none")
        self.measured.check(len(self.models), self.shapes)
        for name in sorted(self.measured.names & using):
            self.measured.check_shape(name, self.rules[name].measured_shape(name, self.shapes[name], self.measured))

    def memory(self) -> int:
        """About how many bytes it takes at its peak: chunks, histograms, and what rules hold beside them."""
        count, rules = len(self.models), self.rules.items()
        longest = max([min(self._step(name), math.prod(shape)) for name, shape in self.shapes.items()], default=0)
        chunks = max(4 * (count + 3) * self.size, (3 * count + 1) * longest) * self.dtype.itemsize
        ranked = any(isinstance(each, Cuts) for _, rule in rules for each in rule.statistics(count))
        beside = max([rule.beside(name, self.shapes[name], self.measured) for name, rule in rules], default=0)
        return self.threads * (chunks + beside + (3 * 8 * count * BINS if ranked else 0))

    def _step(self, name: str) -> int:
        return self.rules[name].step(name, self.shapes[name], self.size, self.measured)

    @torch.no_grad()
    def run(self, write: Write, only: Iterable[str] | None = None) -> None:
        """Merge all tensors, or ``only`` these: then statistics of all tensors together are still those of all."""
        self._whole_model()
        wanted = set(self.shapes if only is None else only)
        ties = any(cut.parts for cuts in self._found.values() for row in cuts for cut in row)
        if self.threads == 1 or ties:
            for name in self.shapes:
                if name in wanted:
                    self._merge(name, write)
                else:
                    self._pass_over(name)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            merging = [pool.submit(self._merge, name, write) for name in self.shapes if name in wanted]
            try:
                for one in merging:
                    one.result()
            finally:
                pool.shutdown(cancel_futures=True)

    @torch.no_grad()
    def _merge(self, name: str, write: Write) -> None:
        found = self._of_tensor(name)
        for chunk in self.chunks(name, found):
            merged = self.rules[name].merge(chunk)
            if not np.isfinite(merged.numpy()).all():
                raise InputError(f"tensor {name!r}: the merged values are not finite; {self._culprit(chunk)}")
            write(name, chunk.start, merged)

    def _pass_over(self, name: str) -> None:
        """Count the ties of a tensor that is not merged again: those that come after it have what it leaves of them."""
        for statistic in self.rules[name].statistics(len(self.models)):
            if not _of_model(statistic) or not any(cut.parts for row in self._found[statistic.name] for cut in row):
                continue
            for chunk in self.chunks(name, self._found):
                for row, cuts in zip(statistic.values(chunk), self._found[statistic.name], strict=True):
                    for cut in cuts:
                        cut.above(row if statistic.signed else row.abs())

    def chunks(self, name: str, found: Mapping[str, Any], again: bool = False) -> Iterator[Chunk]:
        """The tensor's pieces in order; where it is looked at ``again`` soon, its pages stay."""
        total, step = math.prod(self.shapes[name]), self._step(name)
        read = max(READ // step, 1) * step
        sources = self.models if self.base is None else [self.base, *self.models]
        for start in range(0, total, read):
            whole = [source.read(name, start, min(start + read, total)) for source in sources]
            for at in range(0, len(whole[0]), step):
                yield self._chunk(name, start + at, [values[at : at + step] for values in whole], found)
        for source in () if again else sources:
            source.release(name)
        if self.measured is not None and not again:
            self.measured.release(name)

    def _chunk(self, name: str, start: int, read: Sequence[Tensor], found: Mapping[str, Any]) -> Chunk:
        """The chunk of what was read, ``(n,)`` each: of the base, if there is one, and of each model."""
        count, size = len(self.models), len(read[0])
        needed = (2 * count + 1) * size
        room: Tensor = getattr(self._room, "numbers", torch.empty(0, dtype=self.dtype))
        if len(room) < needed:
            room = self._room.numbers = torch.empty(needed, dtype=self.dtype)
        room = room[:needed].view(-1, size)
        base = None if self.base is None else room[-1].copy_(read[0])
        for row, values in zip(room[:count], read[-count:], strict=True):
            if base is None or not self.rules[name].vectors:
                row.copy_(values)
            elif values.dtype == torch.bfloat16 and self.dtype == torch.float32:
                widened_less(values.view(torch.int16).numpy(), base.numpy(), row.numpy())
            else:
                row.copy_(values).sub_(base)
        return Chunk(name, self.shapes[name], start, base, room[:count], room[count : 2 * count], found, self.measured)

    def _culprit(self, chunk: Chunk) -> str:
        stop = chunk.start + chunk.rows.shape[1]
        sources = [*enumerate(self.models, 1), *([] if self.base is None else [("base", self.base)])]
        bad = [str(k) for k, model in sources if not bool(model.read(chunk.name, chunk.start, stop).isfinite().all())]
        return f"neither are those of model {', '.join(bad)}" if bad else "the models' are: the settings are too large"

    # Statistics

    def _whole_model(self) -> None:
        """The statistics of all tensors together."""
        self._found = {}
        wanted: dict[str, list[str]] = {}
        for name, rule in self.rules.items():
            for statistic in rule.statistics(len(self.models)):
                if _of_model(statistic):
                    wanted.setdefault(statistic.name, []).append(name)
        for key, names in wanted.items():
            cuts = [self._statistic(name, key) for name in names]
            total = sum(math.prod(self.shapes[name]) for name in names)
            counts = cuts[0].counts(total)
            if any(other.counts(total) != counts for other in cuts):
                raise InputError(f"{type(self.rules[names[0]]).__name__}: one cut for all tensors needs one setting for all")
            every = dict(zip(names, cuts, strict=True))
            sample = None
            if needs_search(counts, total):  # a larger sample than of one tensor: of so many, fewer may be left in doubt
                sample = torch.cat([self._sample(every[name], name, -(-total // 64)) for name in names], 1)
            ranking = Ranking(counts, total, sample, self.dtype, cuts[0].signed)

            def a_pass(every: Mapping[str, Cuts] = every) -> Iterator[Tensor]:
                for name, statistic in every.items():
                    for chunk in self.chunks(name, self._found):
                        yield statistic.values(chunk)

            self._found[key] = ranking.run(a_pass() for _ in iter(int, 1))

    def _statistic(self, name: str, key: str) -> Cuts:
        found = [s for s in self.rules[name].statistics(len(self.models)) if _of_model(s) and s.name == key]
        return found[0]

    def _of_tensor(self, name: str) -> dict[str, Any]:
        """The statistics of one tensor, with those of all tensors together."""
        found = dict(self._found)
        for statistic in self.rules[name].statistics(len(self.models)):
            if not _of_model(statistic):
                found[statistic.name] = self._find(statistic, name, found)
        return found

    def _find(self, statistic: Statistic, name: str, found: Mapping[str, Any]) -> Any:
        if isinstance(statistic, Products):
            return self._products(name)
        if isinstance(statistic, Prepared):
            assert self.measured is not None
            return statistic.make(self.measured, name)
        total = math.prod(self.shapes[name])
        counts = statistic.counts(total)
        if total <= self.size:
            values = [statistic.values(chunk).clone() for chunk in self.chunks(name, found, again=True)]
            each = zip(torch.cat(values, 1), counts, strict=True) if values else ()
            return [exactly(row, wanted, statistic.signed) for row, wanted in each]
        sample = self._sample(statistic, name, total, found) if needs_search(counts, total) else None
        ranking = Ranking(counts, total, sample, self.dtype, statistic.signed)
        return ranking.run((statistic.values(chunk) for chunk in self.chunks(name, found, again=True)) for _ in iter(int, 1))

    def _sample(self, statistic: Cuts, name: str, of: int, found: Mapping[str, Any] | None = None) -> Tensor:
        """Some values of a tensor: its share of those that are looked at of ``of`` values, in blocks from all over it."""
        total = math.prod(self.shapes[name])
        wanted = min(total, -(-SAMPLE * total // max(of, 1)))
        if not wanted:
            return torch.empty(len(self.models), 0, dtype=self.dtype)
        # Exactly so many: of each tensor a block less would make large tensors count for more than they are.
        blocks = -(-wanted // NEIGHBOURS)
        # At uneven distances: at even ones that fit a matrix's width, all would be of the same columns.
        places = [int((i + i * GOLDEN % 1) * (total // NEIGHBOURS) / blocks) for i in range(blocks)]
        whole = total - total % NEIGHBOURS
        by_read: dict[int, list[int]] = {}
        for place in places:
            start = place * NEIGHBOURS // READ * READ
            by_read.setdefault(start, []).append(place - start // NEIGHBOURS)

        def looked_at(source: Source) -> Tensor:
            if blocks * NEIGHBOURS > whole:
                return source.read(name, 0, wanted)
            found = []
            for start, here in by_read.items():
                read = source.read(name, start, min(start + READ, whole)).view(-1, NEIGHBOURS)
                found.append(read[here].view(-1))
            return torch.cat(found)[:wanted]

        read = list(map(looked_at, self.models if self.base is None else [self.base, *self.models]))
        chunk = self._chunk(name, 0, read, self._found if found is None else found)
        return statistic.values(chunk).clone()

    def _products(self, name: str) -> Tensor:
        count = len(self.models)
        # Python's own numbers: small tensors kept between large ones that come and go would leave holes in the heap.
        sums: dict[tuple[int, int], list[float]] = {(i, j): [] for i in range(count) for j in range(i + 1)}
        for chunk in self.chunks(name, {}, again=True):
            rows = chunk.rows
            if over := -rows.shape[1] % BLOCK:
                rows = torch.nn.functional.pad(rows, (0, over))
            blocks = rows.view(count, -1, 1, BLOCK).numpy()
            for (i, j), products in sums.items():
                products.extend((blocks[i] @ blocks[j].swapaxes(1, 2)).ravel().tolist())
        found = torch.empty(count, count, dtype=torch.float64)
        for (i, j), products in sums.items():
            found[i, j] = found[j, i] = math.fsum(products)
        return found


def _widened_less(bits: Array, base: Array, out: Array) -> None:
    torch.from_numpy(out).copy_(torch.from_numpy(bits).view(torch.bfloat16)).sub_(torch.from_numpy(base))


@fused(_widened_less, load=False)
def widened_less(bits: Array, base: Array, out: Array) -> None:
    """The numbers in bfloat16 that have these ``bits``, ``(n,)``, less those of ``base``, into ``out``, in float32."""
    narrow, wide = bits.view(np.uint16), out.view(np.uint32)
    for start in range(0, len(bits), 2048):  # a piece at a time, which stays in the cache
        stop = start + 2048
        few, whole, number, less = narrow[start:stop], wide[start:stop], out[start:stop], base[start:stop]
        for i in range(len(few)):
            whole[i] = np.uint32(few[i]) << np.uint32(16)
        for i in range(len(few)):
            number[i] -= less[i]


def _of_model(statistic: Statistic) -> TypeGuard[Cuts]:
    """Whether a statistic is of all tensors together."""
    return isinstance(statistic, Cuts) and statistic.scope == "model"


def cuts_of(chunk: Chunk, name: str) -> list[list[Cut]]:
    """What a `Cuts` statistic found, by model."""
    found: list[list[Cut]] = chunk.found[name]
    return found
