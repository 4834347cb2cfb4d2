"""The frozen twins of two networks, and how they follow."""

import keras
import tensorflow as tf

from tfalign import _checks
from tfalign.models.warp_network import WarpNetwork


class Twins:
    """The frozen twins of two networks, and how they follow."""

    def __init__(self, predictor, warp_network, input_shape, frozen):
        networks = (predictor, warp_network)
        own = [_layer_names(one) if frozen == "all" else _chosen_names(one, frozen) for one in networks]
        unknown = (
            []
            if frozen == "all"
            else [name for name in frozen if not any(name in (one.name, *_layer_names(one)) for one in networks)]
        )
        if unknown:
            received = {"frozen": frozen, "unknown": unknown}
            raise ValueError(_checks.message("`frozen` must name layers of the networks.", received))
        self.predictor, self.warp_network = (_twin(one, names, input_shape) for one, names in zip(networks, own))
        twins = (self.predictor, self.warp_network)
        self._frozen = [twin for twin, one, names in zip(twins, networks, own) if names == _layer_names(one)]
        self._pairs = [
            (mine, theirs)
            for twin, one in zip(twins, networks)
            for mine, theirs in zip(twin.weights, one.weights)
            if mine is not theirs
        ]
        for twin, names in zip(twins, own):
            for layer in [twin] if self.all_frozen(twin) else _layers(twin):
                if layer is twin or layer.name in names:
                    layer.trainable = False

    def all_frozen(self, twin):
        """Whether a twin shares no weight."""
        return any(one is twin for one in self._frozen)

    def follow(self, steps, *, momentum, every):
        """Moves the twins towards the networks, after `steps` training steps in all, a float scalar."""
        kept = tf.minimum(momentum, (1.0 + steps) / (10.0 + steps))
        for mine, theirs in self._pairs:
            old, new = tf.convert_to_tensor(mine), tf.convert_to_tensor(theirs)
            if momentum and new.dtype.is_floating:
                new += tf.cast(kept, new.dtype) * (old - new)
            if every > 1:
                new = tf.where(tf.equal(tf.math.floormod(steps, float(every)), 0.0), new, old)
            mine.assign(new)


def _layers(network):
    return network.convolutions if isinstance(network, WarpNetwork) else network.layers


def _layer_names(network):
    return {layer.name for layer in _layers(network)}


def _chosen_names(network, frozen):
    return _layer_names(network) if network.name in frozen else _layer_names(network) & set(frozen)


def _twin(network, own, input_shape):
    """A network with the same weights, of which the layers named in `own` are copies and the others shared."""
    if isinstance(network, WarpNetwork):
        return network.twin(own=own)
    if getattr(network, "input_shape", None) is not None and hasattr(network, "inputs") and network.inputs:

        def cloned(layer):
            return _copied(layer) if layer.name in own else layer

        twin = keras.models.clone_model(network, clone_function=cloned)
    elif own == _layer_names(network):
        twin = type(network).from_config(network.get_config())
        twin.build(input_shape)
    else:
        requirement = '`frozen` must be "all", or hold the network\'s name, where it is not made of layers.'
        raise ValueError(_checks.message(requirement, {"network": network.name, "frozen": sorted(own)}))
    twin.set_weights(network.get_weights())
    for layer in twin._flatten_layers():
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # a `Normalization` computes with what it makes of its weights here
    return twin


def _copied(layer):
    """A layer like another; of a network layer by layer, as Keras finds no class by name that was not registered."""
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        return keras.models.clone_model(layer, clone_function=_copied)
    return type(layer).from_config(layer.get_config())
