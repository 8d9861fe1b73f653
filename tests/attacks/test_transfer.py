import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.attacks import NORMS, assert_same, check_attack, check_company, examples, outcomes, predict, snapshot
from helpers.zoo import Answering, Counting, Moody, Wavy, convnet, mlp, no_gradient, seeded, uniform
from holdfast.attacks import Problem, Rows
from holdfast.attacks.mifgsm import MIFGSM
from holdfast.attacks.transfer import Diversity, Transfer, TranslationKernel, VarianceTuning
from holdfast.draws import Draws
from holdfast.errors import ModelError, SettingError
from holdfast.models.query import Query
from holdfast.threats import Linf

IMAGES = {"diversity": Diversity(probability=0.7), "kernel": TranslationKernel(size=3, deviations=1.0)}
EVERYTHING = {**IMAGES, "scales": 2, "variance": VarianceTuning(samples=2)}


class Anything(nn.Module):
    """A surrogate for whatever the shared tester brings: much the same network for its images, others for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.moody = convnet(), Moody()
        self.others = nn.ModuleList([mlp(features, 4) for features in range(9, 68)])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] == (3, 6, 6):
            return self.images(x)
        return self.moody.body(x * self.moody.weight) if x.shape[1:] == (6,) else self.others[x[0].numel() - 9](x)


def surrogate() -> nn.Module:
    model = Anything()
    model.moody.register_buffer("weight", torch.linspace(1, 2, 6))
    with torch.no_grad():
        model.images[0].weight *= 1.0 + 0.02 * torch.arange(8).reshape(8, 1, 1, 1)
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(Transfer(surrogate(), steps=3), norm, forwards=1, backwards=0)


@pytest.mark.parametrize("settings", [{"variance": VarianceTuning(samples=2), "scales": 2}, IMAGES])
def test_company(settings):
    model = convnet()
    x, y = examples(model)
    attack = Transfer(surrogate(), steps=3, **settings)
    assert sum(outcome.verdict == "broken" for outcome in outcomes(attack, model, Linf(0.03), x, y).values()) > 4
    check_company(attack, model, Linf(0.03), x, y)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.004), ("l2", 0.04), ("l1", 0.2)])
def test_with_the_model_itself_it_is_mifgsm(norm, eps):
    """The same last iterate: where that is the best one, the same input."""
    model = convnet()
    x, y = examples(model)
    threat = NORMS[norm](eps)
    transferred = Transfer(model, steps=5)(model, x, y, threat=threat)
    direct = MIFGSM(steps=5)(model, x, y, threat=threat)
    same = torch.isclose(transferred.x_adv, direct.x_adv, atol=1e-6).flatten(1).all(1)
    assert not (transferred.success & ~direct.success).any()
    assert same[~direct.success].float().mean() > 0.8


def last(attack, x, y, eps, index=None):
    """The perturbation that is tried, and how often the surrogate was asked."""
    model = Counting(copy.deepcopy(attack.surrogate))
    attack = copy.copy(attack)
    object.__setattr__(attack, "surrogate", model)
    with Query(attack.surrogate, batch_size=len(x)) as query:
        index = torch.arange(len(x)) if index is None else index
        problem = Problem(query, Linf(eps), Rows.fresh(Linf(eps), index, x, y))
        attack.step(problem, attack.init(problem))
    return problem.rows.best, model


def loop(model, x, y, eps, steps, gradient, decay=1.0):
    """MI-FGSM around any estimate of the gradient, one example."""
    z, velocity = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        grad = gradient((x + z).clip(0, 1), step)
        velocity = decay * velocity + grad / grad.abs().sum()
        z = (z + eps / steps * velocity.sign()).clip(-eps, eps).clip(-x, 1 - x)
    return z


def slope(model, point, y, change=lambda x: x):
    point = point.clone().requires_grad_(True)
    loss = functional.cross_entropy(model(change(point)[None]), y[None])
    return torch.autograd.grad(loss, point)[0]


def images(count=4):
    model = convnet().double()
    x = uniform(count, 3, 6, 6, seed=3, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def test_scales_are_those_of_the_paper():
    model, x, y = images()
    eps, steps = 0.05, 4
    z, counted = last(Transfer(model, steps=steps, scales=3), x, y, eps)
    assert counted.backwards == 3 * steps * 4

    def gradient(point, _, row):
        return sum(slope(model, point, y[row], lambda x, i=i: x / 2**i) for i in range(3)) / 3

    for i in range(4):
        expected = loop(model, x[i], y[i], eps, steps, lambda p, s, i=i: gradient(p, s, i))
        torch.testing.assert_close(z[i], expected, rtol=0, atol=1e-12)
    assert not torch.equal(z, last(Transfer(model, steps=steps), x, y, eps)[0])


def test_the_kernel_is_that_of_the_paper():
    model, x, y = images()
    eps, steps, size, deviations = 0.05, 4, 5, 2.0
    z, _ = last(Transfer(model, steps=steps, kernel=TranslationKernel(size, deviations)), x, y, eps)
    line = torch.linspace(-deviations, deviations, size, dtype=torch.float64)
    kernel = torch.exp(-(line[:, None] ** 2 + line[None, :] ** 2) / 2)
    kernel /= kernel.sum()

    def smooth(grad):
        out = torch.zeros_like(grad)
        for i in range(6):
            for j in range(6):
                for a in range(size):
                    for b in range(size):
                        k, m = i + a - size // 2, j + b - size // 2
                        if 0 <= k < 6 and 0 <= m < 6:
                            out[:, i, j] += kernel[a, b] * grad[:, k, m]
        return out

    for i in range(4):
        expected = loop(model, x[i], y[i], eps, steps, lambda p, s, i=i: smooth(slope(model, p, y[i])))
        torch.testing.assert_close(z[i], expected, rtol=0, atol=1e-12)
    assert not torch.equal(z, last(Transfer(model, steps=steps), x, y, eps)[0])
    kernel = TranslationKernel()(torch.ones(1, 2, 31, 33, dtype=torch.float64))
    torch.testing.assert_close(kernel[:, :, 15, 16], torch.ones(1, 2, dtype=torch.float64))
    assert torch.equal(TranslationKernel(size=1)(x), x)


def test_variance_tuning_is_that_of_the_paper():
    model = Wavy()
    x = 0.5 + (uniform(4, 8, seed=3, dtype=torch.float64) - 0.5) / 4
    y = model(x).argmax(1)
    eps, steps, samples, radius = 0.03, 4, 3, 1.5
    attack = Transfer(model, steps=steps, variance=VarianceTuning(samples, radius))
    index = torch.tensor([4, 0, 9, 2])
    z, counted = last(attack, x, y, eps, index)
    assert counted.backwards == steps * (1 + samples) * 4
    for i in range(4):
        state = {"v": torch.zeros(8, dtype=torch.float64)}

        def gradient(point, step, i=i, state=state):
            plain, grad = slope(model, point, y[i]), 0
            for n in range(1, samples + 1):
                rng = Draws(0, index[i : i + 1], 0, step + n * steps)
                cube = (2 * rng.uniform(8)[0] - 1) * radius * eps
                grad = grad + slope(model, point + cube, y[i]) / samples
            before, state["v"] = state["v"], grad - plain
            return plain + before

        torch.testing.assert_close(z[i], loop(model, x[i], y[i], eps, steps, gradient), rtol=0, atol=1e-12)
    assert not torch.equal(z, last(Transfer(model, steps=steps), x, y, eps)[0])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (2, 7, 12), (1, 1, 9)])
def test_images_are_resized_and_padded(shape):
    x = uniform(200, *shape, seed=2, dtype=torch.float64)
    _, height, width = shape
    out = Diversity(probability=0.6, smallest=0.5)(x, Draws(3, torch.arange(200)).uniform(4))
    sizes, places = set(), set()
    for before, after in zip(x, out, strict=True):
        if torch.equal(before, after):
            sizes.add((height, width))
            continue
        rows, columns = (after != 0).any(2).any(0).nonzero()[:, 0], (after != 0).any(1).any(0).nonzero()[:, 0]
        top, left, h, w = int(rows[0]), int(columns[0]), len(rows), len(columns)
        small = functional.interpolate(before[None], size=(h, w), mode="bilinear", align_corners=False)[0]
        expected = functional.pad(small, (left, width - w - left, top, height - h - top))
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
        assert abs(h - height * w / width) <= 1
        sizes.add((h, w))
        places.add((top, left))
    least = (max(round(0.5 * height), 1), max(round(0.5 * width), 1))
    assert min(sizes) >= least
    assert len(sizes) >= min(height // 2, width // 2)
    assert (height, width) in sizes
    assert {top for top, _ in places} >= set(range(height // 4 + 1))
    assert {left for _, left in places} >= set(range(width // 4 + 1))
    untouched = sum(torch.equal(a, b) for a, b in zip(x, out, strict=True)) / 200
    assert 0.3 <= untouched <= 0.55  # chance 0.4, and a size may round to the whole
    assert torch.equal(Diversity(probability=0.0)(x, Draws(3, torch.arange(200)).uniform(4)), x)


def test_gradients_go_through_the_resizing():
    model, x, y = images()
    eps, steps = 0.05, 3
    diversity = Diversity(1.0, 0.5)
    z, _ = last(Transfer(model, steps=steps, diversity=diversity, scales=2), x, y, eps, torch.tensor([1, 5, 2, 0]))
    for i, index in enumerate((1, 5, 2, 0)):

        def gradient(point, step, i=i, index=index):
            u = Draws(0, torch.tensor([index]), 0, step).uniform(8, lane=3)
            copies = [(1, u[:, :4]), (2, u[:, 4:])]
            return sum(slope(model, point, y[i], lambda x, c=c, u=u: diversity(x[None] / c, u)[0]) for c, u in copies)

        torch.testing.assert_close(z[i], loop(model, x[i], y[i], eps, steps, gradient), rtol=0, atol=1e-12)


def test_a_row_draws_for_itself():
    model = convnet()
    x, y = examples(model)
    attack = Transfer(surrogate(), steps=2, **EVERYTHING)
    together = outcomes(attack, model, Linf(0.03), x, y)
    for i in (0, 5, 13):
        assert_same(outcomes(attack, model, Linf(0.03), x, y, order=[i]), {i: together[i]})
    other = outcomes(attack, model, Linf(0.03), x, y, seed=1)
    assert any(not torch.equal(other[i].x_adv, together[i].x_adv) for i in range(24))


def test_a_target_is_steered_to():
    model = convnet()
    x, y = examples(model)
    target = (y + 1) % 5
    result = Transfer(surrogate(), steps=5, **EVERYTHING)(model, x, y, threat=Linf(0.2), target=target)
    assert torch.equal(predict(model, result.x_adv) == target, result.success)
    assert result.success.float().mean() > 0.5


def test_what_transfers():
    """A network trained on the same labels from other weights; single steps on it break most of what it sees alike."""
    teacher = convnet()
    x = uniform(400, 3, 6, 6, seed=8)
    y = teacher(x).argmax(1)

    def trained(seed):
        net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 64), nn.ReLU(), nn.Linear(64, 5)), seed)
        optimiser = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(80):
            optimiser.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimiser.step()
        return net

    mine, theirs = trained(1), trained(2)
    batch = slice(0, 100)
    result = Transfer(mine)(theirs, x[batch], y[batch], threat=Linf(0.08))
    noise = (x[batch] + 0.08 * (2 * uniform(100, 3, 6, 6, seed=5) - 1).sign()).clip(0, 1)
    assert result.success.float().mean() > 0.5
    assert result.success.float().mean() > (predict(theirs, noise) != y[batch]).float().mean() + 0.3
    assert (result.forwards <= 3).all()
    assert not result.backwards.any()


def test_the_surrogate_is_given_back():
    model = convnet()
    x, y = examples(model)
    moody = Moody()
    for settings in ({}, {"scales": 2, "variance": VarianceTuning(samples=1)}):
        before = snapshot(moody)
        flat = uniform(9, 6, seed=2)
        Transfer(moody, steps=2, **settings)(Moody(), flat, torch.tensor([0, 1, 2] * 3), threat=Linf(0.1))
        assert snapshot(moody) == before
    own = convnet().train()
    before = snapshot(own)
    Transfer(own, steps=2)(own, x, y, threat=Linf(0.1))
    assert snapshot(own) == before
    assert own.training


def test_precision_may_differ():
    model = convnet()
    x, y = examples(model)
    for model_dtype, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        result = Transfer(surrogate().to(other), steps=3, **EVERYTHING)(model.to(model_dtype), x, y, threat=Linf(0.05))
        assert result.x_adv.dtype == model_dtype
        assert result.success.sum() > 4


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (no_gradient, "surrogate: no gradient reaches"),
        (lambda: Answering(lambda m, x: m.logits(x).softmax(1)), "surrogate: the model returns probabilities"),
        (lambda: mlp(6, 4), "surrogate: it returns 4 logits, but the model under attack 3"),
        (lambda: mlp(7, 3), "surrogate: the model failed on an input batch"),
    ],
)
def test_surrogates_that_will_not_do(bad, says):
    x, model = uniform(5, 6), mlp(6, 3)
    with pytest.raises(ModelError, match=says):
        Transfer(bad())(model, x, predict(model, x), threat=Linf(0.1))


@pytest.mark.parametrize("settings", [{"diversity": Diversity()}, {"kernel": TranslationKernel()}])
def test_only_images_are_resized_and_smoothed(settings):
    with pytest.raises(SettingError, match=r"transfer: diversity and kernel are for images .* not .* \(6,\)"):
        Transfer(mlp(), **settings)(mlp(), uniform(3, 6), torch.tensor([0, 1, 2]), threat=Linf(0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Transfer(mlp(), steps=0),
        lambda: Transfer(mlp(), scales=0),
        lambda: Transfer(mlp(), step_size=0.0),
        lambda: Transfer(mlp(), decay=-1.0),
        lambda: Diversity(probability=1.5),
        lambda: Diversity(smallest=0.0),
        lambda: TranslationKernel(size=4),
        lambda: TranslationKernel(deviations=0.0),
        lambda: VarianceTuning(samples=0),
        lambda: VarianceTuning(radius=0.0),
    ],
)
def test_settings_that_make_no_sense(make):
    with pytest.raises(SettingError, match="transfer: "):
        make()
