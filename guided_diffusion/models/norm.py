"""GroupNorm, alone or with SiLU, that keeps only its input for the backward pass and is fast in both memory layouts."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .layers import at_least_float32, is_channels_last

CHUNK = 2**19  # elements in one pass of the channels-last gradient, few enough to stay in a processor's cache


class GroupNorm(nn.GroupNorm):
    """Group normalisation of x [N, C, H, W], in float32 under any autocast; the result has x's dtype.

    With autograd, torch keeps the inputs of the norm and of the SiLU after it. Here the norm's input alone is kept and
    the SiLU's is computed again, so a network keeps about a third less.
    """

    def forward(self, x, silu=False, float32=False):
        """GroupNorm(x), or SiLU(GroupNorm(x)); of x's dtype, or with `float32` at least of that."""
        dtype = torch.promote_types(x.dtype, torch.float32) if float32 else x.dtype
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():  # the compiler fuses the plain operations
            y = F.group_norm(at_least_float32(x), self.num_groups, self.weight, self.bias, self.eps)
            return (F.silu(y) if silu else y).to(dtype)
        if not torch.is_grad_enabled():
            return _normalised(x, self.weight, self.bias, self.num_groups, self.eps, silu, dtype)[0]
        return _GroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps, silu, dtype)


def group_norm(channels, smallest_group=4):
    """`GroupNorm` with as many equal groups as there can be, at most 32, of `smallest_group` channels or more.

    A group of one channel would cancel an added time embedding or bias, which is constant over the channel, and could
    not normalise a map of one pixel.
    """
    most = max(min(32, channels // smallest_group), 1)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels)


def _normalised(x, weight, bias, groups, eps, silu, dtype):
    """(the result in `dtype`, the means [N, G], the inverse deviations [N, G])."""
    y, mean, rstd = torch.native_group_norm(_as_kernel_input(x, dtype), weight, bias, *_map_sizes(x), groups, eps)
    return (F.silu(y, inplace=True) if silu else y).to(dtype), mean, rstd


def _as_kernel_input(x, dtype):
    """x as torch's kernels take it for a result of `dtype`: in float32 except on a CPU, whose kernels compute in it
    anyway and round the result to their input's dtype."""
    if x.device.type == "cpu":
        return x.to(dtype).contiguous(memory_format=_order(x))
    return at_least_float32(x).contiguous()


def _order(x):
    """The order of memory in which the norm of x is computed. Only a CPU's kernels know channels-last."""
    return torch.channels_last if x.device.type == "cpu" and is_channels_last(x) else torch.contiguous_format


def _map_sizes(x):
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu, dtype):
        y, mean, rstd = _normalised(x, weight, bias, groups, eps, silu, dtype)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        order, values = _order(x), _as_kernel_input(x, grad.dtype)
        grad = grad.to(dtype=values.dtype, memory_format=order)
        if order == torch.channels_last and x.numel() > CHUNK:
            gradients = _channels_last_gradients(grad, x, weight, bias, mean, rstd, ctx.silu)
        else:
            sizes = (*_map_sizes(x), ctx.groups)
            if ctx.silu:
                y = torch.native_group_norm(values, weight, bias, *sizes, ctx.eps)[0]
                grad = torch.ops.aten.silu_backward(grad, y)
            wanted = ctx.needs_input_grad[:3]
            gradients = torch.ops.aten.native_group_norm_backward(grad, values, mean, rstd, weight, *sizes, wanted)
        dx, *others = gradients
        return None if dx is None else dx.to(x.dtype), *others, None, None, None, None


def _channels_last_gradients(grad, x, weight, bias, mean, rstd, silu):
    """The gradients of x, weight and bias, with feature maps in channels-last order.

    torch's own kernel for this order takes 17 times as long as for the usual one. With D channels of P pixels in a
    group, y = a x + b and a = weight rstd, the gradient is
        dx = a dy + c2 x + c3
        c2 = (mean sum(weight dy) - sum(weight dy x)) rstd^3 / (D P)
        c3 = -c2 mean - sum(weight dy) rstd / (D P)
    with sums over the group. They need a first pass over the pixels, which also leaves dy in dx's memory.
    """
    count, channels, pixels = _map_sizes(x)
    groups = mean.shape[1]
    size = channels // groups
    weight, bias, mean, rstd = (at_least_float32(v) for v in (weight, bias, mean, rstd))

    def of_channels(values):  # [N, G] -> [N, C]
        return values.repeat_interleave(size, dim=1)

    def of_groups(values):  # [N, C] -> [N, G], the sums
        return values.unflatten(1, (groups, size)).sum(dim=2)

    a = weight * of_channels(rstd)
    b = bias - a * of_channels(mean)
    xs, grads = (v.permute(0, 2, 3, 1).reshape(count, pixels, channels) for v in (x, grad))
    dx = torch.empty_like(xs)
    dy_sum, dyx_sum = torch.zeros_like(a), torch.zeros_like(a)
    step = max(1, CHUNK // channels)
    parts = [(n, slice(low, low + step)) for n in range(count) for low in range(0, pixels, step)]
    for n, part in parts:
        values, dy = xs[n, part].to(a.dtype), grads[n, part].to(a.dtype)
        if silu:
            dy = torch.ops.aten.silu_backward(dy, torch.addcmul(b[n], values, a[n]))
        dx[n, part] = dy
        dy_sum[n] += dy.sum(dim=0)
        dyx_sum[n] += (dy * values).sum(dim=0)
    sum_wdy, sum_wdyx = of_groups(weight * dy_sum), of_groups(weight * dyx_sum)
    c2 = (mean * sum_wdy - sum_wdyx) * rstd**3 / (size * pixels)
    c3 = of_channels(-c2 * mean - sum_wdy * rstd / (size * pixels))
    c2 = of_channels(c2)
    for n, part in parts:
        dx[n, part] = torch.addcmul(c3[n], xs[n, part], c2[n]).addcmul_(dx[n, part], a[n])
    weight_gradient = ((dyx_sum - of_channels(mean) * dy_sum) * of_channels(rstd)).sum(dim=0)
    dx = dx.view(count, *x.shape[2:], channels).permute(0, 3, 1, 2)
    return dx, weight_gradient.to(weight.dtype), dy_sum.sum(dim=0).to(bias.dtype)
