"""The fused WKV kernel against the PyTorch loop, and its gradient against numbers."""

import pytest
import torch

from qslm import _native
from qslm.models.wkv import FusedWKV, empty_state, fused_wkv, wkv, wkv_loop

SHAPES = [(1, 1, 1), (3, 5, 7), (2, 33, 64), (1, 17, 65), (2, 9, 130)]  # (batch, tokens, channels)


def inputs(shape, dtype, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    batch, tokens, channels = shape
    w, u = -torch.exp(2 * draw(channels) - 1), spread * draw(channels)
    k, v = spread * draw(batch, tokens, channels), draw(batch, tokens, channels)
    return [tensor.to(dtype) for tensor in (w, u, k, v)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_loop(shape, dtype, tolerance):
    w, u, k, v = inputs(shape, dtype)
    for state in (None, wkv_loop(w, u, k.flip(1), v.flip(1))[1]):
        y, last = fused_wkv(w, u, k, v, state)
        expected, expected_last = wkv_loop(w, u, k, v, state)
        torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(last, expected_last, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pieces_equal_the_window(dtype):
    w, u, k, v = inputs((2, 23, 65), dtype)
    y, last = fused_wkv(w, u, k, v)
    state, pieces = empty_state(k), []
    for start, end in ((0, 1), (1, 8), (8, 9), (9, 23)):
        piece, state = wkv(w, u, k[:, start:end], v[:, start:end], state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, 1), y)
    assert torch.equal(state, last)


def test_given_state_is_not_overwritten():
    w, u, k, v = inputs((1, 3, 4), torch.float32)
    state = empty_state(k)
    wkv(w, u, k, v, state)
    assert torch.equal(state, empty_state(k))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("decay", [-1e-6, -1.0, -50.0])
def test_extreme_keys_do_not_overflow(sign, decay):
    w, u, k, v = inputs((2, 40, 66), torch.float64)
    k = sign * 80 * torch.where(k > 0, 1.0, -1.0).to(k.dtype)
    u, w = 80 * torch.tanh(u), torch.full_like(w, decay)
    precise = [t.requires_grad_() for t in (w, u, k, v)]
    single = [t.detach().float().requires_grad_() for t in precise]
    results = []
    for arguments in (precise, single):
        y, _ = FusedWKV.apply(*arguments)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in arguments)])
    reference = wkv_loop(*[t.detach() for t in precise])[0]
    torch.testing.assert_close(results[0][0], reference, rtol=0, atol=1e-12)
    for low, high in zip(results[1], results[0], strict=True):
        assert torch.isfinite(low).all()
        torch.testing.assert_close(low.double(), high, rtol=1e-3, atol=1e-3 * max(1.0, float(high.abs().max())))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (1, 4, 65), (3, 2, 64)], ids=str)
def test_gradient_is_that_of_the_numbers(shape):
    arguments = [tensor.requires_grad_() for tensor in inputs(shape, torch.float64, seed=sum(shape))]
    assert torch.autograd.gradcheck(lambda *a: FusedWKV.apply(*a)[0], arguments)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_equals_autograd_of_the_loop(shape):
    precise = [tensor.requires_grad_() for tensor in inputs(shape, torch.float64)]
    single = [tensor.detach().float().requires_grad_() for tensor in precise]
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = torch.autograd.grad(wkv_loop(*precise)[0], precise, upstream, materialize_grads=True)
    double = torch.autograd.grad(FusedWKV.apply(*precise)[0], precise, upstream)
    float_ = torch.autograd.grad(FusedWKV.apply(*single)[0], single, upstream.float())
    for reference, high, low in zip(expected, double, float_, strict=True):
        scale = max(1.0, float(reference.abs().max()))
        torch.testing.assert_close(high, reference, rtol=0, atol=1e-11 * scale)
        torch.testing.assert_close(low.double(), reference, rtol=0, atol=1e-5 * scale)


def test_gradient_through_a_carried_state_falls_back_to_the_loop():
    w, u, k, v = (tensor.requires_grad_() for tensor in inputs((1, 4, 3), torch.float64))
    head, state = wkv(w, u, k[:, :2], v[:, :2], empty_state(k))
    tail, _ = wkv(w, u, k[:, 2:], v[:, 2:], state)
    found = torch.autograd.grad(torch.cat((head, tail), 1).square().sum(), (w, u, k, v))
    expected = torch.autograd.grad(wkv(w, u, k, v)[0].square().sum(), (w, u, k, v))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_result_does_not_depend_on_threads(dtype):
    w, u, k, v = inputs((3, 11, 150), dtype)
    gy = v.flip(1).contiguous()
    results = []
    for threads in (1, 2):
        y, state = torch.empty_like(k), empty_state(k)
        _native.wkv_forward(w, u, k, v, state, y, threads)
        gw, gu = k.new_empty(3, 150), k.new_empty(3, 150)
        gk, gv = torch.empty_like(k), torch.empty_like(k)
        _native.wkv_backward(w, u, k, v, gy, gw, gu, gk, gv, threads)
        results.append([y, state, gw, gu, gk, gv])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_wrong_shapes_are_refused():
    w, u, k, v = inputs((1, 3, 4), torch.float32)
    with pytest.raises(ValueError, match="state"):
        _native.wkv_forward(w, u, k, v, torch.zeros(1, 2, 4), torch.empty_like(k), 1)
    with pytest.raises(ValueError, match="v: the shape of k"):
        _native.wkv_forward(w, u, k, v[:, :2].contiguous(), empty_state(k), torch.empty_like(k), 1)
    with pytest.raises(TypeError):
        _native.wkv_forward(w.double(), u, k, v, empty_state(k), torch.empty_like(k), 1)
