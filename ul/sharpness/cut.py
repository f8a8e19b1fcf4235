"""What one layer's weights reach: a traced network, cut before that layer, with frozen batch norms folded away."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from ..base import records

SAME = 1e-5  # of the largest output: what rounding may add
NEAR = 1e-3  # of the largest output: what folding batch norms may add in a deep network
MOVED = 0.5  # of a weight's length: how far it is moved to compare parts with the network
Parts = tuple[Callable[[Tensor], tuple[Any, ...]], nn.Module]  # head and tail of a network
Fold = tuple[nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]  # a convolution that stands for the other two


class Cuts:
    """The graph of one network and its parts at every layer: made at the first call, brought up to date at later ones.

    Between calls its weights and statistics may change, not its modules (the network is compared again each time).
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.graph: fx.GraphModule | None = None
        self.made: dict[str, tuple[Parts, list[Fold]] | None] = {}

    def at(self, model: nn.Module, layer: str, images: Tensor) -> Parts:
        """(head, tail) with tail(*head(x)) = model(x); what `layer` does not reach is in the head, and only there.

        layer: a name in model.named_modules(). The tail holds the layer itself and frozen copies of the rest of what it
        reaches, each batch norm folded into the convolution before it, so it is right as long as only that layer
        changes. It is compared with the whole network on `images`, with the weight as it is and moved at random; where
        they differ (the weight is read elsewhere as well, a hook changes what is folded), where the layer is never
        called as a module, and without a graph the head is the identity and the tail the whole model, with a line in
        the log.
        """
        if model is not self.model:
            self.model, self.graph, self.made = model, traced(model, images), {}
        if self.graph is None:
            return _whole(model)
        if layer not in self.made:
            self.made[layer] = _parts(model, self.graph, layer)
        found = self.made[layer]
        if found is None:
            return _whole(model)
        parts, folds = found
        try:
            for fold in folds:
                _refold(*fold)
            far = _apart(parts, model, cast(Tensor, model.get_submodule(layer).weight), images)
        except Exception as error:  # parts of a network that does what a graph cannot hold
            records.note(f"SAL takes the whole network for {layer}: its parts do not run ({records.reason(error)})")
            return _whole(model)
        if not far <= NEAR:  # NaN among them
            records.note(f"SAL takes the whole network for {layer}: its parts compute something else (by {far:.2g})")
            return _whole(model)
        return parts


def _whole(model: nn.Module) -> Parts:
    return (lambda x: (x,)), model


def _parts(model: nn.Module, graph: fx.GraphModule, layer: str) -> tuple[Parts, list[Fold]] | None:
    probed = model.get_submodule(layer)
    reached = _reached(graph, probed)
    if not reached:
        records.note(f"SAL takes the whole network for {layer}, which is not called as a module")
        return None
    parts = split_module(graph, model, lambda node: int(node in reached), keep_original_order=True)
    tail, folds = _folded(cast(fx.GraphModule, parts.submod_1), probed)
    return (_until(parts, "submod_1"), tail), folds


def _refold(fused: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """The values of today's convolution and batch norm into the one that stands for both."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    with torch.no_grad():
        fused.weight.copy_(weight)
        cast(Tensor, fused.bias).copy_(bias)


def traced(model: nn.Module, images: Tensor) -> fx.GraphModule | None:
    """The graph of `model`, in eval mode, over the model's own submodules and weights.

    None, with a line in the log, where torch.fx cannot follow it (control flow on values) or where the graph computes
    something else for `images`; bits that differ, as they may on a GPU from call to call, are no other thing.
    """
    try:
        graph = fx.symbolic_trace(model)
        with torch.no_grad():
            found, wanted = graph(images), model(images)
            far = (found - wanted).abs().max().item() / wanted.abs().max().clamp_min(1e-12).item()
    except Exception as error:  # a model may do anything with the values that trace it
        why = records.reason(error)
        records.note(f"SAL takes the whole network for every layer: torch.fx cannot follow it ({why})")
        return None
    if not far <= SAME:  # NaN among them
        records.note(f"SAL takes the whole network for every layer: its graph computes something else (by {far:.2g})")
        return None
    return graph


def _apart(parts: Parts, model: nn.Module, weight: Tensor, images: Tensor) -> float:
    """How far parts and network differ, of the largest output: at this weight, and at one moved by MOVED of it."""
    (head, tail), start, far = parts, weight.detach().clone(), 0.0
    rng = torch.Generator().manual_seed(0)
    offset = torch.randn(start.shape, generator=rng).to(start)
    with torch.no_grad():
        inputs = head(images)
        try:
            for share in (0.0, MOVED):
                weight.copy_(start + offset * (share * start.norm() / offset.norm()))
                wanted = model(images)
                apart = (tail(*inputs) - wanted).abs().max().item() / wanted.abs().max().clamp_min(1e-12).item()
                far = apart if apart > far or apart != apart else far
        finally:
            weight.copy_(start)
    return far


def normalised(graph: fx.GraphModule) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution that only a batch norm reads, with that norm; the model's own modules."""
    modules = dict(graph.named_modules())
    return [pair for node in graph.graph.nodes if (pair := _pair(node, modules))]


def _reached(graph: fx.GraphModule, module: nn.Module) -> set[fx.Node]:
    """The nodes that depend on what `module` returns, its calls among them."""
    reached: set[fx.Node] = set()
    for node in graph.graph.nodes:
        calls = node.op == "call_module" and graph.get_submodule(node.target) is module
        if calls or reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _until(parts: fx.GraphModule, last: str) -> fx.GraphModule:
    """`parts` without its last submodule: what that one is called with, as a tuple (values and bare parameters)."""
    call = next(node for node in parts.graph.nodes if node.target == last)
    output = next(node for node in parts.graph.nodes if node.op == "output")
    output.args = (call.args,)
    parts.graph.eliminate_dead_code()
    parts.recompile()
    return parts


def _folded(tail: fx.GraphModule, probed: nn.Module) -> tuple[fx.GraphModule, list[Fold]]:
    """`tail` with every batch norm folded into the convolution before it, but for the probed one's; what was folded."""
    modules, folds = dict(tail.named_modules()), []
    for node in list(tail.graph.nodes):
        pair = _pair(node, modules)
        if pair and pair[0] is not probed:
            conv, norm = pair
            before = node.args[0]
            fused = fuse_conv_bn_eval(conv, norm)
            folds.append((fused, conv, norm))
            tail.set_submodule(before.target, fused)
            node.replace_all_uses_with(before)
            tail.graph.erase_node(node)
    tail.recompile()
    return tail, folds


def _pair(node: fx.Node, modules: dict[Any, nn.Module]) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """(convolution, batch norm) if `node` is a batch norm that alone reads a convolution."""
    before = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
        return None
    conv, norm = modules[before.target], modules[node.target]
    return (conv, norm) if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) else None
