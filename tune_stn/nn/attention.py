"""The response form of `nn.MultiheadAttention`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tune_stn.nn.dropout import UnitDropout
from tune_stn.nn.linear import ResponseLinear
from tune_stn.nn.numbers import SharedRate
from tune_stn.nn.plain import remember
from tune_stn.nn.projection import ResponseProjection
from tune_stn.nn.response import Responding, ResponseSize
from tune_stn.nn.slot import Slot, check_rows

# Torch's names of the weights of query, key and value projection where they are not packed into one.
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class ResponseMultiheadAttention(Responding, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose four projections respond; called exactly as the plain module is.

    It stays a multi-head attention of torch, and is that very one in eval mode without a response. Where all keys of a
    query are masked, its attention weights are 0, also where `need_weights` makes them NaN in torch.

    Attributes:
        projections: Responses of query, key and value projection, in this order. Their base parameters keep their names
            (`in_proj_weight` and so on) and stay here.
        dropout_rate: Hyperparameter that is the rate at which attention weights are dropped, for each example its own.
            Default None: the fixed rate of the plain module.
    """

    dropout_rate: str | None = None
    out_proj: Any

    def __init__(
        self,
        base: nn.MultiheadAttention,
        inputs: int,
        size: ResponseSize | None,
        slot: Slot,
        generator: torch.Generator,
    ) -> None:
        nn.Module.__init__(self)
        self.take_over(base)
        self.slot = slot
        self.size = size
        self.projections = nn.ModuleList(
            ResponseProjection(weight, bias, inputs, size, slot, generator) for weight, bias in self._base_projections()
        )
        frozen = not base.out_proj.weight.requires_grad
        self.out_proj = ResponseLinear(base.out_proj, inputs, None if frozen else size, slot, generator)
        remember(self.out_proj, base.out_proj)
        self.train(base.training)

    @classmethod
    def why_not(cls, base: nn.Module) -> str | None:
        kind = type(base.out_proj)
        return None if kind is NonDynamicallyQuantizableLinear else f"its out_proj is a {kind.__name__}"

    @property
    def dropout(self) -> float:
        """The rate as one number, for code that hands it to a function: in training the one in force.

        Raises:
            ValueError: Each example has a rate of its own.
        """
        if self.dropout_rate is None or not self.training:
            return self._fixed_dropout
        return SharedRate(f"{self.path}.dropout", self.dropout_rate, self.slot)()

    @dropout.setter
    def dropout(self, rate: float) -> None:
        self._fixed_dropout = rate

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        response_input = self.slot.sample.response_input
        if response_input is None and not self.training:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batched = F._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)  # type: ignore[attr-defined]
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if response_input is not None:
            check_rows(response_input.shape[0], query, where=type(self).__name__)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says that attn_mask is a causal one: give the attn_mask too")
        # As in torch, the hint replaces the mask where nothing else needs the mask.
        is_causal = is_causal and key_padding_mask is None and not need_weights
        if is_causal:
            attn_mask = None
        self._check_shapes(query, key, value, key_padding_mask, attn_mask)
        mask = _merged_mask(key_padding_mask, attn_mask, batch=query.shape[0], dtype=query.dtype)
        query, key, value = self._projected(query, key, value)
        outputs, weights = self._attend(query, key, value, mask, is_causal=is_causal, need_weights=need_weights)
        outputs = self.out_proj(outputs)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _check_shapes(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Raise as torch does, AssertionError or RuntimeError, unless the arguments, batch first, fit each other."""
        batch, targets, _ = query.shape
        sources = key.shape[1]
        for name, given, shape in (
            ("query", query, (batch, targets, self.embed_dim)),
            ("key", key, (batch, sources, self.kdim)),
            ("value", value, (batch, sources, self.vdim)),
            ("key_padding_mask", key_padding_mask, (batch, sources)),
        ):
            if given is not None and given.shape != shape:
                raise AssertionError(
                    f"{name}, batch first, has the shape {tuple(given.shape)}, but should have {shape}"
                )
        if attn_mask is not None:
            shape = (targets, sources) if attn_mask.dim() == 2 else (batch * self.num_heads, targets, sources)
            if attn_mask.shape != shape:
                raise RuntimeError(f"attn_mask has the shape {tuple(attn_mask.shape)}, but should have {shape}")

    def _base_projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of query, key and value projection."""
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = tuple(getattr(self, name) for name in SEPARATE)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Query, key and value of the heads, each `(batch, length, embed_dim)`."""
        return [projection(given) for projection, given in zip(self._lent(), inputs, strict=True)]

    def _lent(self) -> Iterator[ResponseProjection]:
        """The three projections, one after the other, each with its weight and bias until the next is asked for."""
        for projection, base in zip(self.projections, self._base_projections(), strict=True):
            assert isinstance(projection, ResponseProjection)
            with projection.lent(*base):
                yield projection

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of the heads side by side, `(batch, targets, embed_dim)`, and attention weights where asked for.

        The weights, `(batch, heads, targets, sources)`, are after dropout.
        """
        sources = key.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.expand(len(key), -1, -1)], 1)
            value = torch.cat([value, self.bias_v.expand(len(value), -1, -1)], 1)
        if self.add_zero_attn:
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if mask is not None:
            mask = F.pad(mask, (0, key.shape[1] - sources))
        query, key, value = (x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (query, key, value))
        rate_is_read = self.training and self.dropout_rate is not None
        if not (need_weights or rate_is_read or self.slot.sample.linearise):
            rate = self.dropout if self.training else 0.0
            outputs = F.scaled_dot_product_attention(query, key, value, mask, rate, is_causal)
            return outputs.transpose(1, 2).flatten(2), None
        # Written out: fused kernels have no tangents, know one rate only, and give no weights.
        scores = query / math.sqrt(self.head_dim) @ key.mT
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        weights = self._dropped(_softmax(scores, mask))
        return (weights @ value).transpose(1, 2).flatten(2), weights if need_weights else None

    def _dropped(self, weights: Tensor) -> Tensor:
        if self.training and self.dropout_rate is not None:
            return cast(Tensor, UnitDropout(self.dropout_rate, self.slot)(weights))
        return F.dropout(weights, self.dropout, self.training)

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        each = [projection.merged(response_input) for projection in self._lent()]
        weights, biases = ([one[name] for one in each] for name in ("weight", "bias"))
        bias = None if self.in_proj_bias is None else torch.cat(cast(list[Tensor], biases))
        if self._qkv_same_embed_dim:
            return {"in_proj_weight": torch.cat(cast(list[Tensor], weights)), "in_proj_bias": bias}
        return {**dict(zip(SEPARATE, weights, strict=True)), "in_proj_bias": bias}

    def squared_norms(self, response_input: Tensor | None) -> dict[str, Tensor]:
        """Of the three input projections and of the added key and value, if any; `out_proj` counts for itself."""
        each = [projection.squared_norm(response_input) for projection in self._lent()]
        if self._qkv_same_embed_dim:
            norms = {"in_proj_weight": each[0] + each[1] + each[2]}
        else:
            norms = dict(zip(SEPARATE, each, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            norms |= {"bias_k": self.bias_k.square().sum()[None], "bias_v": self.bias_v.square().sum()[None]}
        return norms

    def response_parameters(self) -> Iterator[nn.Parameter]:
        """None of its own: the projections give theirs."""
        return iter(())


def _merged_mask(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, *, batch: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks, of bool or float, as one that is added to scores of shape `(batch, heads, targets, sources)`."""
    key_padding_mask = F._canonical_mask(
        key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", dtype
    )
    attn_mask = F._canonical_mask(attn_mask, "attn_mask", None, "", dtype, check_other=False)
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.view(batch, -1, *attn_mask.shape[1:])
    if key_padding_mask is None:
        return attn_mask
    key_padding_mask = key_padding_mask[:, None, None]
    return key_padding_mask if attn_mask is None else attn_mask + key_padding_mask


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Over the last axis, of `scores + mask`; all zeros where all is masked.

    The tangent of a dual tensor is written out: `s * (t - sum(s * t))` takes fewer passes than torch's formula.
    """
    scores, tangent = forward_ad.unpack_dual(scores)  # type: ignore[no-untyped-call]
    if mask is None:
        weights = scores.softmax(-1)
    else:
        blind = mask.isneginf().all(-1, keepdim=True)
        weights = (scores + mask.masked_fill(blind, 0)).softmax(-1).masked_fill(blind, 0)
    if tangent is None:
        return weights
    change = weights * tangent
    change = torch.addcmul(change, weights, change.sum(-1, keepdim=True), value=-1)
    return cast(Tensor, forward_ad.make_dual(weights, change))  # type: ignore[no-untyped-call]
