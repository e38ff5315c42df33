"""Any torch module that classifies images, as a network: its layers found by a trial pass, and swapped for a pack.

Shapes: P jobs, N images, I values of an image, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from lora_exp.config.images import ImageFacts
from lora_exp.errors import LoraExpError, in_words
from lora_exp.model import swapped
from lora_exp.model.architecture import Apply, Constants, Cut, Layer, LayerShape, State, StateShape, layer_of
from lora_exp.model.builders import shown_shape
from lora_exp.model.learner import ModuleLearner
from lora_exp.model.parts import ATTENTION, attention_shapes, frozen_layer, is_plain, shapes_of
from lora_exp.model.prefix import find_cut, not_numbers
from lora_exp.numerics import generator

log = logging.getLogger(__name__)

Calls = dict[str, list[tuple[Any, Any]]]  # by the name of a part: inputs and output of each call
TRIAL = 4  # images of the trial passes


class ModuleNetwork:
    """The network of a module that `make` builds; `name` stands for it in messages."""

    def __init__(self, name: str, make: Callable[[], nn.Module], facts: ImageFacts) -> None:
        """Raises LoraExpError for a module that is no classifier of such images, or that mixes images."""
        self.name, self._make, self.facts = name, make, facts
        self.skeleton = _seeded(make, 0)
        # Where torch takes its fast path, parts of a transformer are not called.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            self._check()
            self._find_layers()
            self._check_swapped()
        except LoraExpError:
            raise
        except Exception as error:
            raise LoraExpError(
                f"model.name={name}: can't take images of {shown_shape(facts)} ({in_words(error)}); "
                "data.size and data.channels change the images"
            ) from error

    def constant(self, first: int) -> int:
        """All layers before the first that is adapted."""
        return first

    def shaped(self, images: torch.Tensor) -> torch.Tensor:
        """Images [..., I] as torch's modules take them: [N, channels, height, width]."""
        return images.reshape(-1, *self.facts.shape)

    def initial(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw the weights as the module itself does, from a seed of their own."""
        return {key: tensor.detach() for key, tensor in _seeded(self._make, seed).state_dict().items()}

    def forward(self, state: State, layers: Sequence[Layer]) -> ModuleForward:
        """The passes with these weights."""
        return ModuleForward(self, state, layers)

    def learner(self, state: State, only_head: bool) -> ModuleLearner:
        """What trains a copy of these weights."""
        module = self.with_state({key: tensor.clone() for key, tensor in state.items()})
        head = {self.layers[-1].weight, self.layers[-1].bias}
        return ModuleLearner(self.name, module, self.shaped, head if only_head else None)

    def module(self, state: State) -> nn.Module:
        """The module; takes normalised images [N, channels, height, width]."""
        module = copy.deepcopy(self.skeleton)
        module.load_state_dict(self._versioned(state))
        return module.eval()

    def with_state(self, state: State) -> nn.Module:
        """A module that shares the memory of these weights, on their device."""
        own: Iterable[torch.Tensor] = (*self.skeleton.parameters(), *self.skeleton.buffers())
        module = copy.deepcopy(self.skeleton, {id(tensor): tensor for tensor in own})
        module.load_state_dict(self._versioned(state), assign=True)
        return module.to(next(iter(state.values())).device)

    def _versioned(self, state: State) -> dict[str, torch.Tensor]:
        """A state dict that says which versions of the module's parts it is of, as torch's own do."""
        own = self.skeleton.state_dict()
        own.update(state)
        return own

    def _check(self) -> None:
        """Refuse what can't be right for a pack, by name."""
        first: dict[nn.Parameter, str] = {}
        for name, own in self.skeleton.named_modules():
            if isinstance(own, nn.modules.batchnorm._BatchNorm) and own.running_mean is None:
                raise LoraExpError(
                    f"model.name={self.name}: {name} ({type(own).__name__}) normalises with the statistics of a "
                    "batch, so that images change each other's result; it needs track_running_stats=True"
                )
            if isinstance(own, nn.MultiheadAttention) and (own.bias_k is not None or own.add_zero_attn):
                raise LoraExpError(f"model.name={self.name}: {name}: add_bias_kv and add_zero_attn are not supported")
            if hasattr(own, "inplace"):
                own.inplace = False  # a pack's outputs are needed for gradients
            for key, parameter in own.named_parameters(name, recurse=False):
                if parameter.dtype != torch.float32:
                    raise LoraExpError(f"model.name={self.name}: {key} must be float32")
                if (same := first.setdefault(parameter, key)) != key:
                    raise LoraExpError(f"model.name={self.name}: {same} and {key} share their values: not supported")
        self.skeleton.eval().requires_grad_(False)

    def _find_layers(self) -> None:
        """Find the layers in the order of their use, and refuse what is no classifier of single images."""
        images = _trial_images(self.facts)
        logits, together = self._called(images)
        self._check_logits(logits)
        self._check_alone(images, logits, together)
        layers: list[LayerShape] = []
        # What each swapped module computes: the layers of it, by number.
        self.of_module: dict[str, tuple[int, ...]] = {}
        self.activations = 0
        for name, calls in together.items():
            own = self.skeleton.get_submodule(name)
            found = shapes_of(name, own, calls[0][0], calls[0][1], TRIAL) if len(calls) == 1 else []
            if found:
                self.of_module[name] = tuple(range(len(layers), len(layers) + len(found)))
                layers += found
                continue
            self.activations += sum(made.numel() // TRIAL for _, made in calls if isinstance(made, torch.Tensor))
        if not layers:
            raise LoraExpError(f"model.name={self.name}: has no linear layer and no convolution to adapt")
        self.layers = tuple(layers)
        kept = dict(self.skeleton.named_parameters(remove_duplicate=False))
        self.state = {
            key: StateShape(tuple(tensor.shape), tensor.dtype, key in kept)
            for key, tensor in self.skeleton.state_dict().items()
        }

    def _called(self, images: torch.Tensor) -> tuple[Any, Calls]:
        """The logits of some images, and the calls of all parts without parts of their own."""
        used: Calls = {}
        names = {own: name for name, own in self.skeleton.named_modules()}
        is_leaf = {own for own in names if not any(own.children()) or isinstance(own, nn.MultiheadAttention)}
        hooks = [
            own.register_forward_hook(lambda own, given, made: used.setdefault(names[own], []).append((given, made)))
            for own in is_leaf
        ]
        try:
            with torch.no_grad():
                return self.skeleton(self.shaped(images)), used
        finally:
            for hook in hooks:
                hook.remove()

    def _check_alone(self, images: torch.Tensor, logits: torch.Tensor, together: Calls) -> None:
        """Refuse a module whose result for an image depends on the others, by the first part that shows it."""
        alone, used = self._called(images[:1])
        turned, _ = self._called(images.flip(0))
        parts = [(name, calls, together.get(name, [])) for name, calls in used.items()]
        parts += [("the logits", [((), alone)], [((), logits)]), ("the logits", [((), turned.flip(0))], [((), logits)])]
        for name, own_calls, calls in parts:
            for (_, own), (_, both) in zip(own_calls, calls, strict=len(own_calls) == len(calls)):
                if isinstance(own, torch.Tensor) and not _is_close(own, both):
                    raise LoraExpError(
                        f"model.name={self.name}: the result for an image depends on the other images of its batch, "
                        f"first in {name}; the batch must be the first dimension (batch_first=True)"
                    )

    def _check_swapped(self) -> None:
        """Refuse a module that is not the same when its parts are computed row by row."""
        images, state = _trial_images(self.facts), self.skeleton.state_dict()
        expected, _ = self._called(images)
        found = ModuleForward(self, state, [layer_of(shape, state) for shape in self.layers]).logits(images)
        is_finite = bool(expected.isfinite().all())  # else weights are refused, by name, where they are read
        if is_finite and not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise LoraExpError(f"model.name={self.name}: has other logits when its layers are computed for a pack")

    def _check_logits(self, logits: Any) -> None:
        classes = len(self.facts.classes)
        if not isinstance(logits, torch.Tensor):
            raise LoraExpError(
                f"model.name={self.name}: returns a {type(logits).__name__}; it must return logits [N, {classes}]"
            )
        if tuple(logits.shape) != (TRIAL, classes):
            shape = ", ".join(["N", *map(str, logits.shape[1:])]) if len(logits) == TRIAL else list(logits.shape)
            raise LoraExpError(f"model.name={self.name}: returns [{shape}]; it must return logits [N, {classes}]")


class ModuleForward:
    """The passes of a module with frozen weights; see `architecture.Forward`."""

    def __init__(self, network: ModuleNetwork, state: State, layers: Sequence[Layer]) -> None:
        self._network = network
        self._module = network.with_state(state).eval().requires_grad_(False)
        swapped.swap_activations(self._module)
        parts = dict(self._module.named_modules())
        below_attention = {
            own for one in parts.values() if isinstance(one, nn.MultiheadAttention) for own in one.modules()
        }
        for name, own in parts.items():
            forward: Callable[..., Any] = own.forward
            # Layers that are used several times in a pass, or never, are not adapted: they have no number.
            ats: tuple[int | None, ...] = network.of_module.get(name) or (None,) * len(ATTENTION)
            of_module = [layers[at] for at in network.of_module.get(name, ())]
            if not any(is_plain(own, kind) for kind in (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                pass  # torch's own
            elif isinstance(own, nn.Conv2d) and own.groups > 1:
                forward = functools.partial(swapped.grouped_convolution, own)
            elif isinstance(own, nn.MultiheadAttention):
                four = of_module or [layer_of(shape, state) for shape in attention_shapes(name, own, (1, 1, 1))]
                forward = functools.partial(swapped.attention, ats, tuple(four), own)
            elif isinstance(own, nn.Linear | nn.Conv2d) and own not in below_attention:
                layer = of_module[0] if of_module else frozen_layer(name, own, state)
                forward = functools.partial(swapped.linear, ats[0], layer)
                if isinstance(own, nn.Conv2d):
                    forward = functools.partial(swapped.convolution, ats[0], layer, own=own)
            # On the instance: a part keeps its class and its attributes, which other parts may ask for.
            own.__dict__["forward"] = functools.partial(swapped.part, name, forward) if name else forward

    @property
    def pixels(self) -> int:
        """I: values of an image."""
        return self._network.facts.pixels

    def shaped(self, images: torch.Tensor) -> torch.Tensor:
        """Images [..., I] as torch's modules take them: [N, channels, height, width]."""
        return self._network.shaped(images)

    def __call__(self, images_PBI: torch.Tensor, apply: Apply, constants: Constants | None = None) -> torch.Tensor:
        """`constants` hold the outputs of the frozen parts; those that nothing else needs are not computed."""
        jobs, known = len(images_PBI), {}
        if constants is not None:
            count = jobs * images_PBI.shape[1]
            for (name, shape), tensor in zip(constants.cut.kept, constants.tensors, strict=True):
                known[name] = tensor.reshape(count, *shape)
            known |= not_numbers(constants.cut.dropped, count, images_PBI.device)
        logits = self.run(swapped.Pass(jobs, apply, known), self._network.shaped(images_PBI))
        return logits.view(jobs, -1, logits.shape[1])

    def run(self, run: swapped.Pass, images: torch.Tensor) -> torch.Tensor:
        """Make one pass."""
        token = swapped.RUNNING.set(run)
        try:
            logits: torch.Tensor = self._module(images)
            return logits
        finally:
            swapped.RUNNING.reset(token)

    def cut(self, adapted: Sequence[bool]) -> Cut | None:
        """The outputs of frozen parts that the rest needs; None where the first layer is adapted already."""
        images = _trial_images(self._network.facts).to(next(self._module.parameters()).device)
        return find_cut(self.run, self._network.shaped(images), adapted)

    def constants(self, images_NI: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, ...]:
        """Compute what is kept of some images; the pass ends there."""
        names = [name for name, _ in cut.kept]
        run = swapped.Pass(1, swapped.frozen_only, trace=[], only=frozenset(names))
        with torch.no_grad(), contextlib.suppress(swapped.Ended):
            self.run(run, self._network.shaped(images_NI))
        found = dict(run.trace or ())
        return tuple(found[name] for name in names)

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """The logits [N, C] without adapters, with the products of a pack."""
        with torch.no_grad():
            return self(images_NI[None], swapped.frozen_only)[0]


def _trial_images(facts: ImageFacts) -> torch.Tensor:
    """Some normalised images [TRIAL, I]."""
    return torch.randn(TRIAL, facts.pixels, generator=generator("trial images"))


def _is_close(alone: torch.Tensor, together: torch.Tensor) -> bool:
    """Whether a part's output for the first image is about the same in a batch; the first rows are that image's."""
    both = together[: len(alone)]
    return torch.allclose(alone, both, rtol=1e-2, atol=1e-3 * float(both.abs().nan_to_num().max()), equal_nan=True)


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("base initialisation", seed).initial_seed())
        return make()
