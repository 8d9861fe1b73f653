"""FGSM training against closed forms."""

import pytest
import torch
from torch.nn import functional

from helpers.training import perturbed, robust_loss
from helpers.zoo import mlp, random_linear, uniform
from holdfast import L1, L2, Linf
from holdfast.train import FGSMTraining, Step


@pytest.mark.parametrize(("norm", "eps"), [(Linf, 0.05), (L2, 0.1), (L1, 0.2)])
def test_on_a_linear_model_one_step_is_the_exact_robust_loss(norm, eps):
    net, x, y = random_linear(6, 2), uniform(7, 6, dtype=torch.float64), torch.arange(7) % 2
    method, step = FGSMTraining(norm(eps, box=None)), Step(0, 0, torch.arange(7))
    loss = method.loss(net, x, perturbed(method, net, x, y, step), y, step)
    torch.testing.assert_close(loss, robust_loss(net, x, y, method.threat), rtol=1e-12, atol=0)


def test_the_step_starts_at_the_clean_input_and_spends_the_whole_budget():
    net, x, y = mlp().double(), uniform(9, 6, dtype=torch.float64), torch.arange(9) % 4
    inputs = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(net(inputs), y), inputs)
    step = Step(4, 0, torch.arange(9), share=0.5)
    x_adv = perturbed(FGSMTraining(Linf(0.4)), net, x, y, step)
    torch.testing.assert_close(x_adv, (x + 0.2 * grad.sign()).clamp(0, 1), rtol=0, atol=1e-15)
