"""The curvature of a log density whose systems touch one another only through what all share.

A verifier, its servers and drafters of its own are a system. With a block ``A`` of each and blocks
``B`` between it and what is shared, the curvature is an arrow, and so is a root of its inverse:

    x_shared = S^(-1/2) y_shared,  x_system = A^(-1/2) y_system - A^(-1) B x_shared
    S = H_shared - sum of B' A^(-1) B

Its cost grows with the number of systems, not with its square or cube.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STEP = 1e-4  # of differences of gradients, on the model's axes
WIDE_STEP = 1e-2  # on axes along which the density is about as wide as 1
FLATTEST = 0.3  # least curvature: there the axes are a prior's, whose scales are about 1

Gradient = Callable[[np.ndarray], tuple[float, np.ndarray]]


def systems_of(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers of the verifier that members of levels belong to, -1 of a drafter that several have.

    `data` is that of a `Design`.
    """
    of_run, drafted = data["verifier_i"], data["drafted"] > 0
    found = {"verifier": np.arange(of_run.max() + 1)}
    for level, taken in (("server", np.full(len(of_run), True)), ("drafter", drafted)):
        members, verifiers = data[f"{level}_i"][taken], of_run[taken]
        found[level] = own = np.full(members.max(initial=-1) + 1, -1)
        own[members] = verifiers
        own[members[own[members] != verifiers]] = -1
    return found


class Blocks(NamedTuple):
    """Places of what all share, and of the effects of each system."""

    shared: np.ndarray
    systems: list[np.ndarray]

    @classmethod
    def of(cls, compiled: Any, systems: Mapping[str, np.ndarray]) -> "Blocks":
        """Of a compiled model; `systems` has the system of each member of a level, -1 of none."""
        system = np.full(compiled.n_dim, -1)
        places = dict(zip(*compiled.shape_info[:2], strict=True))
        for level, members in systems.items():
            place = places.get(f"log_{level}_centred__", slice(0, 0))
            system[place] = np.resize(members, place.stop - place.start)  # (effect, member)
        found = np.unique(system[system >= 0])
        return cls(np.flatnonzero(system < 0), [np.flatnonzero(system == i) for i in found])


class Root(NamedTuple):
    """A root of an inverse curvature: ``x = blocks @ y``, less `carried` of the shared ones."""

    blocks: Blocks
    roots: list[np.ndarray]  # of what is shared, then of each system; symmetric
    carried: list[np.ndarray]  # (variables of a system, shared variables)

    @property
    def _systems(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return zip(self.blocks.systems, self.roots[1:], self.carried, strict=True)

    def moved(self, y: np.ndarray) -> np.ndarray:
        """Variables at `y`, whose order is that of the blocks."""
        x, at = np.empty(len(y)), len(self.blocks.shared)
        x[self.blocks.shared] = shared = self.roots[0] @ y[:at]
        for own, root, carried in self._systems:
            x[own] = root @ y[at : at + len(own)] - carried @ shared
            at += len(own)
        return x

    def along(self, slope: np.ndarray) -> np.ndarray:
        """Slope along `y` from that along the variables."""
        shared, rest = slope[self.blocks.shared].copy(), []
        for own, root, carried in self._systems:
            shared -= carried.T @ slope[own]
            rest.append(root @ slope[own])
        return np.concatenate([self.roots[0] @ shared, *rest])

    @property
    def variance(self) -> np.ndarray:
        """Squared widths of the variables."""
        found = np.empty(sum(map(len, self.roots)))
        found[self.blocks.shared] = (self.roots[0] ** 2).sum(axis=1)
        for own, root, carried in self._systems:
            found[own] = (root**2).sum(axis=1) + ((carried @ self.roots[0]) ** 2).sum(axis=1)
        return found


class Arrow(NamedTuple):
    """A curvature by blocks."""

    blocks: Blocks
    shared: np.ndarray
    across: list[np.ndarray]  # (variables of a system, shared variables)
    systems: list[np.ndarray]

    @classmethod
    def of(cls, gradient: Gradient, x: np.ndarray, blocks: Blocks, step: float = STEP) -> "Arrow":
        """Minus the Hessian of a log density, by differences of gradients."""

        def column(places: Sequence[int]) -> np.ndarray:
            e = np.zeros(len(x))
            e[places] = step
            return (gradient(x - e)[1] - gradient(x + e)[1]) / (2 * step)

        rows = np.array([column([i]) for i in blocks.shared])
        most = max(map(len, blocks.systems), default=0)
        # One step at once in every system, as they do not touch one another.
        steps = [column([own[i] for own in blocks.systems if i < len(own)]) for i in range(most)]
        systems = [np.array(steps[: len(own)])[:, own] for own in blocks.systems]
        across = [rows[:, own].T for own in blocks.systems]
        return cls(blocks, _even(rows[:, blocks.shared]), across, [_even(one) for one in systems])

    @property
    def diagonal(self) -> np.ndarray:
        """Curvature along each variable."""
        places = np.concatenate([self.blocks.shared, *self.blocks.systems])
        found = np.empty(len(places))
        found[places] = np.concatenate([b.diagonal() for b in (self.shared, *self.systems)])
        return found

    def root(self, free: np.ndarray | None = None, on: Root | None = None) -> Root:
        """Root of its inverse; of the variables `free` alone: the others have no width.

        Where the curvature is one along the axes of another root, give that as `on`.
        """
        shared = self.blocks.shared
        kept = np.ones(len(shared), bool) if free is None else free[shared]
        rest, roots, carried = self.shared[np.ix_(kept, kept)], [], []
        back = [np.linalg.inv(one) for one in on.roots] if on else []
        for i, (across, own) in enumerate(zip(self.across, self.systems, strict=True), start=1):
            roots.append(_root(back[i] @ own @ back[i] if on else own))
            inverse = roots[-1] @ roots[-1]
            inverse = back[i] @ inverse @ back[i] if on else inverse
            carried.append(np.zeros_like(across))
            carried[-1][:, kept] = inverse @ across[:, kept]
            rest = rest - across[:, kept].T @ carried[-1][:, kept]
            if on:
                carried[-1] = on.carried[i - 1] + on.roots[i] @ carried[-1] @ back[0]
        first = np.zeros_like(self.shared)
        first[np.ix_(kept, kept)] = _root(back[0] @ rest @ back[0] if on else rest)
        return Root(on.blocks if on else self.blocks, [first, *roots], carried)


def sharp_root(gradient: Gradient, x: np.ndarray, blocks: Blocks) -> Root:
    """Root of the inverse curvature of a log density, exact where it is wide too.

    Differences lose what is wide beside what is narrow; on the axes of a first root nothing is.
    """
    first = Arrow.of(gradient, x, blocks).root()
    ends = np.cumsum([len(root) for root in first.roots])
    own = np.split(np.arange(len(x)), ends[:-1])

    def turned(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = gradient(x + first.moved(y))
        return value, first.along(slope)

    return Arrow.of(turned, np.zeros(len(x)), Blocks(own[0], own[1:]), WIDE_STEP).root(on=first)


def _even(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _root(bent: np.ndarray) -> np.ndarray:
    """``H^(-1/2)`` of a curvature, symmetric; where it bends less than a prior, as a prior."""
    values, vectors = np.linalg.eigh(_even(np.nan_to_num(bent)))
    scales = np.maximum(np.abs(values), FLATTEST) ** -0.5
    return np.asarray(vectors * scales @ vectors.T)
