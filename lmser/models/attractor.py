"""`AttractorNetwork`: what `FBAN` and `CBAN` share (004 Sect. 3).

Layers 0 ... L, layer 0 visible, connected to their neighbours by one weight in both directions. Given values of
some visible units, all others settle by

    h_l = f(conv(avg_pool(h_{l-1}), W_l) + up(convᵀ(h_{l+1}, W_{l+1})) + b_l)

layer by layer until nothing moves. Hidden units start at 0, visible ones at the observation, and at 0 where there
is none. Every update lowers the energy (Eq. 5)

    E = -Σ_l c_l ⟨h_l, conv(avg_pool(h_{l-1}), W_l)⟩ + Σ_l c_l Σ (ρ(h_l) - b_l h_l) - ⟨external, h_0⟩

where `c_l` is the product of all pool windows on the edges below layer l. 004 has c_l = 1: equal where there is
no pool, and not monotone where there is, because averaging and repeating are adjoint only up to the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lmser.models.attractor_initialisation import check_scheme, initialise
from lmser.models.attractor_loss import attractor_loss
from lmser.models.barrier import barrier
from lmser.models.evidence import check_mode, hold
from lmser.models.reflection import Pair, channels_last
from lmser_kernels import Settled, conv2d_add_act, conv_transpose2d_add_act
from lmser_kernels.activation import check as used_slope
from lmser_kernels.nn import Settle


class AttractorNetwork(Settle):
    """Build an `FBAN` or a `CBAN`.

    Parameters (names of the ``state_dict``): ``weights.0 ...`` ``(C_l, C_{l-1}, kh, kw)``, edge l-1 -> l being
    number l-1; ``biases.0 ...`` of all layers, layer l being number l; without symmetry
    ``reverse_weights.0 ...``, shaped like `weights`. With ``evidence="replicate"`` layer 0 has twice the
    channels: the clamped copy, then the free one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: int | Pair,
        *,
        pools: Sequence[int | Pair] | None,
        activation: str,
        slope: float | None,
        symmetric: bool,
        evidence: str,
        strength: float,
        theta: float,
        max_steps: int,
        order: str,
        backward: str,
        unconverged: str,
        init: str | float,
        impl: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_mode(evidence, strength)
        # the parameters are drawn in the base class's constructor
        self.init = init
        channels = tuple(channels)
        self.evidence = evidence
        self.visible_channels = channels[0] if channels else 0
        if evidence == "replicate" and channels and isinstance(channels[0], int):
            channels = (2 * channels[0], *channels[1:])
        super().__init__(
            channels, kernel_size, None, True, activation, slope, device, dtype,
            pools=pools, symmetric=symmetric, strength=strength, order=order, theta=theta, max_steps=max_steps,
            backward=backward, unconverged=unconverged, impl=impl,
        )  # fmt: skip

    @property
    def depth(self) -> int:
        """L, the number of hidden layers."""
        return len(self.weights)

    @property
    def not_capturable(self) -> str | None:
        """Why a training step cannot be recorded and replayed (`lmser.training.graphed`), or None."""
        if self.theta == 0 and self.backward == "bptt":
            return None
        return (
            "how many sweeps it takes to settle is known when they are made (theta=0 makes max_steps of them)"
        )

    def reset_parameters(self) -> None:
        """Draw all parameters anew by the scheme `init` (004 Appendix D), from torch's global generator."""
        check_scheme(self.init, self._fully_connected)
        initialise(self.init, list(self.weights), list(self.reverse_weights or ()), list(self.biases or ()))

    def complete(
        self,
        evidence: Tensor,
        mask: Tensor | None = None,
        *,
        readouts: bool = False,
        theta: float | None = None,
        max_steps: int | None = None,
        per_sample: bool = False,
        states: Sequence[Tensor] | None = None,
        backward: str | None = None,
    ) -> Settled:
        """Settle from the evidence: what the network makes of the visible units that `mask` does not give.

        evidence:   visible values, ``(N, C, H, W)`` of a `CBAN`, ``(N, ...)`` of an `FBAN`. What stands where
                    nothing is observed is never looked at
        mask:       bool, True where a unit is **observed**; of the evidence's shape, or one that broadcasts to
                    it; None: everywhere
        readouts:   keep the unclamped visible value of every sweep: what `unclamped` and `trajectory` read
        theta, max_steps, backward: in place of the network's own
        per_sample: every sample stops by itself. Only without gradients, or with ``backward="implicit"``
        states:     start from these (as ``Settled.states`` has them) as they are, clamped units apart

        Returns `lmser_kernels.Settled`. The visible state has the evidence's shape, readouts ``(T, *`` that
        ``)``; with ``evidence="replicate"`` they hold both copies (`read` takes the free one). Hidden states are
        ``(N, C_l, H_l, W_l)``.

        Raises TypeError or ValueError naming the argument.
        """
        visible = self._inner("evidence", evidence)
        if mask is None:
            observed = torch.ones_like(visible, dtype=torch.bool)
        else:
            observed = self._inner("mask", _spread(mask, evidence), visible)
        sizes = self.layer_sizes((visible.shape[2], visible.shape[3]))
        held = hold(self.evidence, self.strength, visible, observed)
        if states is None:
            start = [held.visible]
            for count, size in zip(self.channels[1:], sizes[1:], strict=True):
                start.append(channels_last(visible.new_zeros(len(visible), count, *size)))
        else:
            start = self._states(states)
        found = super().forward(
            start, held.evidence, held.mask,
            external=held.external, strength=held.strength, readouts=readouts, per_sample=per_sample,
            theta=self.theta if theta is None else theta,
            max_steps=self.max_steps if max_steps is None else max_steps,
            backward=self.backward if backward is None else backward,
        )  # fmt: skip
        form = evidence.shape[1:]
        return found._replace(
            states=(self._outer(found.states[0], form), *found.states[1:]),
            readouts=None if found.readouts is None else self._outer(found.readouts, form),
        )

    def forward(self, evidence: Tensor, mask: Tensor | None = None) -> Settled:  # type: ignore[override]
        """`complete` with the network's own settings."""
        return self.complete(evidence, mask)

    def read(self, settled: Settled) -> Tensor:
        """The completed visible state, in the evidence's form."""
        return self._free_copy(settled.states[0], 0)

    def trajectory(self, settled: Settled) -> Tensor:
        """The unclamped visible value of every sweep, ``(T, N, ...)``; of the last alone under "implicit".

        ValueError without readouts.
        """
        if settled.readouts is None:
            raise ValueError("settled: expected one with readouts (complete(..., readouts=True)), got none")
        return self._free_copy(settled.readouts, 1)

    def unclamped(self, settled: Settled) -> Tensor:
        """What the visible units would be were none of them clamped: the last readout, in the evidence's form."""
        return self.trajectory(settled)[-1]

    def energy(self, states: Sequence[Tensor], *, external: Tensor | None = None) -> Tensor:
        """The energy of each sample (Eq. 5, weighted for pools: see the module), ``(N,)``.

        states:   of layers 0 ... L, as ``Settled.states`` has them. Infinite where a state lies outside of the
                  activation's range
        external: drive of the visible units, of their shape: with ``evidence="bias"`` `strength` times the
                  observation, zero where there is none

        Half precision is summed in float32. Without symmetry the weight of an edge is the mean of its two
        directions, as in Eq. (2), and updates need not lower it. Raises ValueError for an activation without
        an inverse.
        """
        h = self._states(states)
        if h[0].dtype in (torch.float16, torch.bfloat16):
            h = [state.float() for state in h]
        total, scale = h[0].new_zeros(len(h[0])), 1
        for layer, state in enumerate(h):
            bias = self._biases[layer].to(state.dtype).view(1, -1, 1, 1)
            local = barrier(state, self.activation, self.slope) - bias * state
            if layer == 0 and external is not None:
                local = local - self._inner("external", external, state) * state
            if layer > 0:
                edge = layer - 1
                scale *= math.prod(self.pools[edge])
                weight = self.weights[edge]
                if self.reverse_weights is not None:
                    weight = 0.5 * (weight + self.reverse_weights[edge])
                drive = conv2d_add_act(
                    h[edge], weight.to(state.dtype), padding=self.padding, pool=self.pools[edge], impl=self.impl
                )  # fmt: skip
                local = local - state * drive
            total = total + scale * local.flatten(1).sum(1)
        return total

    def loss(
        self,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        kind: str = "se",
        td: float | str = 1.0,
        stationary: float | None = None,
        evidence: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch, a 0-d tensor: `lmser.models.attractor_loss` on the readouts of a settle.

            (1 - stationary) · transient + stationary · stationary-phase

        target:     `y`, the whole visible state
        mask:       which units are observed, as in `complete`
        kind, td:   as in `attractor_loss`
        stationary: share of the loss at the fixed point alone, differentiated implicitly (Almeida-Pineda);
                    the rest is that of every sweep, differentiated through the sweeps. By default 1 for a
                    network with ``backward="implicit"`` and 0 otherwise
        evidence:   what is observed where it is not the target itself

        The loss counts all visible units, the observed ones at the value that they would take were they not
        clamped; with ``evidence="replicate"`` those of the free copy. Raises TypeError or ValueError naming
        the argument.
        """
        share = float(self.backward == "implicit") if stationary is None else stationary
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"stationary: expected a share between 0 and 1, got {stationary!r}")
        given = target if evidence is None else evidence
        if given.shape != target.shape:
            raise ValueError(
                f"evidence: expected the target's shape {tuple(target.shape)}, got {tuple(given.shape)}"
            )
        total, start = None, None
        if share < 1:
            found = self.complete(given, mask, readouts=True, backward="bptt")
            total = (1 - share) * self._loss_of(found, target, kind, td)
            # the fixed point is found from where these sweeps ended
            start = [state.detach() for state in found.states]
        if share > 0:
            fixed = self.complete(given, mask, readouts=True, backward="implicit", states=start)
            at_rest = share * self._loss_of(fixed, target, kind, "last" if td == "last" else 1.0)
            total = at_rest if total is None else total + at_rest
        assert total is not None
        return total

    def _loss_of(self, found: Settled, target: Tensor, kind: str, td: float | str) -> Tensor:
        return attractor_loss(
            self.trajectory(found), target, kind=kind, td=td, activation=self.activation, slope=self.slope
        )

    def dream(self, settled: Settled) -> Tensor:
        """The visible state that the top hidden layer produces by itself, in the evidence's form.

        One pass down from `h_L` as it settled: ``h_l = f(up(convᵀ(h_{l+1}, W_{l+1})) + b_l)`` for l = L-1 ... 0,
        with no drive from below and no evidence (the "dream" rows of 004's Figs. 4 and 11).
        """
        state = settled.states[-1]
        down = self.weights if self.reverse_weights is None else self.reverse_weights
        for edge in range(self.depth - 1, -1, -1):
            state = conv_transpose2d_add_act(
                state, down[edge], None, self._biases[edge],
                padding=self.padding, upsample=self.pools[edge],
                activation=self.activation, slope=self.slope, impl=self.impl,
            )  # fmt: skip
        seen = settled.states[0]
        form = seen.shape[2:] if self._fully_connected and self.evidence == "replicate" else seen.shape[1:]
        return self._free_copy(self._outer(state, form), 0)

    def norm(self) -> float:
        """``‖W‖_{1,∞}``: the largest sum of absolute weights into one unit, of its edges below and above.

        Of a convolution that of a unit away from the borders. Pools leave it as it is: an average's weights
        sum to one, and a repeated value is one value.
        """
        up = [w.detach().abs().flatten(1).sum(1) for w in self.weights]
        reverse = self.weights if self.reverse_weights is None else self.reverse_weights
        down = [w.detach().abs().transpose(0, 1).flatten(1).sum(1) for w in reverse]
        into = [down[0], *(up[i] + down[i + 1] for i in range(self.depth - 1)), up[-1]]
        return max(float(sums.max()) for sums in into)

    def contraction(self) -> float:
        """``α ‖W‖_{1,∞}`` of 004 Sect. 3.3 and Appendix C, α being the slope of `f` far from zero.

        Below 1 the barrier outgrows the drives: all states stay bounded, so does the energy, and a symmetric
        network settles in a fixed point. α is the slope of a leaky sigmoid, 1 for functions that go on linearly,
        and 0 for tanh and sigmoid, which are bounded whatever the weights. It says nothing about how many
        fixed points there are: that is `lipschitz`.
        """
        outer = {"tanh": 0.0, "sigmoid": 0.0, "leaky_sigmoid": used_slope(self.activation, self.slope)}
        return outer.get(self.activation, self._steepest()) * self.norm()

    def lipschitz(self) -> float:
        """``max f' · ‖W‖_{1,∞}``: below 1 a sweep is a contraction.

        Then there is one fixed point for each evidence, reached from every start at least at this rate, with or
        without symmetry. max f' is 1 for tanh and for the leaky sigmoid (between its kinks).
        """
        return self._steepest() * self.norm()

    @property
    def converges(self) -> bool:
        """Whether settling is guaranteed to end in a fixed point: `contraction` below 1 for a network with
        symmetric weights, `lipschitz` below 1 for any. False promises nothing either way."""
        return (self.symmetric and self.contraction() < 1) or self.lipschitz() < 1

    def _steepest(self) -> float:
        slope = used_slope(self.activation, self.slope)
        return 0.25 if self.activation == "sigmoid" else max(1.0, slope)

    def layer_sizes(self, visible: Pair) -> list[Pair]:
        """Height and width of layers 0 ... L; ValueError where a pool does not divide a layer."""
        sizes = [visible]
        (kh, kw), (ph, pw) = self.kernel_size, self.padding
        for edge, (rows, columns) in enumerate(self.pools):
            height, width = sizes[-1]
            if height % rows or width % columns:
                raise ValueError(
                    f"evidence: expected a size that the pools divide; layer {edge} of {visible} is {(height, width)}, "
                    f"its window {(rows, columns)}"
                )
            sizes.append((height // rows + 2 * ph - kh + 1, width // columns + 2 * pw - kw + 1))
        return sizes

    def extra_repr(self) -> str:
        strength = f", strength={self.strength}" if self.evidence in ("blend", "bias") else ""
        return f"{super().extra_repr()}, evidence={self.evidence!r}{strength}"

    @property
    def _biases(self) -> Sequence[Tensor]:
        used = self._biases_used()
        assert used is not None
        return used

    def _states(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States of all layers as the kernels take them."""
        if len(states) != self.depth + 1:
            raise ValueError(f"states: expected those of {self.depth + 1} layers, got {len(states)}")
        return [self._inner("states", states[0], None, self.channels[0]), *states[1:]]

    # What the two forms of the visible layer differ in.

    _fully_connected = False

    def _inner(
        self, name: str, tensor: Tensor, like: Tensor | None = None, channels: int | None = None
    ) -> Tensor:
        """A visible tensor as ``(N, C, H, W)``, of `like`'s shape where given; errors name it `name`."""
        raise NotImplementedError

    def _outer(self, tensor: Tensor, form: torch.Size) -> Tensor:
        """``(..., N, C, H, W)`` of the visible layer in the form of evidence ``(N, *form)``."""
        raise NotImplementedError

    def _free_copy(self, tensor: Tensor, leading: int) -> Tensor:
        """What is read of a visible tensor with `leading` dimensions before the batch."""
        raise NotImplementedError


def _spread(mask: Tensor, evidence: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, True where observed, got {mask.dtype}")
    if mask.device != evidence.device:
        raise ValueError(f"mask: expected the evidence's device {evidence.device}, got {mask.device}")
    try:
        return mask.expand(evidence.shape)
    except RuntimeError:
        raise ValueError(
            f"mask: expected a shape that broadcasts to the evidence's {tuple(evidence.shape)}, got {tuple(mask.shape)}"
        ) from None
