"""The activation criteria on the spoken-digit network, computed again in PyTorch: what each convolution's channels score, what is left when the lowest
third of one layer is masked, and what the order of the mean activation follows.

Needs a Python environment with torch, and the development data; nothing of Coppice needs this script.

usage: activation_criteria.py DATA      DATA the folder of the development data

A channel is masked behind its pooling, where the next layer reads it. `prune_cnn_gru.yaml` of tests/bench makes the same cuts with Coppice.
"""
import sys
import warnings

import torch

warnings.filterwarnings("ignore")
torch.set_grad_enabled(False)
torch.set_num_threads(1)
FOLDER = sys.argv[1] + "/fsdd/"
# Layer, batch norm, the module whose output the next layer reads, the next layer's weight.
LAYERS = [("features.0", "features.1", 3, "features.4.weight"), ("features.4", "features.5", 7, "features.8.weight"),
          ("features.8", "features.9", 11, "features.12.weight"), ("features.12", "features.13", 15, "recur.weight_ih_l0")]


def clips(file):
    data = torch.load(FOLDER + file)
    return data["waveform"].float().div(32768).unsqueeze(1), data["label"]


model = torch.jit.load(FOLDER + "cnn_gru.pt").eval()
tensors = model.state_dict()
features = list(model.features.children())
gru = torch.nn.GRU(128, 64, batch_first=True, bidirectional=True)
gru.load_state_dict({name[len("recur."):]: tensor for name, tensor in tensors.items() if name.startswith("recur.")})
train, _ = clips("train.pt")
test, labels = clips("test.pt")


def run(x, position=None, mask=None, seen=None):
    for i, module in enumerate(features):
        x = module(x)
        if i == position:
            x = x * mask[:, None]
        if seen is not None:
            seen.setdefault(i, []).append(x)
    return model.classify(gru(x.transpose(1, 2))[0].mean(1))


def accuracy(position, lowest, channels):
    mask = torch.ones(channels)
    mask[lowest] = 0
    return 100 * (run(test, position, mask).argmax(1) == labels).float().mean().item()


def rank_correlation(a, b):
    return torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1].item()


seen = {}
for begin in range(0, len(train), 50):
    run(train[begin:begin + 50], seen=seen)
print("| layer | random (5 seeds) | magnitude | apoz | mean_activation | wanda | follows the shift of the batch norm | follows the next layer's weights |")
print("|---|---|---|---|---|---|---|---|")
for layer, norm, position, reader in LAYERS:
    x = torch.cat(seen[position])  # [N, C, L]
    channels = x.size(1)
    weight, following = tensors[layer + ".weight"], tensors[reader].flatten(2) if tensors[reader].dim() > 2 else tensors[reader].unsqueeze(2)
    others = tensors[reader + "_reverse"].abs().sum(0) if reader.startswith("recur") else 0  # the GRU reads with two matrices
    read = following.abs().sum((0, 2)) + others
    squares = following.square().sum((0, 2)) + (tensors[reader + "_reverse"].square().sum(0) if reader.startswith("recur") else 0)
    scores = {
        "magnitude": weight.square().sum((1, 2)) + tensors[norm + ".weight"].square() + tensors[norm + ".bias"].square() + squares,
        "apoz": x.ne(0).float().mean((0, 2)),
        "mean_activation": x.abs().mean((0, 2)),
        "wanda": read * x.square().mean((0, 2)).sqrt(),
    }
    third = channels // 3
    chance = []
    for seed in range(5):
        chance.append(accuracy(position, torch.randperm(channels, generator=torch.Generator().manual_seed(seed))[:third], channels))
    cells = [f"{sum(chance) / 5:.1f} ({min(chance):.1f}-{max(chance):.1f})"]
    cells += [f"{accuracy(position, score.argsort(stable=True)[:third], channels):.1f}" for score in scores.values()]
    cells.append(f"{rank_correlation(scores['mean_activation'], tensors[norm + '.bias']):.2f}")
    cells.append(f"{rank_correlation(scores['mean_activation'], read):.2f}")
    print(f"| {layer} | " + " | ".join(cells) + " |")
