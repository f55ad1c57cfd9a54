"""What a convolution by onednn::qconv2d_pointwise saves over quantized::conv2d and the operators behind it, and what its views cost.

Needs a Python environment with torch 2.15; nothing of Coppice needs this script. The savings an element in quantize/emit/fused_conv.cpp follow from it.

usage: fused_conv.py [THREADS]

Everything is TorchScript, one process, the two forms in turns; a figure is the least of ROUNDS blocks of CALLS calls, in microseconds.
"""
import sys
import time
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")
ROUNDS, CALLS = 9, 40
SCALE, ZERO = 0.05, 100


def integers(quantized: torch.Tensor) -> torch.Tensor:
    """uint8 over the same memory."""
    return torch.empty([0], dtype=torch.uint8).set_(quantized.as_strided([0], [1]), 0, quantized.size(), quantized.stride())


def over(integers: torch.Tensor) -> torch.Tensor:
    """quint8 over the same memory."""
    empty = torch._empty_affine_quantized([0], dtype=torch.quint8, scale=0.1, zero_point=3)
    return empty.set_(integers.as_strided([0], [1]), 0, integers.size(), integers.stride())


class Packed(nn.Module):
    def __init__(self, conv, kind):
        super().__init__()
        self.conv, self.kind = conv, kind

    def forward(self, x, residual):
        y = self.conv(x)
        if self.kind == "add":
            y = torch.ops.quantized.add_relu(y, residual, 0.1, 3)
        elif self.kind == "silu":
            y = torch.ops.quantized.mul(y, torch.ops.quantized.sigmoid(y, 0.00390625, 0), 0.1, 3)
        elif self.kind == "hardswish":
            y = torch.ops.quantized.hardswish(y, 0.1, 3)
        return y


class Fused(nn.Module):
    def __init__(self, weight, bias, padding: int, groups: int, kind, shape):
        super().__init__()
        self.scales, self.bias = torch.full((weight.size(0),), 0.02), bias
        self.zeros = torch.zeros(weight.size(0), dtype=torch.long)
        self.packed = torch.ops.onednn.qconv_prepack(weight, self.scales, 1.0, 0, [1, 1], [padding, padding], [1, 1], groups, shape)
        self.padding, self.groups, self.kind = padding, groups, kind
        self.activation = {"silu": "swish", "hardswish": "hardswish", "add": "relu"}.get(kind, "none")

    def forward(self, x, residual):
        pad = [self.padding, self.padding]
        if self.kind == "add":
            y = torch.ops.onednn.qconv2d_pointwise(integers(x), 0.05, 100, self.packed, self.scales, self.zeros, integers(residual), self.bias, [1, 1],
                                                   pad, [1, 1], self.groups, 0.1, 3, torch.uint8, 0.05, 100, "sum", 1.0, self.activation, [], "")
        else:
            y = torch.ops.onednn.qconv2d_pointwise(integers(x), 0.05, 100, self.packed, self.scales, self.zeros, self.bias, [1, 1], pad, [1, 1],
                                                   self.groups, 0.1, 3, torch.uint8, self.activation, [], "")
        return over(y)


class Convert(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, residual):
        if self.how == "view":
            return integers(x)
        if self.how == "copy":
            return x.int_repr()
        return x


def least(*modules, inputs):
    frozen = [torch.jit.freeze(torch.jit.script(module.eval())) for module in modules]
    times = [[] for _ in frozen]
    for module in frozen:
        for _ in range(10):
            module(*inputs)
    for _ in range(ROUNDS):
        for taken, module in zip(times, frozen):
            start = time.perf_counter()
            for _ in range(CALLS):
                module(*inputs)
            taken.append((time.perf_counter() - start) / CALLS * 1e6)
    return [min(taken) for taken in times]


def image(*shape):
    return torch.quantize_per_tensor(torch.randn(shape), SCALE, ZERO, torch.quint8).contiguous(memory_format=torch.channels_last)


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = "x86"
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {threads} threads\n")
    print("| integers of a quantized tensor | view, us | int_repr, us |\n|---|---|---|")
    for shape in ((1, 16, 32, 32), (1, 384, 14, 14), (1, 144, 56, 56), (8, 144, 56, 56)):
        x = image(*shape)
        nothing, view, copy = least(Convert("nothing"), Convert("view"), Convert("copy"), inputs=(x, x))
        print(f"| {'x'.join(map(str, shape))} | {view - nothing:.1f} | {copy - nothing:.1f} |", flush=True)
    print("\n| convolution | elements that come out | quantized::, us | onednn::, us | saved, us |\n|---|---|---|---|---|")
    for kind, n, i, o, kernel, side, groups in (
            ("add", 1, 16, 16, 3, 32, 1), ("add", 8, 16, 16, 3, 32, 1), ("add", 1, 64, 64, 3, 56, 1), ("add", 1, 64, 256, 1, 56, 1),
            ("add", 8, 64, 256, 1, 56, 1), ("add", 8, 256, 1024, 1, 14, 1), ("depthwise", 1, 144, 144, 3, 56, 144),
            ("depthwise", 1, 384, 384, 3, 14, 384), ("depthwise", 1, 960, 960, 3, 7, 960), ("depthwise", 8, 144, 144, 3, 56, 144),
            ("depthwise", 8, 384, 384, 3, 14, 384), ("silu", 1, 16, 96, 1, 112, 1), ("silu", 1, 64, 384, 1, 14, 1), ("silu", 8, 64, 384, 1, 14, 1),
            ("hardswish", 1, 16, 96, 1, 112, 1), ("hardswish", 1, 64, 384, 1, 14, 1)):
        weight = torch.quantize_per_channel(torch.randn(o, i // groups, kernel, kernel) * 0.3, torch.full((o,), 0.02),
                                            torch.zeros(o, dtype=torch.long), 0, torch.qint8)
        bias = torch.randn(o)
        conv = torch.ao.nn.quantized.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups)
        conv.set_weight_bias(weight, bias)
        conv.scale, conv.zero_point = 0.1, 3
        x, residual = image(n, i, side, side), image(n, o, side, side)
        fused = Fused(weight.int_repr(), bias, kernel // 2, groups, kind, list(x.shape))
        packed_us, fused_us = least(Packed(conv, kind), fused, inputs=(x, residual))
        print(f"| {kind}, {n} x {i} to {o}, {side}x{side}, kernel {kernel} | {residual.numel()} | {packed_us:.0f} | {fused_us:.0f} | "
              f"{packed_us - fused_us:.0f} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
