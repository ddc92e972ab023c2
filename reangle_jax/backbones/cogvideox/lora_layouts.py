"""LoRA files of many writers: which tensor is which adapter's, and the strength that the file states.

Names, shapes and descriptions alone are read here, no values. Writers differ in how they spell a layer, in what they
call an adapter's halves, and in where they put alpha, without which a LoRA acts too weakly or too strongly.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.data import safetensors
from reangle_jax.data.lora_files import PEFT_CONFIG
from reangle_jax.data.safetensors import Tensor
from reangle_jax.errors import InputError

# Our names of the adapted layers, and the published ones.
TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_OURS = {published: ours for ours, published in TARGETS.items()} | {"to_out_0": "to_out"}
_CAN = f"adapters of {', '.join(TARGETS.values())} of attn1 in diffusers', PEFT's or kohya's layout can be"

_DOTTED = (
    r"(?:base_model\.model\.|model\.|diffusion_model\.|transformer\.)*transformer_blocks\.(\d+)\.attn1\.(\w+(?:\.0)?)\."
)
_UNDERSCORED = r"lora_(?:unet|transformer)_+(?:transformer_)?transformer_blocks_(\d+)_attn1_(\w+)\."
# A layout: how a layer is spelled, and the endings of its two halves and of its alpha.
_LAYOUTS = tuple(
    re.compile(f"{layer}(?:(?P<a>{a})|(?P<b>{b})|(?P<alpha>alpha))")
    for layer, a, b in (
        (_DOTTED, r"lora_A(?:\.\w+)?\.weight", r"lora_B(?:\.\w+)?\.weight"),  # diffusers, PEFT, ComfyUI
        (_DOTTED, r"lora(?:_linear_layer)?\.down\.weight", r"lora(?:_linear_layer)?\.up\.weight"),  # diffusers to 0.25
        (_DOTTED, r"lora_down\.weight", r"lora_up\.weight"),  # kohya's scripts, names with dots
        (_UNDERSCORED, r"lora_down\.weight", r"lora_up\.weight"),  # kohya's scripts, CogVideoX-Fun
    )
)
# What gives away a file that no table here is for; the first that fits is named.
_FOREIGN = {
    "LoHa": r"\.hada_",
    "LoKr": r"\.lokr_",
    "OFT": r"\.oft_|oft_[rR]",
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "a text encoder's LoRA": r"^(text_encoder|lora_te)",
    "SAT": r"matrix_[AB]\b|query_key_value",
    "FLUX": r"single_(transformer_)?blocks|double_blocks",
    "Wan": r"blocks[._]\d+[._](self|cross)_attn",
    "a UNet's LoRA": r"(down|up|input|output)_blocks",
}
# PEFT's ways to start that change the base weights too.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
_HEADER_ALPHA = ("lora_alpha", "transformer.lora_alpha", "ss_network_alpha")
_STRONGEST = 1e6  # an alpha; they are 1 to 256
_SHOWN = 6  # faults in one message


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapted layer of a file."""

    a: Tensor  # [rank, in], and `b` [out, rank]: where they lie
    b: Tensor
    rank: int  # its own
    alpha: float | None  # what the file states, by which its scale is alpha / rank; None where it says nothing


def placed(names: Mapping[str, Tensor]) -> tuple[dict[tuple[int, str, str], list[Tensor]], list[str]]:
    """Tensors by layer, target and kind (``a``, ``b``, ``alpha``), and the names of all others."""
    found: dict[tuple[int, str, str], list[Tensor]] = {}
    others = []
    for name, tensor in names.items():
        match = next(filter(None, (layout.fullmatch(name) for layout in _LAYOUTS)), None)
        if match is None or match[2] not in _OURS:
            others.append(name)
        else:
            kind = next(kind for kind, value in match.groupdict().items() if value)
            found.setdefault((int(match[1]), _OURS[match[2]], kind), []).append(tensor)
    return found, others


def read_header(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, layers: int, width: int
) -> dict[tuple[int, str], Adapter]:
    """Every adapted layer of a file, by layer and target, from its header; `layers` and `width` are the transformer's.

    Raises:
        InputError: another layout, a layer that cannot be adapted, half of a pair, a wrong width, a layer left out, a
            kind of adapter other than LoRA.
    """
    found, others = placed(tensors)
    described = _described(path, metadata)
    faults = _unknown(path, found, others) + _unsupported(described)
    twice = [pair for pair in found.values() if len(pair) > 1]
    faults += [f"{twice[0][1].name} is the same as {twice[0][0].name}, one of {len(twice)} pairs"] if twice else []
    beyond = [tensor.name for (k, _, _), (tensor, *_) in found.items() if k >= layers]
    if beyond:
        others = f" (so {len(beyond)} of its tensors)" if beyond[1:] else ""
        faults.append(f"{beyond[0]}: the transformer has {layers} layers{others}")
    adapters = {}
    for target in dict.fromkeys(target for _, target, kind in found if kind != "alpha"):
        for layer in range(layers):
            where = f"transformer_blocks.{layer}.attn1.{TARGETS[target]}"
            halves = {half: found.get((layer, target, half), [None])[0] for half in "ab"}
            a, b = halves["a"], halves["b"]
            sides = a.shape[:1] if a else b.shape[1:] if b else ()
            rank = described.rank(where) or (sides[0] if sides else 0)
            for tensor, expected in ((a, (rank, width)), (b, (width, rank))):
                if tensor is None:
                    continue
                if tensor.shape != expected or not rank:
                    faults.append(f"{tensor.name}: shape {list(tensor.shape)}, expected {list(expected)}")
                elif tensor.dtype.kind not in "fV":
                    faults.append(f"{tensor.name}: is {tensor.dtype.name}: quantised adapters cannot be used")
            if a is None or b is None:
                missing = " and ".join(f"lora_{half.upper()}" for half in "ab" if halves[half] is None)
                faults.append(f"{where}: {missing} missing")
                continue
            stated = found.get((layer, target, "alpha"), [None])[0]
            alpha = described.alpha(where, rank) if stated is None else _scalar(stated)
            if alpha is not None and not 0 < abs(alpha) <= _STRONGEST:
                words = "which is no strength" if alpha else "with which it has no effect"
                faults.append(f"{where}: its alpha is {alpha:g}, {words}")
            adapters[layer, target] = Adapter(a, b, rank, alpha)
    if not adapters and not faults:
        faults.append("it has no adapters")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if faults[_SHOWN:] else ""
        shown = "; ".join(faults[:_SHOWN])
        raise InputError(
            f"{path} is not a LoRA of this transformer: {shown}{more}: give one that was trained on this model"
        )
    return adapters


def _scalar(tensor: Tensor) -> float:
    values = safetensors.read(tensor).astype(np.float64)
    return float(values.reshape(-1)[0]) if values.size == 1 else math.nan


def sizes(tensors: Mapping[str, Tensor]) -> tuple[int, set[int]]:
    """Number of layers that a file adapts, and the widths of what they take."""
    found, _ = placed(tensors)
    widths = {tensor.shape[1] for (_, _, kind), (tensor, *_) in found.items() if kind == "a" and len(tensor.shape) == 2}
    return 1 + max((layer for layer, _, _ in found), default=-1), widths


def _unknown(path: Path, found: Mapping[Any, Any], others: list[str]) -> list[str]:
    """One fault for all tensors that are no adapter here.

    Raises:
        InputError: nothing in the file is, or it is plainly of another kind.
    """
    if not found and not others:
        raise InputError(f"{path} is not a LoRA: it holds no tensors: give one that was trained on this model")
    for what, mark in _FOREIGN.items():
        marked = next((name for name in others if re.search(mark, name)), None)
        if marked:
            raise InputError(f"{path}: its layout is of {what} ({marked[:80]}), which cannot be used: only {_CAN}")
    if not found and not any("lora" in name for name in others):
        raise InputError(f"{path} holds no LoRA but other weights ({others[0][:80]}): only {_CAN} used")
    if not found:
        raise InputError(f"{path}: its layout is not known here ({others[0][:80]}): only {_CAN} used")
    modules = dict.fromkeys(re.sub(r"^.*blocks[._]\d+[._]|[._]lora.*$|\.alpha$", "", name) for name in others)
    shown = ", ".join(list(modules)[:4]) + (", ..." if len(modules) > 4 else "")
    return [f"{len(others)} tensors adapt {shown}; only {', '.join(TARGETS.values())} can be"] if others else []


class _Description:
    """PEFT's LoraConfig, or as much of it as a file states."""

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = fields
        self._rank = None if fields.get("r") is None else int(fields["r"])
        self._alpha = None if fields.get("lora_alpha") is None else float(fields["lora_alpha"])
        self._ranks = _patterns(fields.get("rank_pattern"), int)
        self._alphas = _patterns(fields.get("alpha_pattern"), float)

    def rank(self, layer: str) -> int | None:
        return next((value for pattern, value in self._ranks if pattern.fullmatch(layer)), self._rank)

    def alpha(self, layer: str, rank: int) -> float | None:
        alpha = next((value for pattern, value in self._alphas if pattern.fullmatch(layer)), self._alpha)
        # The rank-stabilised scale is alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if alpha is not None and self.fields.get("use_rslora") else alpha


def _patterns(fields: Mapping[str, Any] | None, kind: Callable[[Any], Any]) -> list[tuple[re.Pattern[str], Any]]:
    """Values for the layers whose names end in a key, as PEFT looks them up."""
    return [(re.compile(rf"(?:.*\.)?(?:{key})"), kind(value)) for key, value in (fields or {}).items()]


def _described(path: Path, metadata: Mapping[str, str]) -> _Description:
    """What a file says of itself: in its header, else in the adapter_config.json beside it."""
    where, beside = "its header", path.parent / PEFT_CONFIG
    try:
        if "lora_adapter_metadata" in metadata:
            where = "its lora_adapter_metadata"
            fields = json.loads(metadata["lora_adapter_metadata"])
            return _Description({key.removeprefix("transformer."): value for key, value in fields.items()})
        for key in _HEADER_ALPHA:
            if metadata.get(key, "None") != "None":  # kohya's scripts write None as a word
                where = f"{key} in its header"
                return _Description({"lora_alpha": metadata[key]})
        if beside.is_file():
            where = str(beside)
            return _Description(json.loads(beside.read_text(encoding="utf-8")))
        return _Description({})
    except (OSError, ValueError, TypeError, AttributeError, re.error) as error:
        raise InputError(f"{path}: {where} cannot be read ({error}): export the LoRA again") from None


def _unsupported(described: _Description) -> list[str]:
    fields = described.fields
    faults = [f"{key} is set: only plain LoRA can be used" for key in ("use_dora", "lora_bias") if fields.get(key)]
    kind, start = fields.get("peft_type") or "LORA", str(fields.get("init_lora_weights"))
    faults += [f"it is {kind} and not LoRA"] if kind != "LORA" else []
    if start.startswith(_CHANGED_BASE):
        faults.append(f"it began as {start}, which changes the base weights too")
    return faults
