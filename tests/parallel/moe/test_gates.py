"""Gates against the formulas of their docstring in float64."""

import pytest
import torch
from torch import Tensor

from parallel.config import GateKind
from parallel.moe.gates import DISTANCE_EPS, Gate, reference_logits
from tests.gpu_branch import gpu_branch

KINDS: list[GateKind] = ["softmax", "laplace", "gaussian"]


def reference(kind: str, x_ND: Tensor, w_DE: Tensor, temperature: float) -> Tensor:
    """Token by token, expert by expert, in float64."""
    x_ND, w_DE = x_ND.double(), w_DE.double()
    rows = []
    for x_D in x_ND:
        z_D = (x_D - x_D.mean()) / (x_D.var(correction=0) + 1e-5).sqrt()
        scale = len(z_D) ** 0.5
        row = []
        for w_D in w_DE.t():
            squared = (z_D - scale * w_D).square().sum() + DISTANCE_EPS
            row.append(
                {
                    "softmax": z_D @ w_D,
                    "laplace": -squared.sqrt(),
                    "gaussian": -squared / scale,
                }[kind]
            )
        rows.append(torch.stack(row))
    return temperature * torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_matches_float64_formula(kind: GateKind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate = Gate(kind, 48, 7)
    torch.nn.init.constant_(gate.log_temperature, 0.3)
    x_ND = (3 * torch.randn(20, 48) + 1).to(dtype)
    logits_NE = gate(x_ND)
    assert logits_NE.dtype == torch.float32
    expected = reference(kind, x_ND, gate.prototypes[0].detach(), float(torch.tensor(0.3).exp()))
    torch.testing.assert_close(logits_NE.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_float64_formula(kind: GateKind) -> None:
    torch.manual_seed(0)
    gate = Gate(kind, 16, 5)
    x_ND, up_NE = torch.randn(9, 16, requires_grad=True), torch.randn(9, 5)
    (gate(x_ND) * up_NE).sum().backward()
    x64, w64 = x_ND.detach().double().requires_grad_(), gate.prototypes[0].detach().double().requires_grad_()
    (reference(kind, x64, w64, 1.0) * up_NE).sum().backward()
    assert x_ND.grad is not None and x64.grad is not None and w64.grad is not None and gate.prototypes.grad is not None
    torch.testing.assert_close(x_ND.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gate.prototypes.grad[0].double(), w64.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_finite_where_token_and_prototype_coincide(kind: GateKind) -> None:
    torch.manual_seed(0)
    gate = Gate(kind, 8, 3)
    x_ND = torch.randn(4, 8)
    z_ND = torch.nn.functional.layer_norm(x_ND, (8,))
    with torch.no_grad():
        gate.prototypes[0, :, 0] = z_ND[0] / 8**0.5
    x_ND.requires_grad_()
    logits_NE = gate(x_ND)
    if kind != "softmax":
        assert logits_NE[0, 0].abs() < 3e-3 < logits_NE[1, 0].abs()
    logits_NE.sum().backward()
    for tensor in (x_ND, gate.prototypes, gate.log_temperature):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [16, 256, 2048])
def test_initial_logits_neither_vanish_nor_saturate(kind: GateKind, dim: int) -> None:
    torch.manual_seed(0)
    spread = Gate(kind, dim, 64)(torch.randn(200, dim)).detach().std(dim=1).mean()
    assert 0.5 < float(spread) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_one_prototype_set_a_modality_equals_separate_gates(kind: GateKind) -> None:
    torch.manual_seed(0)
    gate = Gate(kind, 12, 5, prototype_rows=3, temperature_rows=3)
    torch.nn.init.normal_(gate.log_temperature)
    x_ND, row_N = torch.randn(17, 12), torch.randint(0, 3, (17,))
    expected = torch.empty(17, 5)
    for m in range(3):
        single = Gate(kind, 12, 5)
        with torch.no_grad():
            single.prototypes.copy_(gate.prototypes[m : m + 1])
            single.log_temperature.copy_(gate.log_temperature[m : m + 1])
        expected[row_N == m] = single(x_ND[row_N == m])
    torch.testing.assert_close(gate(x_ND, row_N), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_bias_is_added_to_the_logits_of_its_expert_and_modality(kind: GateKind, rows: int) -> None:
    """softmax(-|W_i - x| + b_i), as the theory of the paper has it; at the start it adds nothing."""
    torch.manual_seed(0)
    gate, row_N = Gate(kind, 5, 4, rows, rows, bias=True).double(), torch.tensor([2, 0, 0, 2, 1, 0, 2])
    x_ND = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    inputs = (x_ND, gate.prototypes, gate.log_temperature)
    assert gate.bias is not None
    torch.testing.assert_close(gate(x_ND, row_N), reference_logits(*inputs, row_N, kind))
    torch.nn.init.normal_(gate.bias)
    expected = reference_logits(*inputs, row_N, kind) + gate.bias[row_N if rows > 1 else row_N * 0]
    torch.testing.assert_close(gate(x_ND, row_N), expected)
    up_NE = torch.randn(7, 4, dtype=torch.float64)
    oracle = torch.autograd.grad(expected, (*inputs, gate.bias), up_NE)
    mine = torch.autograd.grad(gate(x_ND, row_N), (*inputs, gate.bias), up_NE)
    for own, theirs in zip(mine, oracle, strict=True):
        torch.testing.assert_close(own.double(), theirs, rtol=1e-5, atol=1e-6)


def test_initial_prototypes_are_random_and_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = Gate("laplace", 8, 4, generator=torch.Generator().manual_seed(1))
    second = Gate("laplace", 8, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.prototypes.abs().min() > 0
    assert not torch.equal(first.prototypes, second.prototypes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [(1, 1), (1, 3), (3, 3)])
def test_the_written_out_derivative_passes_a_numerical_check(kind: GateKind, rows: tuple[int, int]) -> None:
    """Against differences in float64, and value and gradients against the oracle beside it."""
    torch.manual_seed(0)
    gate = Gate(kind, 5, 4, *rows).double()
    torch.nn.init.normal_(gate.log_temperature, std=0.3)
    x_ND, row_N = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.tensor([2, 0, 0, 2, 1, 0, 2])
    inputs = (x_ND, gate.prototypes, gate.log_temperature)

    def call(x_ND: Tensor, w_GDE: Tensor, log_tau_T: Tensor) -> Tensor:
        weights = {"prototypes": w_GDE, "log_temperature": log_tau_T}
        return torch.func.functional_call(gate, weights, (x_ND, row_N))

    assert torch.autograd.gradcheck(call, inputs)
    expected = reference_logits(*inputs, row_N, kind)
    torch.testing.assert_close(call(*inputs), expected)
    up_NE = torch.randn(7, 4, dtype=torch.float64)
    oracle = torch.autograd.grad(expected, inputs, up_NE)
    for mine, theirs in zip(torch.autograd.grad(call(*inputs), inputs, up_NE), oracle, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_bf16_gate_on_a_gpu_chooses_as_fp32_does(kind: GateKind, rows: int) -> None:
    """Wide tokens and many experts, where near ties are common: 2,048 choices of 2 out of 256."""
    torch.manual_seed(0)
    gate = Gate(kind, 512, 256, rows, rows).bfloat16()
    x_ND, row_N = (torch.randn(2048, 512) + torch.randn(512)).bfloat16(), torch.arange(2048) % 3
    expected = gate(x_ND, row_N).detach()
    with gpu_branch():
        found = gate(x_ND, row_N).detach()
    assert float((found - expected).square().mean().sqrt()) < 3e-5
    same = (found.topk(2).indices.sort(1).values == expected.topk(2).indices.sort(1).values).all(1)
    assert float(same.double().mean()) > 0.9985


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_of_a_bf16_gate_on_a_gpu(kind: GateKind, rows: int) -> None:
    torch.manual_seed(0)
    gate = Gate(kind, 64, 20, rows, rows).bfloat16()
    x_ND, row_N = torch.randn(300, 64).bfloat16().requires_grad_(), torch.randint(0, 3, (300,))
    up_NE = torch.randn(300, 20)
    inputs = (x_ND, gate.prototypes, gate.log_temperature)
    with gpu_branch():
        found = torch.autograd.grad(gate(x_ND, row_N), inputs, up_NE)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    expected = torch.autograd.grad(reference_logits(*exact, row_N, kind), exact, up_NE.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 6e-3


def test_a_gate_keeps_two_numbers_a_token_beside_what_exists() -> None:
    gate = Gate("laplace", 64, 8).bfloat16()
    x_ND = torch.randn(100, 64).bfloat16().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        logits_NE = gate(x_ND)
    known = {t.untyped_storage().data_ptr() for t in (x_ND, logits_NE, *gate.parameters())}
    extra = [t for t in kept if t.untyped_storage().data_ptr() not in known]
    assert sum(t.numel() for t in extra) == 200
