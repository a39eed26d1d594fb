"""Which order of a weight's input channels loses least to 2:4, and which order makes a shuffled pattern valid again.

Source of the idea: Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021. The search here exchanges columns
between two groups of four at a time, in the best of all 35 ways, for as long as any two groups gain by it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from gpusq_deploy.numerics import GROUP, KEPT
from gpusq_deploy.sparsity.pruning.torch_threads import one_thread

_PAIR = 2 * GROUP
_ROWS = 4096
# Values of one piece of work: its scratch is 56 times this.
_PIECE = 1 << 16
# A gain below this share of a pair's value is rounding; chasing it need not end.
_NOISE = 1e-6
# Multiply-adds that one column's search for its three companions may cost: at first, and where that found none.
_COMPANIONS = (3e7, 1e9)
_EDGES = 4096

_COLUMNS = tuple(itertools.combinations(range(_PAIR), 2))
_PLACE = {pair: place for place, pair in enumerate(_COLUMNS)}
_QUADS = tuple(itertools.combinations(range(_PAIR), GROUP))
_SPLITS = tuple((quad, tuple(sorted({*range(_PAIR)} - {*quad}))) for quad in _QUADS if 0 in quad)
_OF_QUAD: dict[tuple[int, ...], int] = {quad: place for place, quad in enumerate(_QUADS)}
# By split: its two quads, and its eight columns in their new order.
_FIRST, _SECOND = (torch.tensor([_OF_QUAD[split[half]] for split in _SPLITS]) for half in (0, 1))
_SPLIT_COLUMNS = torch.tensor([first + second for first, second in _SPLITS])


@dataclass(frozen=True, kw_only=True, slots=True)
class Permutation:
    """An order of channels and what it is worth.

    Attributes:
        order: int64 [K]; the channel that comes to place i is `order[i]`.
        total: Sum of all scores.
        before: What 2:4 keeps of it in the order as it is: of each group the two largest.
        after: What it keeps in the new order; never less than `before`.
        settled: True where no exchange between any two groups would gain: the search came to its end.
    """

    order: torch.Tensor
    total: float
    before: float
    after: float
    settled: bool

    @property
    def changed(self) -> bool:
        """True where it is any other order than the one that is there."""
        return not torch.equal(self.order, torch.arange(len(self.order)))


def kept_by_24(scores: torch.Tensor) -> float:
    """What remains of [K, rows] non-negative scores when each group of four along K keeps its two largest."""
    grouped = scores.reshape(-1, GROUP, scores.shape[1])
    pieces = (grouped[start : start + 64] for start in range(0, len(grouped), 64))
    return sum(float(piece.topk(2, dim=1).values.double().sum()) for piece in pieces)


def broken_groups(filled: torch.Tensor) -> int:
    """Groups along the first axis of booleans [K, rows] with more than two that are True."""
    return int((filled.reshape(-1, GROUP, filled.shape[1]).sum(dim=1) > KEPT).sum())


def dealt_order(scores: torch.Tensor, segment: int) -> torch.Tensor:
    """Channels dealt over the groups of their segment like cards, strongest first, to and fro: int64 [K].

    No group then gets four strong channels, of which 2:4 would drop two. Groups come with their strongest channel
    falling.

    Args:
        scores: As for `search_permutation`.
        segment: As for `search_permutation`; a multiple of 4.
    """
    strength = scores.double().sum(dim=1).reshape(-1, segment)
    order = strength.argsort(dim=1, descending=True, stable=True).reshape(len(strength), GROUP, -1)
    order[:, 1::2] = order[:, 1::2].flip(2)
    starts = segment * torch.arange(len(strength))[:, None]
    return (order.transpose(1, 2).reshape(len(strength), -1) + starts).reshape(-1)


def search_permutation(
    scores: torch.Tensor, *, segment: int | None = None, seed: int = 0, cycles: int = 3, rows: int = _ROWS
) -> Permutation:
    """Search the order of channels in which 2:4 keeps most.

    A cycle meets every group with every other once. Later cycles look only at pairs of which a group has changed, so
    they are short. The work is bounded by `cycles`, not by a clock: equal arguments give equal orders on any machine.

    Args:
        scores: [K, rows], non-negative and finite: the importance of each weight, such as |w|; transposed, so that
            a channel is a row. K is a multiple of 4.
        segment: Channels move only within segments of this many, such as heads; None: anywhere.
        seed: Decides in which order groups meet.
        cycles: Upper limit of cycles.
        rows: With more rows than this, a seeded sample of so many is searched; the result is judged on all of them.

    Returns:
        Never worse than the order that is there.

    Raises:
        ValueError: K isn't a multiple of the segment, or the segment isn't one of 4.
    """
    size = len(scores)
    segment = segment or size
    if segment % GROUP or size % segment:
        raise ValueError(f"{size} channels in segments of {segment} don't make groups of four")
    generator = torch.Generator().manual_seed(seed)
    total, before = float(scores.double().sum()), kept_by_24(scores)
    sample = _sampled(scores.float(), rows, generator)
    order = torch.arange(size).reshape(-1, GROUP)
    met = torch.eye(len(order), dtype=torch.bool)
    with one_thread():
        for _ in range(cycles):
            for pairs in _rounds(size // segment, segment // GROUP, generator):
                _exchange(sample, order, met, pairs)
    found = _tidied(order)
    after = kept_by_24(scores[found])
    settled = all(bool(block.all()) for block in _blocks(met, segment // GROUP))
    if after <= before * (1 + _NOISE):
        return Permutation(order=torch.arange(size), total=total, before=before, after=before, settled=settled)
    return Permutation(order=found, total=total, before=before, after=after, settled=settled)


def integers_from_tensor(tensor: torch.Tensor) -> list[int]:
    """The elements of a vector of integers; torch leaves their type open."""
    return cast("list[int]", tensor.tolist())


def find_valid_order(nonzero: torch.Tensor, *, segment: int | None = None) -> torch.Tensor | None:
    """An order of channels in which every group of four has at most two non-zeros in every row.

    Four columns may stand together if no row has three of them. Of columns at random hardly any three may, so a
    pattern that was shuffled can be put together again column by column: the fullest column left takes the three
    companions with which it is fullest. Greedy: where masks are small or thin it can miss an order that exists.

    Args:
        nonzero: Booleans [K, rows], True where a weight is not zero.
        segment: As for `search_permutation`.

    Returns:
        int64 [K], or None where it found none.
    """
    size = len(nonzero)
    segment = segment or size
    if segment % GROUP or size % segment:
        return None
    parts: list[torch.Tensor] = []
    for start in range(0, size, segment):
        filled = nonzero[start : start + segment].float()
        with one_thread():
            tries = (_companions(filled, effort) for effort in _COMPANIONS)
            groups = next((groups for groups in tries if groups is not None), None)
        if groups is None:
            return None
        parts.append(start + _tidied(groups))
    return torch.cat(parts)


def _sampled(scores: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    rows = scores.shape[1]
    if rows <= most:
        return scores
    return scores[:, torch.randperm(rows, generator=generator)[:most]].contiguous()


def _blocks(met: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(met), size):
        yield met[start : start + size, start : start + size]


def _tidied(order: torch.Tensor) -> torch.Tensor:
    """Within groups, and groups among themselves, in ascending order: equal groupings give equal orders."""
    grouped = order.sort(dim=1).values
    return grouped[grouped[:, 0].argsort()].reshape(-1)


def _rounds(segments: int, groups: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A round-robin tournament of the groups of each segment, by the circle method: [pairs, 2] of groups a round."""
    players = groups + groups % 2
    if players < 2:
        return
    starts = groups * torch.arange(segments)
    names = torch.stack([torch.randperm(players, generator=generator) for _ in range(segments)])
    steps = torch.arange(1, players // 2)
    for turn in integers_from_tensor(torch.randperm(players - 1, generator=generator)):
        left = torch.cat([torch.tensor([players - 1]), (turn + steps) % (players - 1)])
        right = torch.cat([torch.tensor([turn]), (turn - steps) % (players - 1)])
        seats = torch.stack([names[:, left], names[:, right]], dim=2)
        pairs = (seats + starts[:, None, None]).reshape(-1, 2)
        # With an odd number of groups, one of each segment sits out: it meets a player that isn't there.
        yield pairs[(seats < groups).all(dim=2).reshape(-1)]


def _exchange(scores: torch.Tensor, order: torch.Tensor, met: torch.Tensor, pairs: torch.Tensor) -> None:
    """Split the eight columns of each pair of groups in the best way, in place."""
    pairs = pairs[~met[pairs[:, 0], pairs[:, 1]]]
    if not len(pairs):
        return
    columns = order[pairs].reshape(-1, _PAIR)
    quads = _quad_values(scores, columns)
    values = quads[:, _FIRST] + quads[:, _SECOND]
    best = values.argmax(dim=1)
    # The first split is the one that is there.
    gains = values.gather(1, best[:, None])[:, 0] - values[:, 0] > _NOISE * values[:, 0]
    changed = pairs[gains]
    order[changed] = columns[gains].gather(1, _SPLIT_COLUMNS[best[gains]]).reshape(-1, 2, GROUP)
    met[changed.reshape(-1)] = False
    met[:, changed.reshape(-1)] = False
    groups = torch.arange(len(met))
    met[groups, groups] = True
    met[pairs[:, 0], pairs[:, 1]] = True
    met[pairs[:, 1], pairs[:, 0]] = True


def _quad_values(scores: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What 2:4 keeps of each four of eight columns: float64 [pairs, 70]. Top two of four, from tops of two."""
    rows = scores.shape[1]
    values = torch.zeros(len(columns), len(_QUADS), dtype=torch.float64)
    width = min(rows, _PIECE)
    step = max(1, _PIECE // max(width, 1))
    for start in range(0, len(columns), step):
        for row in range(0, rows, width):
            piece = scores[columns[start : start + step], row : row + width]
            largest = [torch.maximum(piece[:, a], piece[:, b]) for a, b in _COLUMNS]
            both = [piece[:, a] + piece[:, b] for a, b in _COLUMNS]
            for place, (a, b, c, d) in enumerate(_QUADS):
                low, high = _PLACE[a, b], _PLACE[c, d]
                top = torch.maximum(both[low], both[high])
                kept = torch.maximum(top, largest[low] + largest[high])
                values[start : start + step, place] += kept.sum(dim=1)
    return values


def _companions(filled: torch.Tensor, effort: float) -> torch.Tensor | None:
    """Groups [K/4, 4] of columns that may stand together; `filled` is [K, rows], 1 where a weight is not zero."""
    counts = filled.sum(dim=1)
    shared = filled @ filled.T
    # Columns of one group meet in a row less often than strangers do.
    rarity = shared / (counts[:, None] * counts[None, :]).clamp(min=1)
    left = counts.argsort(descending=True, stable=True)
    limit = max(24, int((effort / max(filled.shape[1], 1)) ** 0.5))
    groups: list[list[int]] = []
    while len(left):
        first, others = int(left[0]), left[1:]
        near = others[rarity[first, others].argsort(stable=True)[:limit]]
        three = _best_three(filled[near] * filled[first], filled[near], counts[near])
        if three is None:
            return None
        group = [first, *integers_from_tensor(near[three])]
        groups.append(group)
        left = left[~torch.isin(left, torch.tensor(group))]
    return torch.tensor(groups)


def _best_three(with_first: torch.Tensor, filled: torch.Tensor, counts: torch.Tensor) -> torch.Tensor | None:
    """Of candidates [c, rows], the fullest three that may stand together with the first column; None if none may.

    `with_first` is 1 where both the candidate and the first column are non-zero.
    """
    fits = (with_first @ with_first.T == 0).fill_diagonal_(fill_value=False)
    edges = fits.triu().nonzero()
    edges = edges[counts[edges].sum(dim=1).argsort(descending=True, stable=True)[:_EDGES]]
    best, three = -1.0, None
    for low, high in zip(*(integers_from_tensor(ends) for ends in edges.T), strict=True):
        third = (fits[low] & fits[high]).nonzero()[:, 0]
        third = third[(filled[third] @ (filled[low] * filled[high])) == 0]
        if not len(third):
            continue
        place = int(third[counts[third].argmax()])
        value = float(counts[low] + counts[high] + counts[place])
        if value > best:
            best, three = value, torch.tensor([low, high, place])
    return three
