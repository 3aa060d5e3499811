"""Embeddings -> tokens: against a hand-written forward, absent slots, order and storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffsfsr.errors import InputError
from diffsfsr.model.conditioning import ConditionTokens

DIMS = {"zebra": 6, "arcface": 10}  # not in alphabetical order, on purpose


def made(width: int = 8) -> ConditionTokens:
    torch.manual_seed(0)
    return ConditionTokens(DIMS, expression_dim=4, width=width)


def embeddings(rows: int = 3) -> tuple[dict[str, Tensor], Tensor]:
    g = torch.Generator().manual_seed(1)
    return {n: 5 * torch.randn(rows, d, generator=g) for n, d in DIMS.items()}, torch.randn(rows, 4, generator=g)


def by_hand(tokens: ConditionTokens, name: str, x: Tensor, mean: Tensor) -> Tensor:
    first, _, second = tokens.mlps[name]
    x = x - mean
    x = x / x.square().sum(-1, keepdim=True).sqrt() * x.shape[-1] ** 0.5
    hidden = x @ first.weight.T + first.bias
    return hidden * torch.sigmoid(hidden) @ second.weight.T + second.bias


def test_tokens_are_two_layer_maps_of_centred_embeddings_in_order() -> None:
    tokens, (identity, expression) = made(), embeddings()
    mean = torch.linspace(-1, 1, 6)
    tokens.set_means({"zebra": mean})
    out = tokens(identity, expression)
    assert out.shape == (3, 3, 8)
    torch.testing.assert_close(out[:, 0], by_hand(tokens, "zebra", identity["zebra"], mean))
    torch.testing.assert_close(out[:, 1], by_hand(tokens, "arcface", identity["arcface"], torch.zeros(10)))
    torch.testing.assert_close(out[:, 2], by_hand(tokens, "expression", expression, torch.zeros(4)))
    assert torch.equal(tokens.means()["zebra"], mean)


def test_length_does_not_matter_but_direction_does() -> None:
    tokens, (identity, expression) = made(), embeddings()
    doubled = {n: 2 * e for n, e in identity.items()}
    torch.testing.assert_close(tokens(doubled, expression), tokens(identity, expression))
    flipped = {n: -e for n, e in identity.items()}
    assert not torch.allclose(tokens(flipped, expression)[:, 0], tokens(identity, expression)[:, 0])


def test_present_swaps_single_slots_for_their_own_null_tokens() -> None:
    tokens, (identity, expression) = made(), embeddings()
    full = tokens(identity, expression)
    present = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    out = tokens(identity, expression, present)
    for i in range(3):
        for k in range(3):
            assert torch.equal(out[i, k], full[i, k] if present[i, k] else tokens.null[k])


def test_a_missing_encoder_is_its_null_token_for_all_items() -> None:
    tokens, (identity, expression) = made(), embeddings()
    full = tokens(identity, expression)
    for partial in ({"arcface": identity["arcface"]}, {"arcface": identity["arcface"], "zebra": None}):
        out = tokens(partial, None)
        assert torch.equal(out[:, 0], tokens.null[0].expand(3, -1)) and torch.equal(out[:, 2], tokens.null[2].expand(3, -1))
        assert torch.equal(out[:, 1], full[:, 1])
    assert torch.equal(tokens({}, None, torch.ones(2, 3, dtype=torch.bool)), tokens.null.expand(2, 3, 8))


def test_rubbish_in_absent_rows_reaches_neither_tokens_nor_gradients() -> None:
    tokens, (identity, expression) = made(), embeddings()
    identity["zebra"][1] = float("nan")
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1, 0] = False
    out = tokens(identity, expression, present)
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in tokens.parameters())


def test_every_parameter_has_a_gradient_even_with_no_embedding() -> None:
    tokens = made()
    tokens({}, None, torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert all(p.grad is not None for p in tokens.parameters())


def test_saved_tokens_keep_their_order_and_means(tmp_path: Path) -> None:
    tokens, (identity, expression) = made(), embeddings()
    tokens.set_means({"arcface": torch.ones(10), "expression": torch.full((4,), 0.1)})
    tokens.save_pretrained(tmp_path)
    again = ConditionTokens.from_pretrained(tmp_path)
    assert again.slots == ("zebra", "arcface", "expression")
    present = torch.tensor([[True, False, True]]).expand(3, 3)
    assert torch.equal(again(identity, expression, present), tokens(identity, expression, present))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i, e: ({**i, "dlib": i["zebra"]}, e, None), "dlib"),
        (lambda i, e: ({**i, "zebra": i["arcface"]}, e, None), "zebra"),
        (lambda i, e: (i, e[:1], None), "one batch"),
        (lambda i, e: ({}, None, None), "one batch"),
        (lambda i, e: (i, e, torch.ones(3, 2, dtype=torch.bool)), "present"),
    ],
)
def test_what_does_not_fit_is_refused(change, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made()(*change(*embeddings()))


def test_means_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="nobody"):
        made().set_means({"nobody": torch.zeros(3)})
    with pytest.raises(InputError, match="zebra"):
        made().set_means({"zebra": torch.zeros(3)})
    with pytest.raises(InputError):
        ConditionTokens({"a": 3}, order=["b"])
