#!/usr/bin/env python3
"""Whether LibTorch's other int8 operators (onednn::qconv2d_pointwise, onednn::qlinear_pointwise) are faster than those that
Coppice's models call (quantized::conv2d, quantized::linear):

    tests/peers/onednn_pointwise.py

Needs torch (pip). One thread, microseconds of CPU time of the calling thread: the median of seven times 60 calls. Both sides get the
same integers; `quanta` is the largest difference of their results. The other operators add and rectify, or apply GELU, inside the
kernel; `fused` compares that with an operator for each step.
"""
import time
import warnings

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.backends.quantized.engine = "x86"
functional, quantized, onednn = torch.nn.functional, torch.ops.quantized, torch.ops.onednn

CONVOLUTIONS = [  # input channels, output channels, height, kernel, stride, groups
    (64, 64, 56, 3, 1, 1), (256, 256, 14, 3, 1, 1), (256, 64, 56, 1, 1, 1), (64, 256, 56, 1, 1, 1),
    (96, 96, 112, 3, 2, 96), (384, 384, 14, 3, 1, 384), (384, 64, 14, 1, 1, 1), (16, 16, 32, 3, 1, 1)]
LINEAR = [(128, 384, 384), (128, 384, 1536), (128, 1536, 384), (1024, 384, 384), (1024, 384, 1536), (1024, 1536, 384)]
ACTIVATION = 1 / 255.0  # scale of inputs
RESULT = 0.05           # scale of outputs


def microseconds(call, calls=60):
    for _ in range(5):
        call()
    medians = []
    for _ in range(7):
        start = time.thread_time()
        for _ in range(calls):
            call()
        medians.append((time.thread_time() - start) / calls)
    return sorted(medians)[3] * 1e6


def integers(tensor):
    return tensor.int_repr() if tensor.is_quantized else tensor


def row(name, plain, other, plain_fused, other_fused):
    quanta = (integers(plain()).int() - integers(other()).int()).abs().max().item()
    fused = f"{microseconds(plain_fused):.0f} | {microseconds(other_fused):.0f}" if other_fused else "- | -"
    print(f"| {name} | {microseconds(plain):.0f} | {microseconds(other):.0f} | {quanta} | {fused} |", flush=True)


def rounded_weight(weight):
    scales = weight.abs().flatten(1).amax(1) / 127
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8), scales, zeros


def convolution(inputs, outputs, height, kernel, stride, groups):
    image = torch.rand(1, inputs, height, height).contiguous(memory_format=torch.channels_last)
    x = torch.quantize_per_tensor(image, ACTIVATION, 0, torch.quint8)
    plain_x = x.int_repr().contiguous(memory_format=torch.channels_last)
    weight, scales, zeros = rounded_weight(torch.randn(outputs, inputs // groups, kernel, kernel) * 0.1)
    bias, steps, padding, one = torch.zeros(outputs), [stride] * 2, [kernel // 2] * 2, [1, 1]
    packed = quantized.conv2d_prepack(weight, bias, steps, padding, one, groups)
    opaque = onednn.qconv_prepack(weight.int_repr(), scales, ACTIVATION, 0, steps, padding, one, groups, list(x.shape))
    added = torch.quantize_per_tensor(torch.rand_like(quantized.conv2d(x, packed, RESULT, 0).dequantize()), ACTIVATION, 0, torch.quint8)
    plain_added = added.int_repr().contiguous(memory_format=torch.channels_last)
    arguments = (plain_x, ACTIVATION, 0, opaque, scales, zeros)
    shape = (steps, padding, one, groups, RESULT, 0, torch.uint8)
    row(f"convolution {inputs} to {outputs}, {height}x{height}, kernel {kernel}, stride {stride}, groups {groups}",
        lambda: quantized.conv2d_relu(x, packed, RESULT, 0),
        lambda: onednn.qconv2d_pointwise(*arguments, bias, *shape, "relu", [], ""),
        lambda: quantized.add_relu(quantized.conv2d(x, packed, RESULT, 0), added, RESULT, 0),
        (lambda: onednn.qconv2d_pointwise.binary(*arguments, plain_added, bias, *shape, ACTIVATION, 0, "sum", 1.0, "relu", [], "")) if groups == 1 else None)


def linear(rows, inputs, outputs):
    data = torch.randn(rows, inputs)
    scale, zero = data.abs().max().item() / 127, 128
    x = torch.quantize_per_tensor(data, scale, zero, torch.quint8)
    weight, scales, zeros = rounded_weight(torch.randn(outputs, inputs) * 0.05)
    bias = torch.randn(outputs)
    packed = quantized.linear_prepack(weight, bias)
    opaque = onednn.qlinear_prepack(weight.int_repr(), [rows, inputs])
    arguments = (x.int_repr(), scale, zero, opaque, scales, zeros, bias, RESULT)
    row(f"linear {rows} x {inputs} to {outputs}",
        lambda: quantized.linear(x, packed, RESULT, 128),
        lambda: onednn.qlinear_pointwise(*arguments, 128, torch.uint8, "none", [], ""),
        lambda: torch.quantize_per_tensor(functional.gelu(quantized.linear(x, packed, RESULT, 128).dequantize()), RESULT, 10, torch.quint8),
        lambda: onednn.qlinear_pointwise(*arguments, 10, torch.uint8, "gelu", [], "none"))


def main():
    print(f"torch {torch.__version__}\n")
    print("| layer | quantized:: | onednn:: | quanta | fused with add and relu, or gelu: quantized:: | onednn:: |")
    print("|---|---|---|---|---|---|")
    for case in CONVOLUTIONS:
        convolution(*case)
    for case in LINEAR:
        linear(*case)


if __name__ == "__main__":
    main()
