"""Random numbers that belong to an example.

A draw is a function of ``(seed, example index, stage, draw number)`` and of nothing else: not of the batch an example
shares, not of what was drawn before, not of the global generator. The four numbers are, literally, the key and the
counter of a counter-based generator, Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC 2011), computed here with integer tensor operations so that every row of a batch has its own stream on
any device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Draws"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of 128-bit counters.

    Parameters
    ----------
    counter : tuple of 4 Tensors
        int64 tensors that broadcast together, each holding 32-bit words.
    key : tuple of 2 int
        Two 32-bit words.

    Returns
    -------
    tuple of 4 Tensors
        int64 tensors of random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit words wraps in int64, but its 64 bits are right; the mask undoes the sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # What the low words carry above their 32 bits goes when they have been mixed into a high one.
        c0, c2 = ((p1 >> 32) ^ (c1 ^ k0)).bitwise_and_(_WORD), ((p0 >> 32) ^ (c3 ^ k1)).bitwise_and_(_WORD)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1 & _WORD, c2, c3 & _WORD)
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of examples at one moment of an attack.

    Parameters
    ----------
    seed : int
        The run's seed, 0 to 2**64 - 1.
    index : Tensor
        ``(N,)`` whole numbers, the position of each example in its data set, below 2**32.
    stage : int
        Which stage of a cascade is drawing.
    draw : int or Tensor
        Which draw of that stage it is: one number, or ``(N,)``, one a row.
    """

    seed: int
    index: Tensor
    stage: int = 0
    draw: int | Tensor = 0

    def __post_init__(self) -> None:
        # Numbers of narrower types wrap around in what is computed of them.
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "index", self.index.long())
        object.__setattr__(self, "draw", self.draw.long() if isinstance(self.draw, Tensor) else int(self.draw))

    def bits(self, count: int, lane: int = 0) -> Tensor:
        """``(N, count)`` int64 words, uniform on 0 .. 2**32 - 1; each ``lane``, 0 to 15, has words of its own."""
        blocks = -(-count // 4)
        block = torch.arange(blocks, device=self.index.device).unsqueeze(0) + (lane << 28)
        row = self.index.unsqueeze(1)
        draw = torch.as_tensor(self.draw, device=self.index.device).expand(len(self.index)).unsqueeze(1)
        words = philox(
            (block, row, torch.full_like(row, self.stage), draw),
            (self.seed & _WORD, (self.seed >> 32) & _WORD),
        )
        return torch.stack(words, dim=2).flatten(1)[:, :count]

    def uniform(self, count: int, lane: int = 0) -> Tensor:
        """``(N, count)`` float64 numbers, uniform inside (0, 1), both ends excluded."""
        return self.bits(count, lane).double().add_(0.5).div_(2**32)

    def fine(self, count: int, lane: int = 0) -> Tensor:
        """The numbers of ``uniform`` with 52 random bits instead of 32: each is ``(k + 1/2) / 2**52``, exactly.

        ``lane`` is 0 to 7; the further bits are those of ``lane + 8``.
        """
        high, low = self.bits(count, lane), self.bits(count, lane + 8)
        return ((high << 20) | (low >> 12)).double().add_(0.5).div_(2.0**52)

    def normal(self, count: int, lane: int = 0) -> Tensor:
        """``(N, count)`` float64 standard normal numbers (Box and Muller 1958)."""
        half = -(-count // 2)
        u = self.uniform(2 * half, lane)
        radius = (-2 * u[:, :half].log()).sqrt()
        angle = 2 * torch.pi * u[:, half:]
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
