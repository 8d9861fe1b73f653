"""Models that read whole numbers: the gradient at their embedding, however they look their input up."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.attacks import snapshot
from helpers.zoo import Counting, seeded
from holdfast.errors import DataError, ModelError
from holdfast.models import BPDA, Query
from holdfast.models.embedding import Lookups

WORDS, LENGTH, WIDTH, CLASSES = 11, 6, 4, 3


def words(count, *shape, seed=0, most=WORDS):
    return torch.randint(0, most, (count, *(shape or (LENGTH,))), generator=torch.Generator().manual_seed(seed))


class Reader(nn.Module):
    """Logits that are linear in what a function looks up: ``(N, L, D)`` or anything else of as many numbers a row."""

    def __init__(self, look, numbers=LENGTH * WIDTH):
        super().__init__()
        self.look = look
        self.embed = seeded(lambda: nn.Embedding(WORDS, WIDTH).double())
        self.bag = seeded(lambda: nn.EmbeddingBag(WORDS, WIDTH, mode="mean").double())
        self.other = seeded(lambda: nn.Embedding(40, WIDTH).double(), 1)
        self.position = seeded(lambda: nn.Embedding(20, WIDTH).double(), 2)
        self.register_buffer("vocabulary", torch.arange(WORDS).flip(0))
        self.head = seeded(lambda: nn.Linear(numbers, CLASSES).double(), 3)

    def forward(self, x):
        return self.head(self.look(self, x).flatten(1))


def by_steps(m, x):
    return torch.stack([m.embed(step) for step in x.t()], 1)


def in_place(m, x):
    found = m.embed(x)
    found *= 2
    return found


def frozen(m, x):
    with torch.no_grad():
        return m.embed(x)


def with_positions(m, x):
    return m.embed(x) + m.position(torch.arange(x.shape[1]).expand_as(x))


def with_counted_positions(m, x):
    there = x.ne(0).int()
    return m.embed(x) + m.position(there.cumsum(1) * there + torch.zeros_like(x))


def shifted_by_column(m, x):
    return m.other(x + torch.arange(x.shape[1]) * 5)


def with_a_start(m, x):
    start = torch.full_like(x[:, :1], WORDS - 1)
    return m.embed(torch.cat([start, x], 1))


# name -> (what looks words up, numbers a row behind it, whether it says the rows of `embed` and nothing else)
WAYS = {
    "module": (lambda m, x: m.embed(x), 24, True),
    "function": (lambda m, x: functional.embedding(x, m.embed.weight), 24, True),
    "by name": (lambda m, x: functional.embedding(weight=m.embed.weight, input=x), 24, True),
    "torch": (lambda m, x: torch.embedding(m.embed.weight, x), 24, True),
    "index": (lambda m, x: m.embed.weight[x], 24, True),
    "index in a tuple": (lambda m, x: m.embed.weight[(x,)], 24, True),
    "index select": (lambda m, x: m.embed.weight.index_select(0, x.reshape(-1)).view(len(x), -1), 24, True),
    "scaled table": (lambda m, x: functional.embedding(x, m.embed.weight * 1.0), 24, True),
    "long": (lambda m, x: m.embed(x.long()), 24, True),
    "transposed": (lambda m, x: m.embed(x.t()).transpose(0, 1), 24, True),
    "transposed and viewed": (
        lambda m, x: m.embed((x.t() + 0).contiguous().view(-1)).view(6, -1, 4).transpose(0, 1), 24, True),
    "flat": (lambda m, x: m.embed(x.view(-1)).view(len(x), -1), 24, True),
    "split": (lambda m, x: torch.cat([m.embed(part) for part in x.split([2, 4], 1)], 1), 24, True),
    "steps": (by_steps, 24, True),
    "in place": (in_place, 24, True),
    "no grad": (frozen, 24, True),
    "positions": (with_positions, 24, True),
    "counted positions": (with_counted_positions, 24, True),
    "types": (lambda m, x: m.embed(x) + m.other(torch.zeros_like(x)), 24, True),
    "start": (with_a_start, 28, True),
    "padded": (lambda m, x: m.embed(functional.pad(x, (1, 2), value=3)), 36, True),
    "twice": (lambda m, x: torch.cat([m.embed(x), m.embed(x) ** 1], 1), 48, True),
    "circular": (lambda m, x: torch.cat([m.embed(x), functional.pad(x, (1, 1), mode="circular").double()[..., None]
                                         .expand(-1, -1, 4) * 0], 1), 56, True),
    "reversed": (lambda m, x: m.embed(x.flip(1)), 24, True),
    "some": (lambda m, x: m.embed(x[:, 1:4]), 12, False),
    "some twice": (lambda m, x: m.embed(x[:, [0, 1, 1, 5]]), 16, False),
    "two tables": (lambda m, x: torch.cat([m.embed(x), m.other(x)], 2), 48, False),
    "two numbers of each": (lambda m, x: m.other(x * 3) + m.other(x + 1), 24, False),
    "by keywords": (lambda m, x: torch.cat(tensors=[m.embed(x), m.embed(torch.flatten(input=x, start_dim=1))], dim=1),
                    48, False),
    "counted up in place": (lambda m, x: m.other(x) + m.other(x.add_(1)) + m.other(x.add_(1)), 24, False),
    "shifted": (shifted_by_column, 24, False),
    "remainder": (lambda m, x: m.embed((x + 3) % WORDS), 24, False),
    "rare words": (lambda m, x: m.embed(torch.where(x > 7, 1, x)), 24, False),
    "masked": (lambda m, x: m.embed(x.masked_fill(x == 2, 0)), 24, False),
    "vocabulary": (lambda m, x: m.embed(m.vocabulary[x]), 24, False),
    "numbers": (lambda m, x: m.embed.weight[:, 0][x], 6, False),
    "bag": (lambda m, x: m.bag(x), 4, False),
    "weighted bag": (lambda m, x: functional.embedding_bag(
        x, m.embed.weight, mode="sum", per_sample_weights=torch.linspace(1, 2, 6).double().expand(x.shape)), 4, True),
    "bag with offsets": (lambda m, x: m.bag(x.view(-1), torch.arange(0, x.numel(), 6)), 4, False),
    "one hot": (lambda m, x: functional.one_hot(x, WORDS).double() @ m.embed.weight, 24, False),
    "one hot, channels first": (
        lambda m, x: (functional.one_hot(x, WORDS).permute(0, 2, 1).to(m.embed.weight).mT @ m.embed.weight), 24, False),
}  # fmt: skip


def ask(model, x, objective=lambda z: z[:, 0], **settings):
    with Query(model, batch_size=8, **settings) as query:
        query.bare_logits(x)
        return query.gradient(x, objective)


@pytest.mark.parametrize("way", WAYS)
class TestWays:
    def test_the_gain_of_other_words_is_exact_where_the_model_is_linear_behind(self, way):
        look, numbers, _ = WAYS[way]
        # Where words are counted, 0 is none.
        model, x = Reader(look, numbers), words(5).clamp_min(1)
        with Query(model, batch_size=8) as query:
            query.bare_logits(x)
            logits, grad = query.jacobian(x)
            old = query.embedded(x)
            assert grad.shape == (5, CLASSES, LENGTH, old.shape[-1])
            for seed in range(1, 4):
                other = words(5, seed=seed).clamp_min(1)
                gain = (grad * (query.embedded(other) - old).unsqueeze(1)).flatten(2).sum(2)
                torch.testing.assert_close(logits + gain, query.logits(other))

    def test_it_changes_no_answer(self, way):
        look, numbers, _ = WAYS[way]
        model, x = Reader(look, numbers), words(5)
        answer = ask(model, x)
        assert torch.equal(answer.logits, ask(model, x).logits)
        torch.testing.assert_close(answer.logits, model(x).detach(), rtol=0, atol=0)

    def test_what_is_found(self, way):
        look, numbers, plain = WAYS[way]
        model, x = Reader(look, numbers), words(5)
        with Query(model, batch_size=8) as query:
            found = query.embedded(x)
            assert (query.forwards, query.backwards) == (5, 0)
        if plain:
            assert torch.equal(found, model.embed.weight[x].detach())


class TestGroundTruth:
    def test_embedding_and_linear(self):
        model = Reader(WAYS["module"][0])
        grad = ask(model, words(5), lambda z: z[:, 1]).grad
        assert torch.equal(grad, model.head.weight[1].detach().view(1, LENGTH, WIDTH).expand(5, -1, -1))

    def test_a_word_that_is_padding_counts_for_nothing_in_a_bag(self):
        bag = seeded(lambda: nn.EmbeddingBag(WORDS, WIDTH, mode="mean", padding_idx=0).double())
        model = nn.Sequential(bag, seeded(lambda: nn.Linear(WIDTH, CLASSES).double()))
        x = words(5)
        x[:, 2] = 0
        with Query(model, batch_size=8) as query:
            grad = query.gradient(x, lambda z: z[:, 0]).grad
            assert torch.equal(query.embedded(x), bag.weight[x].detach())
        share = (x != 0) / (x != 0).sum(1, keepdim=True)
        torch.testing.assert_close(grad, share.unsqueeze(2) * model[1].weight[0].detach())

    def test_bag_of_largest(self):
        bag = seeded(lambda: nn.EmbeddingBag(WORDS, WIDTH, mode="max").double())
        model = nn.Sequential(bag, seeded(lambda: nn.Linear(WIDTH, CLASSES).double()))
        x = torch.stack([torch.randperm(WORDS, generator=torch.Generator().manual_seed(i))[:LENGTH] for i in range(5)])
        rows = bag.weight[x].detach().requires_grad_(True)
        (expected,) = torch.autograd.grad(model[1](rows.amax(1))[:, 0].sum(), rows)
        torch.testing.assert_close(ask(model, x).grad, expected)

    def test_one_hot_codes_are_their_own_table(self):
        look, numbers, _ = WAYS["one hot"]
        model, x = Reader(look, numbers), words(5)
        with Query(model, batch_size=8) as query:
            assert torch.equal(query.embedded(x), functional.one_hot(x, WORDS).double())
            grad = query.gradient(x, lambda z: z[:, 0]).grad
        weights = model.head.weight[0].detach().view(LENGTH, WIDTH)
        torch.testing.assert_close(grad, (weights @ model.embed.weight.T.detach()).expand(5, -1, -1))

    @pytest.mark.parametrize("name", ["recurrent", "attention", "convolutions"])
    def test_finite_differences(self, name):
        model, x = NETS[name]().double(), words(4)
        with Query(model, batch_size=4) as query:
            query.bare_logits(x)
            grad = query.gradient(x, lambda z: z[:, 0].sin()).grad
            found = query.embedded(x)
        step = 1e-5 * torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ends = []
        for sign in (1, -1):
            with torch.no_grad(), Lookups(x, found + sign * step):
                ends.append(model.eval()(x)[:, 0].sin())
        torch.testing.assert_close((ends[0] - ends[1]) / 2, (grad * step).flatten(1).sum(1), rtol=1e-6, atol=1e-12)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cells, self.head = (
            nn.Embedding(WORDS, 8),
            nn.GRU(8, 8, batch_first=True),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x):
        return self.head(self.cells(self.embed(x))[0][:, -1])


class Attention(nn.Module):
    """With positions, a mask of padding, and words that are told apart by the embedding itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(WORDS, 8), nn.Embedding(LENGTH, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x):
        h = self.embed(x) + self.position(torch.arange(x.shape[1], device=x.device))
        h = self.layer(h, src_key_padding_mask=x == 0)
        return (h.mean(1) @ self.embed.weight.T)[:, :CLASSES]


NETS = {
    "recurrent": lambda: seeded(Recurrent),
    "attention": lambda: seeded(Attention),
    "convolutions": lambda: seeded(
        lambda: nn.Sequential(
            nn.Embedding(WORDS, 8), nn.Conv1d(LENGTH, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)
        )
    ),
    "bag": lambda: seeded(lambda: nn.Sequential(nn.EmbeddingBag(WORDS, 8), nn.Tanh(), nn.Linear(8, CLASSES))),
}


@pytest.mark.parametrize("net", NETS)
class TestNetworks:
    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_a_row_is_the_same_in_any_place_and_company(self, net, batch_size):
        x = words(64)
        with Query(NETS[net](), batch_size=batch_size) as query:
            bare = query.bare_logits(x)
            alone = [query.gradient(row, lambda z: z.sin().sum(1)) for row in x.split(1)]
            for seed in range(4):
                order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
                assert torch.equal(query.bare_logits(x[order]), bare[order])
                some = order[: min(batch_size, 1 + 9 * seed)]
                together, logits = query.gradient(x[some], lambda z: z.sin().sum(1)), query.logits(x[some])
                _, jacobian = query.jacobian(x[some])
                assert jacobian.shape == (len(some), CLASSES, LENGTH, 8)
                for position, i in enumerate(some.tolist()):
                    assert torch.equal(together.logits[position], alone[i].logits[0])
                    assert torch.equal(together.grad[position], alone[i].grad[0])
                    assert torch.equal(logits[position], alone[i].logits[0])

    def test_the_model_and_the_random_state_are_given_back(self, net):
        model = NETS[net]().train()
        before, state = snapshot(model), torch.get_rng_state()
        ask(model, words(5))
        assert snapshot(model) == before
        assert all(module.training for module in model.modules())
        assert torch.equal(torch.get_rng_state(), state)

    def test_probabilities_are_refused(self, net):
        for size in (1, 5):
            with pytest.raises(ModelError, match="remove its final softmax"):
                ask(nn.Sequential(NETS[net](), nn.Softmax(1)), words(size))


@pytest.mark.parametrize("net", ["attention", "convolutions"])
def test_exported_programs(net):
    model, x = NETS[net]().eval(), words(8)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    torch.testing.assert_close(ask(exported, x).grad, ask(model, x).grad)


def test_independent_probabilities_are_refused():
    with pytest.raises(ModelError, match="remove its final sigmoid"):
        ask(nn.Sequential(NETS["convolutions"](), nn.Sigmoid()), words(5))


def test_one_small_logit_is_one():
    model = nn.Sequential(NETS["convolutions"](), seeded(lambda: nn.Linear(CLASSES, 1)))
    with torch.no_grad():
        model[1].weight *= 1e-3
        model[1].bias.fill_(0.5)
    assert ask(model, words(5)).logits.shape == (5, 2)


class TestTypes:
    @pytest.mark.parametrize("given", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8])
    def test_whole_numbers_reach_the_model_as_they_are(self, given):
        seen = set()

        def look(m, x):
            seen.add(x.dtype)
            return m.embed(x.long())

        model, x = Reader(look), words(5)
        assert torch.equal(ask(model, x.to(given)).grad, ask(Reader(WAYS["module"][0]), x).grad)
        assert seen == {given}

    def test_truth_values(self):
        model = Reader(lambda m, x: m.embed(x.long()))
        x = words(5, most=2).bool()
        assert torch.equal(ask(model, x).grad, ask(model, x.long()).grad)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_gradients_are_in_the_precision_of_the_query(self, dtype):
        model = Reader(WAYS["module"][0]).to(dtype)
        outside = torch.float64 if dtype == torch.float64 else torch.float32
        with Query(model, batch_size=8) as query:
            assert query.bare_logits(words(5)).dtype == outside
            assert query.embedded(words(5)).dtype == outside
            assert query.gradient(words(5), lambda z: z[:, 0]).grad.dtype == outside
            assert query.jacobian(words(5))[1].dtype == outside
            assert query.prepare(words(5)).dtype == torch.int64

    @pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 6, 1), (2, 1, 3, 1)])
    def test_shapes(self, shape):
        model, x = Reader(WAYS["module"][0]), words(5, *shape)
        with Query(model, batch_size=8) as query:
            query.bare_logits(x)
            assert query.gradient(x, lambda z: z[:, 0]).grad.shape == (5, *shape, WIDTH)
            assert query.jacobian(x)[1].shape == (5, CLASSES, *shape, WIDTH)

    def test_padding_is_counted_nowhere_and_made_of_known_words(self):
        seen = []

        def look(m, x):
            seen.append(x)
            return m.embed(x)

        model, x = Counting(Reader(look)), words(5) % 3 + 7
        with Query(model, batch_size=8) as query:
            query.bare_logits(x)
            query.gradient(x[:1], lambda z: z[:, 0])
            assert (query.forwards, query.backwards) == (6, 1)
        assert all(bool(((part >= 7) & (part <= 9)).all()) for part in seen)

    def test_no_column_is_asked_for_what_others_know(self):
        """Columns of a table have categories of their own, and a GPU does not survive an index out of range."""
        most = torch.tensor([2, 3, 11, 2, 5, 2])
        x = words(40) % most
        low, high = x.amin(0), x.amax(0)

        def look(m, x):
            assert bool(((x >= low) & (x <= high)).all())
            return m.embed(x)

        ask(Reader(look), x[:8])
        with Query(Reader(look)) as query:
            query.bare_logits(x)


class TestRefusals:
    @pytest.mark.parametrize(
        "look",
        [
            lambda m, x: m.embed(x) - m.embed(x).mean(0),
            lambda m, x: m.embed(x.sort(0).values),
            lambda m, x: m.embed(x) * (x == x.max()).unsqueeze(2),
            lambda m, x: m.embed(x.roll(1, 0)),
            lambda m, x: m.embed(x[:1]).expand(len(x), -1, -1) + m.embed(x),
        ],
        ids=["mean", "sorted", "largest", "rolled", "first"],
    )
    def test_rows_that_depend_on_others(self, look):
        with pytest.raises(ModelError, match=r"depends on (the other rows|its place)"), Query(Reader(look)) as query:
            query.bare_logits(words(20))

    def test_a_model_that_looks_nothing_up_can_be_asked_for_logits_alone(self):
        model, x = Reader(lambda m, x: x.double().repeat(1, 4)), words(5)
        with Query(model, batch_size=8) as query:
            torch.testing.assert_close(query.bare_logits(x), model(x).detach())
            for refused in (lambda: query.gradient(x, lambda z: z[:, 0]), lambda: query.jacobian(x)):
                with pytest.raises(ModelError, match=r"reads whole numbers \(torch.int64\).*look the input itself up"):
                    refused()
            with pytest.raises(ModelError, match=r"none of them was seen to be looked up"):
                query.embedded(x)

    def test_positions_are_no_words(self):
        model, x = Reader(lambda m, x: m.position(torch.zeros_like(x).cumsum(1)) * (x > 3).unsqueeze(2)), words(5)
        with pytest.raises(ModelError, match="none of them was seen to be looked up"):
            ask(model, x)

    def test_words_seen_in_pairs_are_no_words(self):
        model, x = Reader(lambda m, x: m.embed((x[:, :-1] + x[:, 1:]) % WORDS), 20), words(5)
        with pytest.raises(ModelError, match="none of them was seen to be looked up"):
            ask(model, x)

    def test_a_gradient_that_is_cut_behind(self):
        with pytest.raises(ModelError, match="no gradient reaches what the model looks up"):
            ask(Reader(lambda m, x: m.embed(x).detach()), words(5))

    def test_a_normalisation(self):
        with pytest.raises(DataError, match="mean/std: the inputs are whole numbers"):
            ask(Reader(WAYS["module"][0]), words(5), mean=(0.5,))

    def test_a_model_of_floating_point_numbers(self):
        with pytest.raises(ModelError, match=r"given torch.int64: give floating point numbers"):
            ask(nn.Linear(6, 3), words(5))

    def test_an_unknown_word(self):
        with pytest.raises(ModelError, match="the model failed on an input batch"):
            ask(Reader(WAYS["module"][0]), words(5) + WORDS)


def test_a_table_whose_rows_are_shortened_is_given_back():
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH, max_norm=0.5), nn.Flatten(), nn.Linear(24, 3))
    before = copy.deepcopy(model.state_dict())
    with Query(model, batch_size=8) as query:
        query.bare_logits(words(5))
        assert float(query.embedded(words(5)).norm(dim=2).max()) <= 0.5
        query.gradient(words(5), lambda z: z[:, 0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_pass_parts_that_have_none():
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), BPDA(torch.round), nn.Flatten(), seeded(lambda: nn.Linear(24, 3)))
    grad = ask(model, words(5)).grad
    torch.testing.assert_close(grad, model[3].weight[0].detach().view(LENGTH, WIDTH).expand(5, -1, -1))


def test_no_words_at_all():
    with Query(Reader(WAYS["module"][0]), batch_size=8) as query:
        query.bare_logits(words(5))
        assert query.gradient(words(0), lambda z: z[:, 0]).grad.shape == (0, LENGTH, WIDTH)
