"""Keys and values of a constant context: equal to what diffusers computes at every step, counted, and no state of the network."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from diffsfsr import config, presets
from diffsfsr.model import attention, sampling
from diffsfsr.model.unet import DiffSFSR

ZERO = config.Schedule(prediction="v_prediction", zero_terminal_snr=True)


def network(pooled: bool, seed: int = 0) -> DiffSFSR:
    torch.manual_seed(seed)
    preset = config.override(presets.preset("tiny"), {"conditioning.pooled": pooled})
    model = DiffSFSR.from_preset(preset, {"dlib": 128}).eval()
    torch.nn.init.normal_(model.tokens.null)
    torch.nn.init.normal_(model.unet.conv_in.weight, std=0.1)
    if pooled:
        torch.nn.init.normal_(model.unet.class_embedding.linear_2.weight, std=0.1)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["pooled", "plain"])
def model(request: pytest.FixtureRequest) -> DiffSFSR:
    return network(request.param)


def conditions(rows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"condition": (rows, 5, 8, 8), "dlib": (rows, 128), "expression": (rows, 16)}
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}


def bound(model: DiffSFSR, given: dict[str, Tensor], present: Tensor | None = None) -> sampling.ModelFn:
    return sampling.conditioned(model, given["condition"], {"dlib": given["dlib"]}, given["expression"], present)


def uncached(model: DiffSFSR, given: dict[str, Tensor], present: Tensor) -> sampling.ModelFn:
    """Everything anew at every call, through the forward pass that training takes."""

    def predict(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        n = len(z) // len(given["dlib"])
        shown = present.repeat(n, 1) & ~null[:, None]
        return model(
            z, t, given["condition"].repeat(n, 1, 1, 1), {"dlib": given["dlib"].repeat(n, 1)}, given["expression"].repeat(n, 1), shown
        )

    return predict


def cross(model: DiffSFSR) -> list[Attention]:
    return [m for name, m in model.unet.named_modules() if name.endswith("attn2")]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_kept_keys_and_values_change_nothing(model: DiffSFSR, guidance: float) -> None:
    given, present = conditions(), torch.tensor([[True, True], [False, True]])
    scheduler = sampling.make_scheduler(ZERO, "ddim")
    made = sampling.sample(bound(model, given, present), (4, 8, 8), scheduler, 4, [1, 2], guidance)
    expected = sampling.sample(uncached(model, given, present), (4, 8, 8), scheduler, 4, [1, 2], guidance)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    other = sampling.sample(bound(model, conditions(seed=2) | {"condition": given["condition"]}), (4, 8, 8), scheduler, 4, [1, 2], guidance)
    assert float((made - other).abs().max()) > 1e-3  # the tokens matter here


def test_a_negative_expression_stands_in_the_unconditional_rows_alone(model: DiffSFSR) -> None:
    given, present = conditions(), torch.tensor([[True, True], [True, False]])
    negative, null = conditions(seed=3)["expression"], torch.tensor([False, False, True, True])
    z, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.full((4,), 500.0)
    fn = sampling.conditioned(model, given["condition"], {"dlib": given["dlib"]}, given["expression"], present, negative)
    shown = torch.tensor([[True, True], [True, False], [False, True], [False, False]])  # a slot that is absent stays so
    expression = torch.cat([given["expression"], negative])
    expected = model(z, t, given["condition"].repeat(2, 1, 1, 1), {"dlib": given["dlib"].repeat(2, 1)}, expression, shown)
    torch.testing.assert_close(fn(z, t, null), expected, atol=1e-5, rtol=1e-5)


def test_it_is_the_attention_of_diffusers(model: DiffSFSR) -> None:
    g = torch.Generator().manual_seed(0)
    context, layer = torch.randn(3, 2, 32, generator=g), cross(model)[0]
    hidden = torch.randn(3, 64, layer.to_q.in_features, generator=g)
    expected = AttnProcessor2_0()(layer, hidden, context)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden, context), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer(hidden, context), expected, atol=1e-6, rtol=1e-5)  # with gradients, another way
    torch.testing.assert_close(layer(hidden, None, kept=attention.keep(model.unet, context)), expected, atol=1e-6, rtol=1e-5)


@pytest.fixture
def counts(model: DiffSFSR) -> Iterator[dict[str, int]]:
    """Calls so far: of each cross-attention's to_k and to_v, of the token MLPs, of each to_q."""
    seen: dict[str, int] = {}

    def count(name: str) -> object:
        return lambda *_: seen.update({name: seen.get(name, 0) + 1})

    parts = {f"{i} {n}": getattr(layer, n) for i, layer in enumerate(cross(model)) for n in ("to_k", "to_v", "to_q")}
    parts |= {f"mlp {name}": mlp for name, mlp in model.tokens.mlps.items()}
    handles = [part.register_forward_hook(count(name)) for name, part in parts.items()]  # type: ignore[arg-type]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_once_per_layer_and_sample(model: DiffSFSR, counts: dict[str, int], guidance: float) -> None:
    model_fn, steps = bound(model, conditions()), 5
    for calls in (1, 2):
        sampling.sample(model_fn, (4, 8, 8), sampling.make_scheduler(ZERO, "ddim"), steps, [1, 2], guidance)
        assert len(counts) == 3 * len(cross(model)) + 2
        assert {n for name, n in counts.items() if "to_q" not in name} == {calls}
        assert {n for name, n in counts.items() if "to_q" in name} == {calls * steps}


def test_changed_weights_are_seen_by_the_next_sample() -> None:
    model, given = network(pooled=True), conditions()
    model_fn, scheduler = bound(model, given), sampling.make_scheduler(ZERO, "ddim")
    sampling.sample(model_fn, (4, 8, 8), scheduler, 2, [1, 2])
    with torch.no_grad():
        for layer in cross(model):
            layer.to_v.weight.mul_(-2)
    again = sampling.sample(model_fn, (4, 8, 8), scheduler, 2, [1, 2])
    torch.testing.assert_close(again, sampling.sample(bound(model, given), (4, 8, 8), scheduler, 2, [1, 2]), atol=0, rtol=0)


def _interrupted_sample(model: DiffSFSR) -> list[weakref.ref[Tensor]]:
    """A sample that an exception ends; the keys that it had kept."""
    held: list[weakref.ref[Tensor]] = []
    model_fn = bound(model, conditions())

    def interrupted(z: Tensor, t: Tensor, null: Tensor) -> Tensor:
        model_fn(z, t, null)
        constant = next(c.cell_contents for c in model_fn.__closure__ or () if isinstance(c.cell_contents, sampling._Constant))
        held.extend(weakref.ref(key) for key, _ in constant.kept.values())
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sampling.sample(interrupted, (4, 8, 8), sampling.make_scheduler(ZERO, "ddim"), 3, [1, 2])
    return held


def test_nothing_is_left_behind_even_by_an_exception(model: DiffSFSR) -> None:
    before = {name: set(vars(module)) for name, module in model.unet.named_modules()}
    held = _interrupted_sample(model)
    assert held and all(ref() is None for ref in held)
    assert {name: set(vars(module)) for name, module in model.unet.named_modules()} == before
    z, given = torch.randn(2, 4, 8, 8), conditions()
    model(z, torch.tensor([5, 6]), given["condition"], {"dlib": given["dlib"]}, given["expression"]).sum().backward()
    assert all(layer.to_k.weight.grad is not None for layer in cross(model))  # training goes on as ever
    model.zero_grad(set_to_none=True)


def test_calls_in_threads_do_not_mix(model: DiffSFSR) -> None:
    """Four at once on one network: two bound models, and one of them shared by three calls of their own guidance."""
    first, second = bound(model, conditions(seed=3)), bound(model, conditions(seed=4))
    jobs = [(first, 1.0), (second, 2.0), (first, 2.0), (first, 3.0)]
    scheduler = sampling.make_scheduler(ZERO, "ddim")
    run = lambda job: sampling.sample(job[0], (4, 8, 8), scheduler, 6, [1, 2], job[1])  # noqa: E731
    alone, made = [run(job) for job in jobs], {}
    start = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        start.wait()
        made[i] = run(jobs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        torch.testing.assert_close(made[i], expected, atol=1e-6, rtol=0)
