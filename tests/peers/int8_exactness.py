"""Whether LibTorch's int8 convolutions compute what they should: largest difference from exact sums, in steps of the output.

Needs a Python environment with torch 2.15; nothing of Coppice needs this script.

usage: int8_exactness.py

Inputs of 255 and weights of one absolute value, all of one sign and alternating by filter, and random ones. A step is what rounding may
be off by. Engines as a program chooses them (torch.backends.quantized.engine); x86 is LibTorch's default.
"""
import warnings

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
# dimensions, input channels, output channels, kernel, stride, groups
CONVOLUTIONS = [(2, 64, 64, 3, 1, 1), (2, 256, 256, 3, 1, 32), (2, 64, 64, 3, 1, 64), (2, 104, 104, 3, 1, 104), (2, 104, 104, 3, 2, 104),
                (2, 104, 104, 5, 1, 104), (2, 208, 416, 3, 1, 208), (2, 104, 104, 1, 1, 104), (3, 104, 104, 3, 1, 104), (1, 104, 104, 3, 1, 104)]
# input channels, output channels, kernel, stride
TRANSPOSED = [(64, 64, 2, 2), (64, 64, 3, 1), (64, 32, 2, 2), (64, 32, 3, 2)]


def quantized(integers, scales=None):
    if scales is None:
        return torch._make_per_tensor_quantized_tensor(integers.to(torch.uint8), 1.0, 0)
    return torch._make_per_channel_quantized_tensor(integers.to(torch.int8), scales, torch.zeros(len(scales), dtype=torch.long), 0)


def steps(call, exact):
    low, high = min(exact.min().item(), 0), max(exact.max().item(), 0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    expected = (torch.round(exact / scale) + zero).clamp(0, 255)
    return (call(scale, zero).int_repr() - expected).abs().max().item()


def convolution(dims, inputs, outputs, kernel, stride, groups, largest):
    shape, worst = [outputs, inputs // groups] + [kernel] * dims, 0
    for kind in ("same", "alternating", "random"):
        torch.manual_seed(0)
        x, w = torch.full([1, inputs] + [9] * dims, 255), torch.full(shape, largest)
        if kind == "alternating":
            w[1::2] *= -1
        if kind == "random":
            x, w = torch.randint(0, 256, x.shape), torch.randint(-largest, largest + 1, shape)
        image = quantized(x.contiguous(memory_format=FORMATS.get(dims, torch.contiguous_format)))
        weight = quantized(w, torch.ones(outputs, dtype=torch.double))
        ops = torch.ops.quantized
        packed = getattr(ops, f"conv{dims}d_prepack")(weight, None, [stride] * dims, [kernel // 2] * dims, [1] * dims, groups)
        exact = getattr(torch.nn.functional, f"conv{dims}d")(x.double(), w.double(), None, stride, kernel // 2, 1, groups)
        worst = max(worst, steps(lambda scale, zero: getattr(ops, f"conv{dims}d")(image, packed, scale, zero), exact))
    return worst


def transposed(inputs, outputs, kernel, stride):
    torch.manual_seed(0)
    x, w = torch.randint(0, 256, [2, inputs, 14, 14]), torch.randint(-60, 61, [inputs, outputs, kernel, kernel])
    weight = torch._make_per_tensor_quantized_tensor(w.to(torch.int8), 1.0, 0)
    packed = torch.ops.quantized.conv_transpose2d_prepack(weight, None, [stride] * 2, [0, 0], [0, 0], [1, 1], 1)
    exact = torch.conv_transpose2d(x.double(), w.double(), None, [stride] * 2)
    return steps(lambda scale, zero: torch.ops.quantized.conv_transpose2d(quantized(x), packed, scale, zero), exact)


def main():
    engines = [engine for engine in ("x86", "fbgemm", "onednn") if engine in torch.backends.quantized.supported_engines]
    print(f"torch {torch.__version__}\n")
    print("| layer | " + " | ".join(f"{engine}, 8 bits | 7 bits" for engine in engines) + " |")
    print("|---|" + "---|---|" * len(engines))

    def row(name, measure, bits):
        cells = []
        for engine in engines:
            torch.backends.quantized.engine = engine
            cells += [f"{measure(largest):.0f}" for largest in bits] + ["-"] * (2 - len(bits))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    for dims, inputs, outputs, kernel, stride, groups in CONVOLUTIONS:
        row(f"convolution {dims}d, {inputs} to {outputs}, kernel {kernel}, stride {stride}, groups {groups}",
            lambda largest: convolution(dims, inputs, outputs, kernel, stride, groups, largest), (127, 63))
    for case in TRANSPOSED:
        row("transposed 2d, {} to {}, kernel {}, stride {}, one scale".format(*case), lambda _: transposed(*case), (127,))


if __name__ == "__main__":
    main()
