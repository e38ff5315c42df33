"""python -m pytest tests/test_model_module.py

Any torch module as a network: its layers, the gradients of all methods, and the same bits in every pack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from lora_exp.adapters.adapted import AdaptedClassifier
from lora_exp.adapters.initialisation import Factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, adapter_plan
from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.architecture import Network
from lora_exp.model.base import BaseModel, network, plain_module
from lora_exp.model.data import Images, Split
from lora_exp.model.module import ModuleNetwork
from lora_exp.numerics import ANY_PACK, SAME_PACK, generator, on_threads
from lora_exp.training.evaluation import frozen_constants, predict_base, predict_pack
from lora_exp.training.loop import FineTuned, Job, TrainingImages, fine_tune
from lora_exp.training.probe import promise_of

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
GREY = ImageFacts((1, 20, 28), CLASSES, (0.4,), (0.3,))
COLOUR = ImageFacts((3, 32, 32), CLASSES, (0.4, 0.5, 0.6), (0.3, 0.2, 0.3))


class Attention(nn.Module):
    """Patches, torch's own attention, batch statistics counted before, and an activation with uneven ends."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, (5, 4), (5, 4))
        self.norm = nn.BatchNorm1d(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4, bias=False)
        self.silu = nn.SiLU()
        self.head = nn.Linear(12, 10, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(images).flatten(2)).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        square = self.silu(self.grouped(tokens.transpose(1, 2).unflatten(2, (4, 7))))
        square += tokens.transpose(1, 2).unflatten(2, (4, 7))
        logits: torch.Tensor = self.head(square.mean((2, 3)))
        return logits


class Residual(nn.Module):
    """Convolutions of several strides and paddings, normalised, beside a skip connection that is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 3, "valid", bias=False)
        self.first = nn.Conv2d(8, 12, 3, 2, 1, padding_mode="reflect", bias=False)
        self.second = nn.Conv2d(12, 12, 3, 1, 2, dilation=2)
        self.skip = nn.Conv2d(8, 12, 1, 2)
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (8, 12, 12)))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.relu(self.norms[0](self.stem(images)))
        made = self.norms[2](self.second(self.relu(self.norms[1](self.first(stem)))))
        made += self.skip(stem)
        logits: torch.Tensor = self.fc(self.relu(made).mean((2, 3)))
        return logits


def attention() -> BaseModel:
    return with_counts(ModuleNetwork("attention", Attention, GREY))


def vit() -> BaseModel:
    return with_counts(network(ModelSpec(kind="vit", width=24, blocks=2, heads=3, patch=6), GREY))


def residual() -> BaseModel:
    return with_counts(ModuleNetwork("residual", Residual, COLOUR))


def of_torchvision(name: str) -> BaseModel:
    return with_counts(network(ModelSpec(kind="torchvision", name=name), COLOUR))


def with_counts(form: Network) -> BaseModel:
    """Weights as drawn, and normalisations that have counted something."""
    state, random = form.initial(0), generator("counts")
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(generator=random).mul_(0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=random)
    return BaseModel(form, state)


MODELS = {"attention": attention, "vit": vit, "residual": residual}
FACTS = {"attention": GREY, "vit": GREY, "residual": COLOUR}
METHODS = ("lora", "rslora", "dora", "pissa", "lora_plus", "full", "bitfit", "head", "shift")


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(name: str) -> BaseModel:
    return MODELS[name]()


def split_of(facts: ImageFacts, count: int) -> Split:
    random = generator("pixels")
    pixels = torch.randint(0, 256, (count, facts.pixels), dtype=torch.uint8, generator=random)
    return Split(Images(pixels, facts), torch.randint(0, 10, (count,), generator=random))


def plan_of(base: BaseModel, seed: int, **adapter: object) -> AdapterPlan:
    return adapter_plan(AdapterSpec(**adapter).used(), base.network.layers, seed, (3,))  # type: ignore[arg-type]


def random_factors(plan: AdapterPlan, base: BaseModel) -> Factors:
    """Factors none of which is zero, as training would leave them."""
    [factors] = AdapterPack.initial([plan], base).factors(base.network.layers)
    return {
        key: value + 0.02 * torch.randn(value.shape, generator=generator("factors", key))
        for key, value in factors.items()
    }


def trained(base: BaseModel, data: Split, plans: Sequence[AdapterPlan], batch: int, keep: bool) -> FineTuned:
    """Six steps of a pack, each job with images of its own; with `keep` the frozen prefix is not computed again."""
    cut = base.forward.cut([any(p.layers[at].update != "none" for p in plans) for at in range(len(base.layers))])
    constants = frozen_constants(base, data.images, cut) if keep else None
    orders = [torch.randint(0, len(data.labels), (6, batch), generator=generator("order", p.seed)) for p in plans]
    jobs = [Job(plan, 1e-3, order) for plan, order in zip(plans, orders, strict=True)]
    with on_threads(1):
        return fine_tune(base, jobs, TrainingImages(data.images, data.labels, constants))


def test_the_module_computes_what_torch_computes(name: str, base: BaseModel) -> None:
    images = split_of(FACTS[name], 30).images[:]
    with torch.no_grad():
        expected = plain_module(base)(images.view(-1, *FACTS[name].shape))
    torch.testing.assert_close(base.forward.logits(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_models_of_a_library_compute_what_torch_computes_and_promise_equal_bits(name: str) -> None:
    base, images = of_torchvision(name), split_of(COLOUR, 8).images[:]
    with torch.no_grad():
        expected = plain_module(base)(images.view(-1, *COLOUR.shape))
    torch.testing.assert_close(base.forward.logits(images), expected, rtol=1e-4, atol=1e-4)
    assert promise_of(base, [3], CPU) == ANY_PACK


def test_layers_come_in_the_order_of_their_use_and_attention_has_four() -> None:
    names = [layer.name for layer in attention().network.layers]
    assert names == ["patches", *(f"attention.{part}" for part in ("q", "k", "v", "out_proj")), "head"]
    block = [f"blocks.0.{part}" for part in ("q", "k", "v", "projection", "up", "down")]
    assert [layer.name for layer in vit().network.layers][:7] == ["patches", *block]
    by_name = {layer.name: layer for layer in of_torchvision("resnet18").network.layers}
    assert by_name["layer1.0.conv1"].positions == 8 * 8 and by_name["layer4.1.conv2"].positions == 1
    assert by_name["fc"].positions == 1 and list(by_name)[-1] == "fc"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "rslora"])
def test_gradients_are_those_of_autograd_on_the_explicit_weights(name: str, base: BaseModel, method: str) -> None:
    if name == "attention" and method == "shift":
        with pytest.raises(LoraExpError, match=r"adapter\.method=shift: none of the layers that it trains has a bias"):
            plan_of(base, 0, method=method)
        return
    plan, data = plan_of(base, 0, method=method, rank=2), split_of(FACTS[name], 12)
    factors = random_factors(plan, base)
    images, labels = data.images[:], data.labels
    pack = AdapterPack.of([plan], [factors], base)
    stacks = [stack.requires_grad_() for stack in pack.stacks()]
    with on_threads(1):
        loss = functional.cross_entropy(pack.logits(base, images[None], training=True)[0], labels)
        found = pack.trained(torch.autograd.grad(loss, stacks))[0]

    leaves = {key: value.clone().requires_grad_() for key, value in factors.items()}
    module = plain_module(base)
    explicit = explicit_state(base, plan, leaves)
    logits = functional_call(module, explicit, (images.view(-1, *FACTS[name].shape),))
    expected = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    grads = dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values())), strict=True))
    for own in found:
        layer, layer_plan = base.network.layers[own.layer], plan.layers[own.layer]
        theirs = grads[f"{layer.name}.{own.part}"]
        if own.part == "A":
            theirs = theirs[: layer_plan.rank]
        elif own.part == "B":
            theirs = theirs[:, : layer_plan.rank].T
        elif layer_plan.outputs is not None:
            theirs = theirs[list(layer_plan.outputs)]
        torch.testing.assert_close(own.rows, theirs, rtol=2e-3, atol=1e-5, msg=f"{layer.name}.{own.part}")


def explicit_state(base: BaseModel, plan: AdapterPlan, factors: Factors) -> dict[str, torch.Tensor]:
    """The state dict with the adapter merged, from which autograd reaches the factors."""
    state = {key: tensor.clone() for key, tensor in base.state.items()}
    for layer, own in zip(base.layers, plan.layers, strict=True):
        part = {key.rpartition(".")[2]: value for key, value in factors.items() if key.rpartition(".")[0] == layer.name}
        weight, bias = part.get("weight", layer.weight), part.get("bias", layer.bias)
        if "A" in part:
            weight = weight + own.scaling * part["B"] @ part["A"]
        if "magnitude" in part:
            weight = weight * (part["magnitude"] / weight.detach().norm(dim=1))[:, None]
        rows = slice(None) if layer.shape.rows is None else slice(*layer.shape.rows)
        for key, value in ((layer.shape.weight, weight), (layer.shape.bias, bias)):
            if key is not None:
                whole = state[key].clone()
                whole[rows] = value.view(whole[rows].shape)
                state[key] = whole
    return state


@pytest.mark.parametrize("batch", [1, 7])
def test_a_pack_of_all_methods_has_the_bits_of_each_job_alone(name: str, base: BaseModel, batch: int) -> None:
    data = split_of(FACTS[name], 40)
    methods = [method for method in METHODS if (name, method) != ("attention", "shift")]
    plans = [plan_of(base, seed, method=method, rank=1 + seed % 3) for seed, method in enumerate(methods)]
    plans += [plan_of(base, seed, rank=2) for seed in (20, 21)]
    plans += [dataclasses.replace(plan_of(base, 22, rank=2), dropout=0.3)]
    plans.sort(key=lambda plan: plan.shape)
    whole = trained(base, data, plans, batch, keep=True)
    all_factors = whole.pack.factors(base.network.layers)
    on_test = predict_pack(base, whole.pack, data, None)
    for at, plan in enumerate(plans):
        alone = trained(base, data, [plan], batch, keep=False)
        [factors] = alone.pack.factors(base.network.layers)
        assert torch.equal(alone.losses[0], whole.losses[at]), plan
        assert all(torch.equal(factors[key], all_factors[at][key]) for key in factors), plan
        [predictions] = predict_pack(base, alone.pack, data, None)
        assert torch.equal(predictions.logits, on_test[at].logits), plan


def test_the_promise_is_made_after_a_trial_of_the_whole_module(name: str, base: BaseModel) -> None:
    assert promise_of(base, [1, 7], CPU) == ANY_PACK


def test_the_frozen_prefix_changes_no_bit(name: str, base: BaseModel) -> None:
    data, last = split_of(FACTS[name], 40), base.network.layers[-1].name
    plans = [plan_of(base, seed, rank=2, layers=(last,)) for seed in range(3)]
    cut = base.forward.cut([layer.name == last for layer in base.network.layers])
    assert cut is not None and cut.bytes < 4 * 4096
    kept, anew = (trained(base, data, plans, 7, keep) for keep in (True, False))
    for one, other in zip(*(tuned.pack.factors(base.network.layers) for tuned in (kept, anew)), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    constants = frozen_constants(base, data.images, cut)
    for one, other in zip(
        predict_pack(base, kept.pack, data, constants), predict_pack(base, anew.pack, data, None), strict=True
    ):
        assert torch.equal(one.logits, other.logits)


def test_without_adapters_a_pack_predicts_as_the_base_bit_for_bit(name: str, base: BaseModel) -> None:
    data = split_of(FACTS[name], 40)
    [off] = predict_pack(base, AdapterPack(()), data, None)
    assert torch.equal(off.logits, predict_base(base, data).logits)


def test_training_leaves_every_tensor_of_the_base_as_it_was(name: str, base: BaseModel) -> None:
    before = {key: tensor.clone() for key, tensor in base.state.items()}
    hashed = base.sha256()
    plans = [plan_of(base, 0, method="full"), plan_of(base, 1, method="dora")]
    trained(base, split_of(FACTS[name], 20), plans, 7, keep=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state.items()) and base.sha256() == hashed
    for key in (key for key in before if key.endswith("running_mean")):
        changed = {**base.state, key: base.state[key] + 1e-3}
        assert BaseModel(base.network, changed).sha256() != hashed


def test_a_merged_adapter_classifies_as_the_separate_one(name: str, base: BaseModel) -> None:
    for method in ("lora", "dora", "full"):
        plan = plan_of(base, 0, method=method, rank=2)
        scaling = {layer.name: own.scaling for layer, own in zip(base.layers, plan.layers, strict=True)}
        adapted = AdaptedClassifier(base, random_factors(plan, base), scaling)
        images = split_of(FACTS[name], 30).images[:]
        apart = adapted.logits(images)
        adapted.merge()
        torch.testing.assert_close(adapted.logits(images), apart, rtol=1e-3, atol=1e-3)
        adapted.unmerge()
        assert torch.equal(adapted.logits(images), apart)


def test_a_part_whose_rows_depend_on_others_by_rounding_is_named_in_the_weaker_promise() -> None:
    class Counts(nn.Module):
        """Its result depends on the number of images, by less than the check of a module can see."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(GREY.pixels, 16), nn.Linear(16, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = self.first(images.flatten(1)) * (1 + 1e-6 * len(images))
            logits: torch.Tensor = self.last(hidden)
            return logits

    form = ModuleNetwork("counts", Counts, GREY)
    said = promise_of(BaseModel(form, form.initial(0)), [3], CPU)
    assert said == f"{SAME_PACK} (last depends on other rows)"


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_peft_writes_to_the_base_of_an_attention_and_a_pack_does_not() -> None:
    """docs/methods.md says so of PEFT; the day on which it stops, an attention can be exported."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    data = split_of(GREY, 40)
    base = attention()
    module = plain_module(base)
    with on_threads(1):
        adapted = get_peft_model(module, LoraConfig(r=4, target_modules=["attention"]))  # type: ignore[arg-type]
        adam = torch.optim.Adam((own for own in adapted.parameters() if own.requires_grad), 1e-2)
        for _ in range(20):
            adam.zero_grad()
            images = data.images[:].view(-1, *GREY.shape)
            functional.cross_entropy(adapted(images), data.labels).backward()
            adam.step()
    theirs = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for key, tensor in adapted.state_dict().items()
    }
    changed = {key for key, tensor in base.state.items() if not torch.equal(theirs[key], tensor)}
    assert changed == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert all((theirs[key] - base.state[key]).abs().max() < 1e-5 for key in changed)
    before = base.sha256()
    trained(base, data, [plan_of(base, 0, layers=("attention.*",), rank=4)], 7, keep=True)
    assert base.sha256() == before


class Tripled(nn.Linear):
    """A linear layer with a way of its own to compute."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * -3


class Named(nn.Module):
    """Calls a layer by the name of its argument, and holds one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(GREY.pixels, 10), nn.Linear(GREY.pixels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        logits: torch.Tensor = self.head(input=flat) * (self.gate(flat) > 0)
        return logits


def test_a_layer_with_a_way_of_its_own_stays_torchs_own() -> None:
    form = ModuleNetwork("own", lambda: nn.Sequential(nn.Flatten(), nn.Linear(GREY.pixels, 16), Tripled(16, 10)), GREY)
    assert [layer.name for layer in form.layers] == ["1"]
    base, images = BaseModel(form, form.initial(0)), split_of(GREY, 9).images[:]
    with torch.no_grad():
        torch.testing.assert_close(base.forward.logits(images), plain_module(base)(images.view(-1, *GREY.shape)))


def test_a_layer_that_no_gradient_reaches_trains_to_nothing() -> None:
    form = ModuleNetwork("named", Named, GREY)
    base, data = BaseModel(form, form.initial(0)), split_of(GREY, 20)
    tuned = trained(base, data, [plan_of(base, 0, rank=1)], 7, keep=True)
    [factors] = tuned.pack.factors(form.layers)
    assert not factors["gate.B"].any() and factors["head.B"].any()
