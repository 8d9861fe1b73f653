"""What a specimen of the zoo is."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Build", "Specimen"]

# The defended network, of a network of its own to keep or change, and of examples.
Build = Callable[[nn.Module, Tensor], nn.Module]


@dataclass(frozen=True)
class Specimen:
    """A defence, broken or honest, that can be put around any network.

    Parameters
    ----------
    name : str
        Its name in the zoo.
    kind : str
        What it works on: ``"inputs"``, ``"backward"``; the name of its module.
    source : str
        The paper that it imitates in small, or where its kind is known from.
    build : callable
        The defended network, of a network of its own to keep or change and of examples.
    honest : bool
        Whether its gradients are true and lead somewhere: an audit should neither overrate it nor raise an alarm. It
        may be as easy to fool as the others.
    """

    name: str
    kind: str
    source: str
    build: Build
    honest: bool = False

    def wrap(self, net: nn.Module, x: Tensor) -> nn.Module:
        """The network behind this defence, in evaluation mode.

        Parameters
        ----------
        net : nn.Module
            Maps ``(N, ...)`` inputs in ``[0, 1]`` to ``(N, K)`` logits. It is copied and left as it is.
        x : Tensor
            ``(N, ...)`` examples, for what has to be fitted; a few hundred serve well. The network's own answers stand
            for their labels.

        Returns
        -------
        nn.Module
            The same for the same network and examples.

        Raises
        ------
        SettingError
            When the defence is one for images and the examples are none, or the network lacks what it changes.
        """
        return self.build(copy.deepcopy(net).eval(), x.detach().clone()).eval()
