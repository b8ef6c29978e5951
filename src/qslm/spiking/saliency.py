"""Salient activations by the median absolute deviation (MAD), as in SpikeQuant (arXiv 2510.19498).

    x is salient  <=>  0.6745 |x - median| / MAD > 3.5        (the modified z-score of Iglewicz and Hoaglin, 1993)

The paper names the MAD; the factor of 3.5 is derived: it finds 1.3 to 2.9 % of heavy-tailed inputs (t5 to t3), where
the paper reports 2.45 to 2.68 %.
Derived as well: a median is the lower of two middle ones, so that it is a number of the token and each selection is
exact; and a zero is never salient, for it makes no spike.

The dynamic form takes median and MAD of every token; the static form takes them once, from calibration, and a
`Monitor` calibrates it again when the workload has drifted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from qslm.errors import SpikeError

THRESHOLD = 3.5  # modified z-score
CONSISTENCY = 0.6745  # MAD / standard deviation of a normal distribution
MEAN_CONSISTENCY = 1.2533  # standard deviation / mean absolute deviation of a normal distribution
WINDOW = 512  # tokens that a monitor judges
PASSAGE = 128  # tokens that are alike
ERRORS = 5.0  # standard errors by which a drifted ratio is off


def activations(x: Tensor) -> Tensor:
    """Activations (..., width) as float32 (tokens, width), without a gradient.

    Raises SpikeError when they are no floats, have no width, or hold NaN or infinities.
    """
    if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] == 0:
        raise SpikeError(
            f"Activations of type {x.dtype} and shape {tuple(x.shape)} cannot be turned into spikes.",
            "Give floats of shape (tokens, width) with a width of 1 or more.",
        )
    rows = x.detach().reshape(-1, x.shape[-1]).float()
    if rows.numel():
        low, high = torch.aminmax(rows)  # NaN goes through; a tenth of the time of isfinite
        if not (torch.isfinite(low) and torch.isfinite(high)):
            wrong = ~torch.isfinite(rows)
            token, column = wrong.nonzero()[0].tolist()
            raise SpikeError(
                f"Of {rows.numel():,} activations {int(rows.isnan().sum()):,} are NaN and {int(rows.isinf().sum()):,} "
                f"infinite, the first at token {token}, column {column}.",
                "Look for an overflow before this layer; a model in float16 may have to run in float32.",
            )
    return rows


def deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """The median and the MAD of every token: x (..., width) -> two float32 (..., 1).

    Where the MAD is 0, as after a ReLU, both are those of the non-zeros; where this is 0 as well, the MAD is the
    mean absolute deviation of the non-zeros * 1.2533 * 0.6745, which is on the same scale (derived). A MAD of 0
    is left where all non-zeros are equal, as in inputs that are spikes already: nothing is salient there.
    Raises SpikeError as `activations` does.
    """
    rows = activations(x)
    center, mad = _deviations(rows)
    shape = (*x.shape[:-1], 1)
    return center.reshape(shape), mad.reshape(shape)


def salient(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Which activations are salient within their token: x (..., width) -> bool (..., width).

    `threshold` is a modified z-score. Raises SpikeError as `activations` does, and when the threshold is no number
    above 0.
    """
    _check_threshold(threshold)
    rows = activations(x)
    center, mad = _deviations(rows)
    return _beyond(rows, center, _reach(mad, threshold)).reshape(x.shape)


def salient_ratio(mask: Tensor) -> float:
    """The share of salient values in a mask, 0 to 1; 0 where there are none at all."""
    return int(mask.sum()) / max(mask.numel(), 1)


def threshold_for(samples: Iterable[Tensor], ratio: float) -> float:
    """The modified z-score above which the share `ratio` of the samples (..., width) lies, each token by itself.

    So `salient` finds about this share. Raises SpikeError as `calibrate_ratio` does, and when so few values deviate
    that no threshold finds the share.
    """
    rows = _pooled(samples)
    center, mad = _deviations(rows)
    scores = (rows - center).abs_().mul_(CONSISTENCY).div_(mad.masked_fill(mad == 0, inf)).masked_fill_(rows == 0, 0)
    found = _above(scores, ratio)
    if not 0 < found < inf:
        raise SpikeError(
            f"No threshold makes {ratio:.2%} of these activations salient: too few of them deviate.",
            "Ask for a smaller ratio.",
        )
    return found


@dataclass(frozen=True)
class StaticSaliency:
    """One center and one reach for all tokens: x is salient where |x - center| > reach. Both are float32 numbers.

    `ratio` is the share that is salient in the calibration samples, `spread` its standard deviation between tokens, or
    between passages of them, and `tokens` their number: what a `Monitor` holds the workload against.
    """

    center: float
    reach: float
    ratio: float = 0.0
    spread: float = 0.0
    tokens: int = 0

    def mask(self, x: Tensor) -> Tensor:
        """Which activations are salient: x (..., width) -> bool (..., width). Raises SpikeError as `activations`."""
        return _beyond(activations(x), self.center, self.reach).reshape(x.shape)


def calibrate(samples: Iterable[Tensor], threshold: float = THRESHOLD) -> StaticSaliency:
    """Median and MAD of all samples (..., width) together, of the same guards: reach = threshold * MAD / 0.6745.

    Raises SpikeError as `salient` does, and when there are no samples.
    """
    _check_threshold(threshold)
    rows = _pooled(samples)
    center, mad = _deviations(rows.reshape(1, -1))
    return _measured(rows, float(center), float(_reach(mad, threshold)))


def calibrate_ratio(samples: Iterable[Tensor], ratio: float) -> StaticSaliency:
    """The reach that leaves the share `ratio` of the samples (..., width) outside, or less where values tie (derived).

    Raises SpikeError as `calibrate` does, and when the ratio is not between 0 and 1.
    """
    rows = _pooled(samples)
    center, _ = _deviations(rows.reshape(1, -1))
    return _measured(rows, float(center), _above((rows - center).abs_().masked_fill_(rows == 0, 0), ratio))


class Monitor:
    """A static saliency that notices when the workload has drifted, and calibrates itself again.

    It keeps the last `window` tokens, window * width * 4 bytes. The workload has drifted when their ratio of salient
    values is more than `errors` standard errors from the expected one:

        |ratio - expected| > errors * s * sqrt(1 / window + 1 / calibration tokens)

    s is the standard deviation of the ratio between the tokens of the calibration, not the binomial one: salient
    values of a token come together, and so do those of a passage, which counts where it says more. It counts as one
    value of a token at least. Longer passages than these are alike too, so the true error is larger than this; hence 5
    standard errors by default. All of it is derived: the paper leaves this as future work.
    """

    def __init__(
        self,
        saliency: StaticSaliency,
        window: int = WINDOW,
        errors: float = ERRORS,
        calibrate: Callable[[list[Tensor]], StaticSaliency] = calibrate,
    ) -> None:
        if window < 1 or not errors > 0 or saliency.tokens < 1:
            raise SpikeError(
                f"A monitor of {window} tokens and {errors} standard errors cannot watch a saliency calibrated on "
                f"{saliency.tokens} tokens.",
                "Give a window of 1 token or more, errors above 0, and a saliency from calibrate or calibrate_ratio.",
            )
        self.saliency = saliency
        self.window = window
        self.errors = errors
        self.recalibrations = 0
        self._calibrate = calibrate
        self._recent: Tensor | None = None
        self._ratios = torch.empty(0)

    def mask(self, x: Tensor) -> Tensor:
        """Which activations are salient: x (..., width) -> bool (..., width); after a drift, of the tokens to come.

        Raises SpikeError as `activations` does, and when the width is another one than before.
        """
        found = []
        for rows in activations(x).split(self.window):  # so that no token of a large call goes unseen
            found.append(_beyond(rows, self.saliency.center, self.saliency.reach))
            self._keep(rows, found[-1].float().mean(-1))
            if self.drifted:
                self.recalibrated()
        return torch.cat(found).reshape(x.shape) if found else torch.zeros_like(x, dtype=torch.bool)

    @property
    def ratio(self) -> float:
        """The share of salient values in the window; 0 where it is empty."""
        return float(self._ratios.mean()) if len(self._ratios) else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the difference between the ratio of a full window and the expected one."""
        width = 1 if self._recent is None else self._recent.shape[1]
        return max(self.saliency.spread, 1 / width) * (1 / self.window + 1 / self.saliency.tokens) ** 0.5

    @property
    def drifted(self) -> bool:
        """Whether a full window shows another ratio than the expected one."""
        off = abs(self.ratio - self.saliency.ratio)
        return len(self._ratios) == self.window and off > self.errors * self.standard_error

    def recalibrated(self) -> StaticSaliency:
        """The saliency from the tokens of the window, from now on the one in use; the window starts anew.

        Raises SpikeError when the window is empty.
        """
        self.saliency = self._calibrate([] if self._recent is None else [self._recent])
        self.recalibrations += 1
        self._recent, self._ratios = None, torch.empty(0)
        return self.saliency

    def _keep(self, rows: Tensor, ratios: Tensor) -> None:
        if self._recent is not None and self._recent.shape[1] != rows.shape[1]:
            raise SpikeError(
                f"Activations of width {rows.shape[1]} came to a monitor of width {self._recent.shape[1]}.",
                "Give each layer a monitor of its own.",
            )
        before = rows[:0] if self._recent is None else self._recent
        self._recent = torch.cat((before, rows[-self.window :]))[-self.window :].clone()
        self._ratios = torch.cat((self._ratios.to(ratios.device), ratios[-self.window :]))[-self.window :].clone()


def _deviations(rows: Tensor) -> tuple[Tensor, Tensor]:
    middle = (rows.shape[1] - 1) // 2
    center = _smallest(rows, middle)
    mad = _smallest((rows - center).abs_(), middle)
    flat = (mad == 0).squeeze(1)
    if bool(flat.any()):
        center[flat], mad[flat] = _of_non_zeros(rows[flat])
    return center, mad


def _smallest(rows: Tensor, index: int) -> Tensor:
    """The number of rank `index` of every row: (rows, width) -> (rows, 1)."""
    if rows.device.type == "cpu":  # NumPy selects and sorts by vector instructions, in a fifth of the time of PyTorch
        return torch.from_numpy(np.partition(rows.numpy(), index, axis=1)[:, index : index + 1].copy())
    return rows.kthvalue(index + 1, dim=1, keepdim=True).values


def _sorted(rows: Tensor) -> Tensor:
    """Every row in ascending order; overwrites the rows."""
    if rows.device.type == "cpu":
        rows.numpy().sort(axis=1)
        return rows
    return rows.sort(1).values


def _of_non_zeros(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The median of the non-zeros of every row, and their MAD or what stands for it: two (rows, 1)."""
    zero = rows == 0
    count = (~zero).sum(1, keepdim=True)
    middle = (count - 1).clamp_(min=0) // 2
    center = _sorted(rows.masked_fill(zero, inf)).gather(1, middle).masked_fill_(count == 0, 0)
    away = (rows - center).abs_()
    mad = _sorted(away.masked_fill(zero, inf)).gather(1, middle).masked_fill_(count == 0, 0)
    mean = away.masked_fill_(zero, 0).double().sum(1, keepdim=True) / count.clamp(min=1)
    return center, torch.where(mad > 0, mad, (mean * (MEAN_CONSISTENCY * CONSISTENCY)).float())


def _reach(mad: Tensor, threshold: float) -> Tensor:
    return (mad * (threshold / CONSISTENCY)).masked_fill_(mad == 0, inf)


def _beyond(rows: Tensor, center: Tensor | float, reach: Tensor | float) -> Tensor:
    return ((rows - center).abs_() > reach).logical_and_(rows != 0)


def _above(scores: Tensor, ratio: float) -> float:
    """The number that the share `ratio` of the scores exceeds, or less where they tie."""
    if not 0 < ratio < 1:
        raise SpikeError(f"A ratio of {ratio} of salient values is not between 0 and 1.", "Give a share such as 0.025.")
    return float(_smallest(scores.reshape(1, -1), scores.numel() - 1 - int(ratio * scores.numel())))


def _measured(rows: Tensor, center: float, reach: float) -> StaticSaliency:
    ratios = _beyond(rows, center, reach).double().mean(1)
    return StaticSaliency(center, reach, float(ratios.mean()), _spread(ratios), len(ratios))


def _spread(ratios: Tensor) -> float:
    """The standard deviation between tokens that foretells how means of many differ: tokens of a passage are alike.

    That of PASSAGE tokens each, times the root of their number, where there are some and it is the larger (derived).
    """
    whole = ratios[: len(ratios) // PASSAGE * PASSAGE].reshape(-1, PASSAGE).mean(1)
    found = [float(some.std()) * size**0.5 for some, size in ((ratios, 1), (whole, PASSAGE)) if len(some) > 1]
    return max(found, default=0.0)


def _pooled(samples: Iterable[Tensor]) -> Tensor:
    rows = [activations(sample) for sample in samples]
    widths = sorted({part.shape[1] for part in rows})
    if len(widths) != 1 or not sum(len(part) for part in rows):
        raise SpikeError(
            f"Saliency cannot be calibrated on {sum(len(part) for part in rows)} tokens of widths {widths}.",
            "Give one token or more, all of one layer.",
        )
    return torch.cat(rows)


def _check_threshold(threshold: float) -> None:
    if not threshold > 0:
        raise SpikeError(f"A threshold of {threshold} is no modified z-score above 0.", "Take 3.5, or 2.5 to 5.")
