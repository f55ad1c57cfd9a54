"""Ways to compute softmax attention with operators of stock LibTorch, side by side.

Needs a Python environment with torch 2.15; nothing of Coppice needs this script.

usage: attention_forms.py [THREADS]

12 heads of 32 numbers, 128 tokens, packed queries, keys and values as a linear layer gives them, an additive mask: one layer of
MiniLM-L6. Blocks of calls in random order; a figure is the median over the rounds.
"""
import random
import statistics
import sys
import time

import torch

ROUNDS, CALLS = 15, 8
HEADS, TOKENS, WIDTH = 12, 128, 32


def forms(batch):
    packed = torch.randn(batch, TOKENS, 3 * HEADS * WIDTH)
    mask = torch.zeros(batch, 1, 1, TOKENS)
    rows = mask.expand(batch, HEADS, 1, TOKENS).reshape(batch * HEADS, 1, TOKENS)
    scale = WIDTH ** -0.5

    def fused(dtype):
        q, k, v = (part.view(batch, TOKENS, HEADS, WIDTH).transpose(1, 2).to(dtype) for part in packed.chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask.to(dtype))
        return mixed.transpose(1, 2).reshape(batch, TOKENS, HEADS * WIDTH).float()

    def written_out(dtype):
        heads = packed.view(batch, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        heads = heads.to(dtype, memory_format=torch.contiguous_format).contiguous()
        q, k, v = heads.view(3, batch * HEADS, TOKENS, WIDTH).unbind(0)
        scores = torch.baddbmm(rows.to(dtype), q, k.transpose(1, 2), alpha=scale)
        mixed = torch.bmm(torch.softmax(scores, -1), v).view(batch, HEADS, TOKENS, WIDTH)
        return mixed.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).reshape(batch, TOKENS, -1)

    return {
        "scaled_dot_product_attention": lambda: fused(torch.float32),
        "the same in bfloat16": lambda: fused(torch.bfloat16),
        "baddbmm, softmax, bmm": lambda: written_out(torch.float32),
        "the same three in bfloat16": lambda: written_out(torch.bfloat16),
    }


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    random.seed(0)
    torch.manual_seed(0)
    table = {}
    with torch.inference_mode():
        for batch in (1, 8):
            made = forms(batch)
            exact = next(iter(made.values()))()
            times = {name: [] for name in made}
            for _ in range(ROUNDS):
                for name in random.sample(list(made), len(made)):
                    made[name]()
                    start = time.perf_counter()
                    for _ in range(CALLS):
                        made[name]()
                    times[name].append((time.perf_counter() - start) / CALLS * 1e6)
            for name, of in times.items():
                table.setdefault(name, []).append((statistics.median(of), float((made[name]() - exact).abs().max())))
    print("| form | batch 1, us | batch 8, us | largest difference |\n|---|---|---|---|")
    for name, cells in table.items():
        print(f"| {name} | {cells[0][0]:.0f} | {cells[1][0]:.0f} | {max(cell[1] for cell in cells):.1e} |")


if __name__ == "__main__":
    main()
