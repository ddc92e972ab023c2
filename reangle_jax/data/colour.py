"""High dynamic range and wide gamuts to what our frames are in: 8 bits, BT.709's primaries, BT.1886's gamma of 2.4.

Light is display light. HDR (BT.2100: PQ, or HLG shown at 1000 cd/m2) is brought into the range of SDR by the tone curve
of BT.2390, section 5.4, applied to the largest of R, G and B so that hues stay: the SDR white is HDR's reference white
of 203 cd/m2 (BT.2408), what is darker than about half of it stays as it is, and 1000 cd/m2 becomes white.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8, UInt16

# Codes of ITU-T H.273 (AVColorTransferCharacteristic, AVColorPrimaries).
PQ, HLG = 16, 18
BT2020, P3 = 9, 12

_PEAK = 1000.0  # cd/m2: the usual mastering display, and HLG's reference display
_WHITE = 203.0  # cd/m2
_GAMMA = 2.4
# Linear light to BT.709's primaries; all have the white point D65.
_TO_BT709 = {
    BT2020: np.array([[1.66049, -0.58764, -0.07285], [-0.12455, 1.13290, -0.00835], [-0.01815, -0.10058, 1.11873]]),
    P3: np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]]),
}


def to_sdr(transfer: int, primaries: int) -> Callable[[UInt16[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]] | None:
    """The function that makes R'G'B' of 16 bits, full range, ours; None where nothing is to be done.

    Args:
        transfer: transfer characteristics, a code of H.273.
        primaries: colour primaries, a code of H.273; not stated (2) means BT.2020 where the transfer is HDR's.
    """
    if transfer in (PQ, HLG):
        return functools.partial(_convert, transfer, primaries if primaries in (BT2020, P3, 1) else BT2020)
    return functools.partial(_convert, transfer, primaries) if primaries in _TO_BT709 else None


def _convert(transfer: int, primaries: int, coded: UInt16[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    light = _light(transfer)[coded]
    if transfer == HLG:
        # The opto-optical transfer of a display of 1000 cd/m2: a gamma of 1.2 on the luminance.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * np.float32(_PEAK) * luminance[..., None] ** np.float32(0.2)
    if transfer in (PQ, HLG):
        brightest = np.maximum(light.max(axis=-1, keepdims=True), np.float32(1e-4))
        light = light * (tone_curve(brightest) / brightest / np.float32(_WHITE))
    if primaries in _TO_BT709:
        light = light @ _TO_BT709[primaries].T.astype(np.float32)
    return np.round(255 * np.clip(light, 0, 1) ** np.float32(1 / _GAMMA)).astype(np.uint8)


@functools.cache
def _light(transfer: int) -> Float[np.ndarray, "65536"]:
    """Light of every 16-bit code value: cd/m2 for PQ, the scene's, at most 1, for HLG, the display's for SDR."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:
        return pq_to_light(code).astype(np.float32)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
    return (code**_GAMMA).astype(np.float32)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # SMPTE ST 2084


def pq_to_light(code: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Light in cd/m2 of a PQ signal of 0 to 1 (ST 2084)."""
    power = code ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def light_to_pq(light: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """PQ signal, 0 to 1, of light in cd/m2."""
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def tone_curve(light: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """BT.2390's curve from a range of 1000 cd/m2 to one of 203: the identity, then a Hermite spline in PQ."""
    peak, white = light_to_pq(np.array([_PEAK, _WHITE]))
    white = white / peak
    signal = np.minimum(light_to_pq(np.maximum(light, 0)) / peak, 1)
    knee = 1.5 * white - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return np.asarray(pq_to_light(np.where(signal < knee, signal, spline) * peak), np.float32)
