"""Values through which every way leads: where a part of the graph begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workers.verification.graph.graph_step import GraphStep

__all__ = ["Dominators"]


class Dominators:
    """The dominator tree of a graph's values (Cooper, Harvey, Kennedy 2001): 0 is the input, value
    i + 1 the result of step i.

    above[v]: the last value before v through which every way from the input to v leads.
    """

    def __init__(self, steps: Sequence[GraphStep]) -> None:
        self.steps = steps
        self.above = [0]
        self._depth = [0]
        for step in steps:
            found = step.sources[0]
            for source in step.sources[1:]:
                found = self._common(found, source)
            self.above.append(found)
            self._depth.append(self._depth[found] + 1)

    def _common(self, first: int, second: int) -> int:
        while first != second:
            if self._depth[first] < self._depth[second]:
                first, second = second, first
            first = self.above[first]
        return first

    def chain(self, value: int, start: int) -> Iterator[int]:
        """The values that lead to ``value``, from itself up to ``start``, which is one of them."""
        yield value
        while value != start:
            value = self.above[value]
            yield value

    def between(self, start: int, value: int) -> tuple[int, ...]:
        """Positions of the steps on all ways from ``start`` to ``value``, in order."""
        found: set[int] = set()
        open_values = [value]
        while open_values:
            at = open_values.pop()
            if at != start and at - 1 not in found:
                found.add(at - 1)
                open_values.extend(self.steps[at - 1].sources)
        return tuple(sorted(found))
