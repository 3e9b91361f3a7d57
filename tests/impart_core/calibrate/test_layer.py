"""Which matrices of a layer are fed together, whatever a layer does to its activations and whichever tokens come."""

from collections.abc import Iterator

import torch

from impart_core.calibrate.layer import Batch, Call, Layer
from impart_core.calibrate.placement import Place

SIDE = 6
ALL = (slice(None), slice(None))


class InPlace(torch.nn.Module):
    """Writes into its activations between two products, and reads the same memory turned in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (torch.nn.Parameter(torch.randn(SIDE, SIDE)) for _ in range(4))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.clone()
        found = torch.nn.functional.linear(x, self.a) + torch.nn.functional.linear(x, self.b)
        x.mul_(torch.arange(1, SIDE + 1))
        found = found + torch.nn.functional.linear(x, self.c)
        square = x[0, :SIDE]
        return found + torch.nn.functional.linear(square.T, self.d).sum()


class Routed(torch.nn.Module):
    """Has experts in parameters of their own, which a token reaches by its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ParameterList(torch.randn(SIDE, SIDE) for _ in range(3))
        self.gate = torch.nn.ParameterList(torch.randn(SIDE, SIDE) for _ in range(3))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, SIDE)
        found = torch.zeros_like(rows)
        for expert, chosen in enumerate((rows[:, 0] > 0, rows[:, 0] < 0, rows[:, 0] > 1e6)):
            if bool(chosen.any()):
                x = rows[chosen]
                found[chosen] += torch.nn.functional.linear(x, self.up[expert]) * (x @ self.gate[expert].T)
        return found.view_as(hidden_states)


def layer_of(module: torch.nn.Module) -> Layer:
    places = {name: [Place(name, None, False, ALL, ALL)] for name, _ in module.named_parameters()}
    return Layer(module, lambda batch, length: Call((torch.empty(0),), {}), places, torch.device("cpu"))


def hidden_of(sign: int, seed: int = 0) -> torch.Tensor:
    hidden = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    hidden[..., 0] = sign * hidden[..., 0].abs()
    return hidden


def plain(rows: torch.Tensor) -> torch.Tensor:
    return 2 * rows.T @ rows / len(rows)


def test_inputs_in_the_same_memory_that_are_not_the_same_are_apart() -> None:
    torch.manual_seed(0)
    module, hidden = InPlace(), hidden_of(1)
    layer = layer_of(module)
    groups, unseen = layer.groups([Batch.of(hidden)], "abcd")
    assert unseen == []
    assert [group.names for group in groups] == [("a", "b"), ("c",), ("d",)]
    scaled = hidden * torch.arange(1, SIDE + 1)
    wanted = [hidden.reshape(-1, SIDE), scaled.reshape(-1, SIDE), scaled[0].T]
    for group, rows in zip(groups, wanted, strict=True):
        (found,) = layer.hessians(group, [Batch.of(hidden)]).values()
        torch.testing.assert_close(found.matrix, plain(rows))
        assert found.tokens == len(rows)


def test_matrices_that_only_a_later_batch_reaches_are_seen() -> None:
    torch.manual_seed(0)
    module, read = Routed(), []

    def batches() -> Iterator[Batch]:
        for number, sign in enumerate((1, 1, -1)):
            read.append(number)
            yield Batch.of(hidden_of(sign, number))

    layer = layer_of(module)
    names = [name for name, _ in module.named_parameters()]
    groups, unseen = layer.groups(batches(), names)
    assert [group.names for group in groups] == [("up.0", "gate.0"), ("up.1", "gate.1")]
    assert unseen == ["up.2", "gate.2"]  # no token of any batch goes there
    every = [Batch.of(hidden_of(sign, number)) for number, sign in enumerate((1, 1, -1))]
    second = layer.hessians(groups[1], every)
    torch.testing.assert_close(second[groups[1].sites[0]].matrix, plain(hidden_of(-1, 2).reshape(-1, SIDE)))
    assert read == [0, 1, 2]
    read.clear()
    assert layer.groups(batches(), ["up.0"])[1] == []
    assert read == [0]  # one is enough where it reaches all that are asked for
