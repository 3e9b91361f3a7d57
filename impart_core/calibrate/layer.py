"""One decoder layer at work: run on hidden states, its matrices replaced, what they are fed summed up."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from impart_core.base.errors import CalibrationError
from impart_core.base.foreign import Done
from impart_core.base.parallel import in_order
from impart_core.calibrate.architecture import ADVICE, model_code
from impart_core.calibrate.hessian import Hessian, add_product, mirror
from impart_core.calibrate.placement import Place
from impart_core.calibrate.watch import Fed, Watch

BATCH_TOKENS = 2048  # of one batch, which sums of float32 depend on


def batch_size(length: int) -> int:
    """Return how many sequences of this length are run together."""
    return max(1, BATCH_TOKENS // length)


@dataclass(frozen=True)
class Call:
    """The arguments that a model calls a layer with, of which the hidden states are the first.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states."""
        found: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return found

    def with_hidden(self, hidden: torch.Tensor) -> "Call":
        """Return the call with other hidden states."""
        if self.args:
            return Call((hidden, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, "hidden_states": hidden})


@dataclass(frozen=True)
class Site:
    """Matrices that are multiplied with the same inputs.

    Attributes:
        names: which; `name[index]` is a matrix of a stack.
        of_rows: whether inputs meet the rows of these matrices as the checkpoint stores them, (in, out); else their
            columns.
        of_expert: whether they are those of one expert of several.
    """

    names: tuple[str, ...]
    of_rows: bool
    of_expert: bool = False


@dataclass(frozen=True)
class Group:
    """Sites that are fed at the same point of the layer: one, or one for each expert."""

    sites: tuple[Site, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All matrices of the group."""
        return tuple(name for site in self.sites for name in site.names)


@dataclass(frozen=True)
class Batch:
    """Hidden states that are read when they are needed, as often as they are.

    Attributes:
        shape: (B, L, H).
        read: gives them, float32.
    """

    shape: tuple[int, int, int]
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, hidden: torch.Tensor) -> "Batch":
        """Return hidden states at hand, (B, L, H), as a batch."""
        sequences, length, width = hidden.shape
        return cls((sequences, length, width), lambda: hidden)


class _AllSeen(Done):
    """Nothing that comes after this in the layer is of interest."""


class Layer:
    """A decoder layer whose parameters are at hand, in float32; made by `CausalModel.layer`."""

    def __init__(
        self,
        module: torch.nn.Module,
        call: Callable[[int, int], Call],
        places: Mapping[str, Sequence[Place]],
        location: str,
    ) -> None:
        """Take a layer.

        Args:
            module: the layer; each of its parameters is contiguous and has memory of its own.
            call: gives what the model calls it with, for a batch of B sequences of length L.
            places: where each of the checkpoint's matrices lies in its parameters.
            location: what errors call the checkpoint.
        """
        self._module = module
        self._call = call
        self._places = places
        self._location = location
        self._parameters = dict(module.named_parameters())
        self._device = next(iter(self._parameters.values())).device
        self._uses: Counter[str] = Counter()  # of each parameter in one run, as `groups` found it

    @torch.no_grad()
    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of hidden states (B, L, H), float32; both of them are.

        Raises:
            CalibrationError: the layer's code fails on them, or makes something else.
        """
        call = self._call(*hidden.shape[:2]).with_hidden(hidden.to(self._device))
        with model_code(self._location):
            output = self._module(*call.args, **call.kwargs)
            result = output if isinstance(output, torch.Tensor) else output[0]
        if not isinstance(result, torch.Tensor) or result.shape != hidden.shape:
            shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise CalibrationError(
                f"A layer of {self._location} turns hidden states of shape {list(hidden.shape)} into {shape}, so that "
                f"the next one cannot be run on them. {ADVICE}"
            )
        return result

    def outputs(self, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
        """Yield what the layer makes of each batch, as `run` does, some of them at once; see `parallel.at_once`."""
        self._prepare(batches)
        return in_order(lambda batch: self.run(batch.read()), batches)

    @torch.no_grad()
    def set(self, name: str, weight: torch.Tensor) -> None:
        """Replace a matrix; nothing happens where the model has no use for it.

        Args:
            name: its name in the checkpoint; `name[index]` for a matrix of a stack.
            weight: (m, n) as the checkpoint stores it, any floating dtype.
        """
        for place in self._places.get(name, ()):
            place.write(self._parameters[place.parameter], weight)

    def groups(self, batches: Iterable[Batch], names: Iterable[str]) -> tuple[list[Group], list[str]]:
        """Run the layer and find which matrices are fed together, and in which order.

        Matrices that get the same input are in one group, and so are those of all experts that lie in the same
        parameter, also of experts that no token chose. The first batch is enough where all parameters are fed by it;
        else the next ones are run, until all have been.

        Args:
            batches: the layer's inputs.
            names: the matrices to group; `name[index]` for those of a stack.

        Returns:
            the groups in the order in which the layer uses them, and the matrices whose inputs cannot be seen, or
            that are not used.
        """
        first_place = {name: next(iter(self._places.get(name, ())), None) for name in names}
        group_of, axis_of = self._probed(batches, frozenset(place.parameter for place in first_place.values() if place))
        groups: dict[int, dict[tuple[int | None, bool], list[str]]] = {}
        unseen = []
        for name, place in first_place.items():
            if place is None or place.parameter not in group_of or not place.is_whole(axis_of[place.parameter]):
                unseen.append(name)
                continue
            of_rows = (axis_of[place.parameter] == 0) != place.transposed
            sites = groups.setdefault(group_of[place.parameter], {})
            sites.setdefault((place.expert, of_rows), []).append(name)
        found = [
            Group(tuple(Site(tuple(own), of_rows, expert is not None) for (expert, of_rows), own in sites.items()))
            for _, sites in sorted(groups.items())
        ]
        return found, unseen

    def _probed(self, batches: Iterable[Batch], parameters: frozenset[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Return each parameter's group and the axis that meets its inputs, of those that are fed by some batch."""
        group_of: dict[str, int] = {}
        axis_of: dict[str, int] = {}
        self._uses = Counter()
        for batch in batches:
            calls: list[Fed] = []  # holds every input, so that no two have the same address
            with Watch(self._parameters, calls.append):
                self.run(batch.read())
            group_of = _grouped(calls, group_of)
            axis_of |= {call.parameter: call.axis for call in calls}
            self._uses |= Counter(call.parameter for call in calls)  # the most of any batch
            if parameters <= group_of.keys():
                break
        return group_of, axis_of

    def hessians(self, group: Group, batches: Sequence[Batch]) -> dict[Site, Hessian]:
        """Run the layer on batches and return H = 2·X·Xᵀ of each site, averaged over the tokens that reached it.

        A token whose input is zero did not reach the site: some models give every token to every expert, times zero.

        Some batches are run at once; see `parallel.at_once`.

        A run ends where all sites have been fed as often as `groups` saw it, unless that depends on the tokens, as it
        does for experts: what comes after them in the layer is of no use.

        Args:
            group: as `groups` found it, or some of its sites.
            batches: the layer's inputs.

        Returns:
            by site, (side, side), where side is that of the axis that meets the inputs; zero where no token came.
        """
        sites, totals = {}, {}
        for site in group.sites:
            place = self._places[site.names[0]][0]
            axis = 0 if site.of_rows != place.transposed else 1
            side = self._parameters[place.parameter].shape[axis - 2]
            sites[place.parameter, place.expert] = site
            totals[site] = torch.zeros(side, side, device=self._device)
        tokens: Counter[Site] = Counter()
        fixed = all(expert is None for _, expert in sites)
        uses = sum(self._uses[parameter] for parameter, _ in sites) if fixed else 0

        def fed(batch: Batch) -> list[tuple[Site, torch.Tensor]]:
            found: list[tuple[Site, torch.Tensor]] = []

            def keep(call: Fed) -> None:
                site = sites.get((call.parameter, call.expert))
                if site is not None:
                    found.append((site, call.rows.clone()))  # a layer may go on to write into its activations
                    if len(found) == uses:
                        raise _AllSeen

            with Watch(self._parameters, keep), suppress(_AllSeen):
                self.run(batch.read())
            return found

        self._prepare(batches)
        for found in in_order(fed, batches):
            for site, rows in found:
                add_product(totals[site], rows)
                tokens[site] += int(rows.any(dim=1).sum())
        for site, total in totals.items():
            mirror(total.mul_(2 / max(1, tokens[site])))
        return {site: Hessian(total, tokens[site]) for site, total in totals.items()}

    def _prepare(self, batches: Sequence[Batch]) -> None:
        """Work out what the layer is called with: that takes the whole model, which must not be running meanwhile."""
        for sequences, length in {batch.shape[:2] for batch in batches}:
            self._call(sequences, length)


def _grouped(calls: Iterable[Fed], before: Mapping[str, int]) -> dict[str, int]:
    """Return each parameter's group, numbered in their order: parameters that were fed the same input share one.

    The same input is the same memory, read in the same way, that nobody wrote to in between. Groups of an earlier
    batch stay.
    """
    groups = dict(before)
    fed: dict[tuple[int, ...], int] = {}
    for call in calls:
        x = call.inputs
        inputs = x.data_ptr(), x.numel(), x.shape[-1], x.stride(-1), call.version
        group = groups.setdefault(call.parameter, fed.get(inputs, 1 + max(groups.values(), default=-1)))
        fed.setdefault(inputs, group)
    return groups
