"""Which state dict of a checkpoint goes into a module, and under which names."""

import pytest
import torch
from torch import nn

from holdfast.errors import ModelError
from holdfast.models import load_model, load_weights


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


WANT, AVERAGE = net(1).state_dict(), net(2).state_dict()


@pytest.fixture
def save(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "w.pt")
        return tmp_path / "w.pt"

    return write


def same(module, want=WANT):
    found = module.state_dict()
    return found.keys() == want.keys() and all(found[key].equal(want[key]) for key in want)


def refused(path, module=None, **settings):
    module = net() if module is None else module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_model(module, path, **settings)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value), before, module


PREFIXES = ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.", "module.module.", "model.", "net.body."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_all_names_share(save, prefix):
    assert same(load_model(net(), save(prefixed(prefix, WANT))))
    assert same(load_model(net(), save({"state_dict": prefixed(prefix, WANT), "epoch": 3})))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: torch.compile(n, backend="eager"), nn.Sequential])
def test_a_prefix_that_the_module_has_instead(save, wrap):
    module = wrap(net())
    assert load_model(module, save(WANT)) is module
    assert all(value.equal(want) for value, want in zip(module.state_dict().values(), WANT.values(), strict=True))


def test_parts_that_were_compiled_on_their_own(save):
    part = net(1)
    part[0] = torch.compile(part[0], backend="eager")
    assert "0._orig_mod.weight" in part.state_dict()
    assert same(load_model(net(), save(part.state_dict())))
    fresh = net()
    fresh[0] = torch.compile(fresh[0], backend="eager")
    load_model(fresh, save(WANT))
    assert fresh[0].weight.equal(WANT["0.weight"])


KEYS = ["net", "model", "state_dict", "model_state_dict", "weights", "params", "module", "network"]
KEYS += ["generator", "ema", "state_dict_ema", "backbone"]


@pytest.mark.parametrize("key", KEYS)
def test_the_only_state_dict_is_taken_whatever_its_key(save, key):
    assert same(load_model(net(), save({key: WANT, "acc": 91.2, "epoch": 5})))
    assert same(load_model(net(), save({key: {"state_dict": WANT}, "epoch": 5})))
    assert load_weights(save({key: WANT})).keys() == WANT.keys()


def test_a_whole_training_script_is_looked_through(save):
    trained = net(1)
    learning = torch.optim.Adam(trained.parameters())
    trained(torch.rand(4, 1, 4, 4)).sum().backward()
    learning.step()
    content = {"model": trained.state_dict(), "optimizer": learning.state_dict(), "rng": {"cpu": torch.get_rng_state()}}
    path = save(content)
    assert same(load_model(net(), path), trained.state_dict())
    assert load_weights(path).keys() == WANT.keys()


def test_shapes_and_names_tell_which_is_meant(save):
    other = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3)).state_dict()
    path = save({"generator": other, "discriminator": WANT, "critic": nn.Linear(2, 2).state_dict()})
    assert same(load_model(net(), path))
    with pytest.raises(ModelError, match="generator, discriminator, critic; name one with --weights-key"):
        load_weights(path)


AVERAGES = [
    ("model", "ema"),
    ("state_dict", "state_dict_ema"),
    ("net", "model_ema"),
    ("params", "params_ema"),
    ("a", "b"),
]


@pytest.mark.parametrize(("weights", "average"), AVERAGES)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_and_their_average_are_not_chosen_between(save, weights, average, prefix):
    path = save({weights: WANT, average: prefixed(prefix, AVERAGE), "epoch": 3})
    text, before, module = refused(path)
    assert same(module, before)
    assert f"holds 2 state dicts that may be meant, {weights}, {average}; name one with --weights-key" in text
    assert same(load_model(net(), path, weights_key=weights))
    assert same(load_model(net(), path, weights_key=average), AVERAGE)
    with pytest.raises(ModelError, match=f"{weights}, {average}"):
        load_weights(path)
    assert load_weights(path, average)["0.weight"].equal(AVERAGE["0.weight"])


def test_the_average_of_torch_is_one_too(save):
    average = torch.optim.swa_utils.AveragedModel(net(2)).state_dict()
    assert "n_averaged" in average
    assert same(load_model(net(), save({"ema": average})), AVERAGE)
    text, _, _ = refused(save({"model": WANT, "ema": average}))
    assert "model, ema" in text


def test_two_names_of_the_same_weights_are_no_choice(save):
    assert same(load_model(net(), save({"model": WANT, "ema": dict(WANT)})))


def test_keys_that_lead_nowhere(save):
    path = save({"model": {"state_dict": WANT}, "epoch": 3})
    assert same(load_model(net(), path, weights_key="model/state_dict"))
    assert same(load_model(net(), path, weights_key="model"))
    assert (
        "nothing lies under the key ema; state dicts lie under model/state_dict" in refused(path, weights_key="ema")[0]
    )
    assert "nothing lies under the key model/ema" in refused(path, weights_key="model/ema")[0]
    assert "holds a int, not a state dict" in refused(path, weights_key="epoch")[0]
    assert "nothing lies under the key x; state dicts lie under none" in refused(save([1, 2]), weights_key="x")[0]
    assert "nothing lies under the key x" in refused(save(WANT), weights_key="x")[0]
    with pytest.raises(ModelError, match=r"^weights_key: ema names a part of a file of weights; give the file"):
        load_model(net(), weights_key="ema")


def test_half_of_a_model_is_a_misfit(save):
    assert "1 missing: 3.bias" in refused(save({k: v for k, v in WANT.items() if k != "3.bias"}))[0]
    assert "1 unexpected: extra" in refused(save(WANT | {"extra": torch.ones(1)}))[0]
    # A model and its average side by side in one flat state dict share no prefix.
    assert "unexpected" in refused(save(prefixed("model.", WANT) | prefixed("ema.", AVERAGE)))[0]
    # Other names are other layers, even where shapes agree.
    renamed = {key.replace("3.", "fc."): value for key, value in WANT.items()}
    assert "2 missing: 3.weight, 3.bias; 2 unexpected: fc.weight, fc.bias" in refused(save(renamed))[0]


def test_files_from_before_batch_norm_counted(save):
    early = {key: value for key, value in WANT.items() if "num_batches" not in key}
    assert load_model(net(), save(prefixed("model.", early)))[3].weight.equal(WANT["3.weight"])


class Renaming(nn.Module):
    """Reads files whose names are not its own."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def load_state_dict(self, state):
        return self.inner.load_state_dict({key.removeprefix("old."): value for key, value in state.items()})


@pytest.mark.parametrize("prefix", ["", "old."])
def test_a_module_that_knows_other_names_is_asked_first(save, prefix):
    assert same(load_model(Renaming(), save(prefixed(prefix, WANT))).inner)


def test_names_that_break_lines_do_not_break_the_message(save):
    refused(save({"0\nweight": torch.ones(1)}))
    assert "a b, c d" in refused(save({"a\nb": WANT, "c\nd": AVERAGE}))[0]
    assert "a b" in refused(save({"a\nb": 3}))[0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**12,), check_invariants=True),
        torch.empty(10**12, device="meta"),
    ],
    ids=["sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_their_numbers(save, tensor):
    assert "0.weight is a sparse, quantised or empty tensor" in refused(save(WANT | {"0.weight": tensor}))[0]


def test_a_file_that_says_one_thing_many_times_is_read_in_no_time(save):
    inner = {f"k{number}": 0 for number in range(1000)}
    outer = {f"k{number}": inner for number in range(1000)}
    content = {f"k{number}": outer for number in range(1000)}
    assert "values, written out" in refused(save(content))[0]
