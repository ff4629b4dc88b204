"""AdamW whose state is of the kept weights alone.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101) for the update.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paramscope.compression.signed_zeros import kept_index, mask_like, write_kept
from paramscope.errors import RequestError
from paramscope.persample.precision import wide


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW on a model with marked weights (`signed_zeros.apply_masks`), which stay pruned.

    Gathers what was kept of a weight and of its gradient, steps, and scatters: bit by bit what
    `torch.optim.AdamW(foreach=False)` does to the whole weight where gradient and weight are
    masked around each step, a zero's sign aside. A pruned weight has `exp_avg` and `exp_avg_sq`
    of [n_kept]; where its kept values stand is told by its own zeros at each step, so the
    optimizer holds no index. Other parameters take the plain update.

    Weights in 16 bit have moments and a `master` copy of their kept values in float32, or
    small steps would be lost to rounding.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        masks: Mapping[str, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named = dict(parameters)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(named.values(), defaults)
        self._n_kept = {named[name]: int(mask.sum()) for name, mask in masks.items()}

    @property
    def state_bytes(self) -> int:
        """What the state of all parameters holds, in bytes."""
        states = (value for state in self.state.values() for value in state.values())
        return sum(value.nbytes for value in states if isinstance(value, Tensor))

    def mask_gradients(self) -> None:
        """Set the gradients of pruned values to 0, as clipping needs them."""
        for weight in self._n_kept:
            if weight.grad is not None:
                mask_like(weight.grad, weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; `closure` gives the loss anew.

        Raises:
            RequestError: a pruned weight was written to since it was marked.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight in self._n_kept:
                    self._step_kept(weight, group)
                else:
                    self._step_whole(weight, group)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state of an optimizer of the same parameters, exactly."""
        super().load_state_dict(dict(state_dict))
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for i, weight in zip(saved, weights, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):  # torch has cast it to the weight's own format
                    self.state[weight][key] = value.to(weight.device, copy=True)

    def _step_kept(self, weight: nn.Parameter, group: Mapping[str, Any]) -> None:
        index = kept_index(weight)
        if len(index) != self._n_kept[weight]:
            raise RequestError(
                f"a weight {tuple(weight.shape)} has {len(index)} kept values, but its mask keeps "
                f"{self._n_kept[weight]}: it was written to; apply its mask again"
            )
        assert weight.grad is not None
        gradient = weight.grad.reshape(-1).index_select(0, index)
        values = self._values(weight, lambda: weight.view(-1).index_select(0, index))
        _update(values, gradient.to(values.dtype), self.state[weight], group)
        write_kept(weight, index, values)

    def _step_whole(self, weight: nn.Parameter, group: Mapping[str, Any]) -> None:
        assert weight.grad is not None
        values = self._values(weight, lambda: weight)
        _update(values, weight.grad.to(values.dtype), self.state[weight], group)
        if values is not weight:
            weight.copy_(values)

    def _values(self, weight: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """The values to update: the master copy of a 16-bit weight, or what `read` gives."""
        state = self.state[weight]
        if "master" in state:
            master: Tensor = state["master"]
            return master
        values = read()
        if not state:
            state["step"] = 0
            if values.element_size() < 4:
                values = state["master"] = wide(values)
            state["exp_avg"] = torch.zeros_like(values)
            state["exp_avg_sq"] = torch.zeros_like(values)
        return values


def _update(
    values: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]
) -> None:
    """One step in place, operation by operation in torch's order, so that its bits agree."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    state["step"] += 1
    if group["weight_decay"]:
        values.mul_(1 - rate * group["weight_decay"])
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    scale = (state["exp_avg_sq"].sqrt() / correction2**0.5).add_(group["eps"])
    values.addcdiv_(state["exp_avg"], scale, value=-(rate / correction1))
