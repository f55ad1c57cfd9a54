/// Models of blocks composed at random: residual, dense, split, grouped, gated, recurrent, attention. Made from a
/// string of bytes, so that property tests and fuzz targets draw from the same ones.
#pragma once

#include <random>

#include "support/support.h"

namespace coppice::testing {

/// What graphs are made of.
enum class Blocks {
    kPrunable,  ///< what channels can be followed through
    kAll,       ///< operators in place, layers called twice, pooling, transposed convolutions, several outputs too
};

/// Writes the source of a model block by block. Images are [N, 3, 8, 8] at first, tokens [N, L, C].
class RandomGraph {
public:
    /// @param decisions  one byte each, in order; where they end the first choice is taken
    explicit RandomGraph(std::vector<uint8_t> decisions, Blocks blocks_from = Blocks::kPrunable)
        : all_(blocks_from == Blocks::kAll), decisions_(std::move(decisions)) {
        const int blocks = pick(2, 4);
        for (int i = 0; i < blocks; ++i) image_block();
        if (pick(0, 2) == 0) {
            line("x = torch.flatten(torch.adaptive_avg_pool2d(x, [2, 2]), 1)");
            line("x = " + linear("x", channels_ * 4, 5));
        } else {
            to_tokens();
            for (int i = pick(1, 3); i > 0; --i) token_block();
            line("x = " + linear("x.mean([1])", channels_, 5));
        }
    }

    Model model() const {
        std::string result = "x";
        for (const auto& name : outputs_) result += ", " + name;
        return build_model(tensors_, "def forward(self, x):\n" + source_ + "    return " + result + "\n");
    }
    const std::string& source() const { return source_; }

private:
    int pick(int low, int high) {
        return low + (next_ < decisions_.size() ? decisions_[next_++] : 0) % (high - low + 1);
    }
    void line(const std::string& text) { source_ += "    " + text + "\n"; }
    std::string fresh(const std::string& stem) { return stem + std::to_string(count_++); }

    std::string tensor(const std::string& name, std::vector<int64_t> shape, double scale, double offset = 0) {
        tensors_.emplace_back(name, offset + sine(std::move(shape), scale + 0.01 * static_cast<double>(count_ % 7)));
        return "self." + name;
    }

    std::string conv(const std::string& x, int64_t in, int64_t out, int64_t kernel = 3, int64_t groups = 1) {
        const auto name = fresh("conv");
        const auto padding = std::to_string(kernel / 2);
        const auto weight = tensor(name + ".weight", {out, in / groups, kernel, kernel},
                                   1.2 / std::sqrt(static_cast<double>(in / groups * kernel * kernel)));
        const auto bias = pick(0, 1) ? tensor(name + ".bias", {out}, 0.1) : "None";
        return "torch.conv2d(" + x + ", " + weight + ", " + bias + ", [1, 1], [" + padding + ", " + padding +
               "], [1, 1], " + std::to_string(groups) + ")";
    }

    std::string linear(const std::string& x, int64_t in, int64_t out) {
        const auto name = fresh("fc");
        const auto weight = tensor(name + ".weight", {out, in}, 1.2 / std::sqrt(static_cast<double>(in)));
        return "torch.linear(" + x + ", " + weight + ", " + tensor(name + ".bias", {out}, 0.1) + ")";
    }

    std::string batch_norm(const std::string& x, int64_t channels) {
        const auto name = fresh("bn");
        return "torch.batch_norm(" + x + ", " + tensor(name + ".weight", {channels}, 0.4, 1) + ", " +
               tensor(name + ".bias", {channels}, 0.2) + ", " + tensor(name + ".running_mean", {channels}, 0.1) + ", " +
               tensor(name + ".running_var", {channels}, 0.3, 1) + ", self.training, 0.1, 1e-5, True)";
    }

    std::string layer_norm(const std::string& x) {
        const auto name = fresh("ln");
        return "torch.layer_norm(" + x + ", [" + std::to_string(channels_) + "], " +
               tensor(name + ".weight", {channels_}, 0.3, 1) + ", " + tensor(name + ".bias", {channels_}, 0.1) + ")";
    }

    std::string activation(const std::string& x) {
        static const char* const kNames[] = {"relu",       "sigmoid", "tanh",      "hardtanh",   "relu6",
                                             "relu_",      "silu",    "hardswish", "leaky_relu", "hardtanh_",
                                             "hardswish_", "gelu",    "clamp",     "hardsigmoid"};
        const std::string name = kNames[pick(0, all_ ? 13 : 3)];
        return "torch." + name + "(" + x + (name == "clamp" ? ", -0.4, 0.7)" : ")");
    }

    void widen(int64_t out) {
        line("x = " + activation(batch_norm(conv("x", channels_, out), out)));
        channels_ = out;
    }

    void image_block() {
        const int64_t width = 4 * pick(2, 4);
        switch (pick(0, all_ ? 15 : 8)) {
            case 9:
            case 10:
            case 11:
            case 12:
            case 13:
            case 14:
            case 15:
                return block_beyond_pruning(width);
            case 0:
                return widen(width);
            case 1: {  // residual, with a projection where the width changes
                const auto inner = activation(batch_norm(conv("x", channels_, width), width));
                line("y = " + inner);
                line("y = " + batch_norm(conv("y", width, width), width));
                line("x = torch.relu(y + " + (channels_ == width ? "x" : conv("x", channels_, width, 1)) + ")");
                channels_ = width;
                return;
            }
            case 2: {  // dense
                line("features = [x]");
                for (int i = pick(1, 3); i > 0; --i) {
                    line("features.append(" + activation(conv("torch.cat(features, 1)", channels_, width)) + ")");
                    channels_ += width;
                }
                line("x = torch.cat(features, 1)");
                return;
            }
            case 3: {  // two halves, each its own way, shuffled together
                widen(width);
                line(pick(0, 1) ? "a, b = torch.chunk(x, 2, 1)"
                                : "a, b = torch.split(x, [" + std::to_string(width / 2) + ", " +
                                      std::to_string(width / 2) + "], 1)");
                line("b = " + activation(conv("b", width / 2, width / 2)));
                line("x = torch.cat([a, b], 1)");
                if (pick(0, 1)) {
                    const auto half = std::to_string(width / 2);
                    line("x = x.view([x.size(0), 2, " + half +
                         ", x.size(2), x.size(3)]).transpose(1, 2).reshape([x.size(0), " + std::to_string(width) +
                         ", x.size(2), x.size(3)])");
                }
                return;
            }
            case 4:  // grouped
                widen(width);
                line("x = " + activation(conv("x", width, width * pick(1, 2), 3, pick(0, 1) ? 2 : 4)));
                channels_ =
                    tensors_.back().second.dim() == 4 ? tensors_.back().second.size(0) : tensors_.back().second.numel();
                return;
            case 5:  // depthwise separable, inverted
                line("y = " + activation(batch_norm(conv("x", channels_, width, 1), width)));
                line("y = " + activation(batch_norm(conv("y", width, width, 3, width), width)));
                line("x = " + batch_norm(conv("y", width, 8, 1), 8));
                channels_ = 8;
                return;
            case 6: {  // squeeze and excite, and a scale for each channel
                widen(width);
                line("s = torch.relu(" + conv("x.mean([2, 3], True)", width, 4, 1) + ")");
                line("x = x * torch.sigmoid(" + conv("s", 4, width, 1) + ")");
                if (pick(0, 1)) line("x = x * " + tensor(fresh("scale"), {width, 1, 1}, 0.4, 1));
                return;
            }
            case 7: {  // group norm over groups of channels, then pixels become channels and back
                widen(width);
                const auto name = fresh("gn");
                line("x = torch.group_norm(x, " + std::to_string(pick(0, 1) ? 1 : width / 4) + ", " +
                     tensor(name + ".weight", {width}, 0.3, 1) + ", " + tensor(name + ".bias", {width}, 0.1) + ")");
                if (pick(0, 1)) {
                    line("x = torch.pixel_shuffle(x, 2)");
                    channels_ /= 4;
                    widen(8);
                    line("x = torch.avg_pool2d(x, [2, 2])");
                }
                return;
            }
            default:  // a branch that pads its channels, as shortcuts without weights do
                line("y = torch.relu(" + conv("x", channels_, channels_ + 4) + ")");
                line("x = y + torch.constant_pad_nd(x, [0, 0, 0, 0, 2, 2])");
                channels_ += 4;
        }
    }

    void block_beyond_pruning(int64_t width) {
        switch (pick(0, 8)) {
            case 8: {  // a residual that is read again behind the sum: by a concatenation, or a padding of its slices
                widen(width);
                line("s = x[:, :, ::2, ::2]");
                line("y = torch.relu(" + conv("x", width, width) + ")");
                line("y = torch.relu(" + conv("y", width, width) + (pick(0, 1) ? " + x)" : " + x.transpose(2, 3))"));
                if (pick(0, 1)) line("y = " + conv("y", width, width) + " + x");
                line("x = torch.cat([y, x], 1)");
                channels_ = 2 * width;
                if (pick(0, 1)) {
                    line("x = torch.conv2d(x, " +
                         tensor(fresh("half") + ".weight", {width, 2 * width, 2, 2},
                                1.2 / std::sqrt(static_cast<double>(8 * width))) +
                         ", None, [2, 2])");
                    line(
                        "x = torch.constant_pad_nd(x, [0, 0, 0, 0, 2, 2]) + "
                        "torch.constant_pad_nd(s, [0, 0, 0, 0, 2, 2])");
                    line("x = torch.upsample_nearest2d(x, [8, 8])");
                    channels_ = width + 4;
                }
                return;
            }
            case 0:  // sums and a rectifier that write over what they read
                widen(width);
                line("y = " + conv("x", width, width));
                line("y += x");
                line("y.relu_()");
                if (pick(0, 1)) line("y.mul_(" + conv("x", width, width, 1) + ")");
                line("x = y");
                return;
            case 1: {  // the same layer three times
                widen(width);
                const auto layer = conv("x", width, width);
                for (int i = 0; i < 3; ++i) line("x = torch.relu(" + layer + ")" + (pick(0, 1) ? " * 0.5 + x" : ""));
                return;
            }
            case 2: {  // pooling
                widen(width);
                static const char* const kPools[] = {
                    "torch.avg_pool2d(x, [3, 3], [1, 1], [1, 1])",
                    "torch.avg_pool2d(x, [3, 3], [1, 1], [1, 1], False, False)",
                    "torch.max_pool2d(x, [3, 3], [1, 1], [1, 1])",
                    "torch.max_pool2d(torch.upsample_nearest2d(x, [16, 16]), [2, 2])",
                    "torch.avg_pool2d(torch.upsample_bilinear2d(x, [16, 16], False), [2, 2])",
                    "torch.adaptive_avg_pool2d(x, [8, 8])",
                };
                line(std::string("x = ") + kPools[pick(0, 5)]);
                return;
            }
            case 3: {  // up by a transposed convolution, down by a strided one
                widen(width);
                const int64_t groups = pick(0, 1) ? 1 : 4;
                const auto name = fresh("up");
                const auto weight = tensor(name + ".weight", {width, 8 / groups, 4, 4},
                                           1.2 / std::sqrt(static_cast<double>(4 * width / groups)));
                line("y = " + activation("torch.conv_transpose2d(x, " + weight + ", None, [2, 2], [1, 1], [0, 0], " +
                                         std::to_string(groups) + ")"));
                line("x = torch.conv2d(y, " +
                     tensor(fresh("down") + ".weight", {width, 8, 2, 2}, 1.2 / std::sqrt(32.0)) + ", None, [2, 2])");
                return;
            }
            case 4:  // a tensor that parts of the batch and of the channels are written into
                widen(width);
                line("y = x.clone()");
                line("y[:, 0:2] = " + conv("x", width, 2, 1));
                line("x = " + conv("y", width, width) + " + x");
                return;
            case 5:  // operands of other shapes
                widen(width);
                line("s = " + conv("x.mean([2], True)", width, width, 1));
                line("t = " + conv("x.mean([3], True)", width, width, 1));
                line(pick(0, 1) ? "x = torch.relu(s + t) + x" : "x = x + s * t");
                return;
            case 6:  // parts with bounds of their own, put together again
                widen(width);
                for (const char* name : {"a", "b"}) line(std::string(name) + " = " + activation(conv("x", width, 8)));
                channels_ = pick(0, 1) ? 16 : 20;
                line(channels_ == 16 ? "x = torch.cat([a, b], 1)" : "x = torch.cat([a, x[:, 0:4], b], 1)");
                return;
            default: {  // an output of its own
                widen(width);
                const auto name = fresh("out");
                line(name + " = " + (pick(0, 1) ? "x" : activation(conv("x", width, 4))));
                outputs_.push_back(name);
                line("x = " + conv("x", width, width) + " - x.mean()");
            }
        }
    }

    void to_tokens() {
        if (pick(0, 1)) {
            line("x = torch.flatten(x, 2).transpose(1, 2)");
        } else {
            line("x = x.permute([0, 2, 3, 1]).reshape([x.size(0), -1, " + std::to_string(channels_) + "])");
        }
        line("x = " + linear("x", channels_, 12));
        channels_ = 12;
    }

    void token_block() {
        const auto width = std::to_string(channels_);
        switch (pick(0, 4)) {
            case 0: {  // attention of 3 heads, projections apart
                line("n = " + layer_norm("x"));
                for (const char* name : {"q", "k", "v"})
                    line(std::string(name) + " = " + linear("n", channels_, channels_) +
                         ".view([x.size(0), -1, 3, 4]).transpose(1, 2)");
                if (pick(0, 1)) {
                    line("y = torch.scaled_dot_product_attention(q, k, v)");
                } else {
                    line("y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * 0.5, -1), v)");
                }
                line("y = y.transpose(1, 2).reshape([x.size(0), -1, " + width + "])");
                line("x = x + " + linear("y", channels_, channels_));
                return;
            }
            case 1: {  // packed
                line("p = " + linear(layer_norm("x"), channels_, 3 * channels_) +
                     ".reshape([x.size(0), -1, 3, 3, 4]).permute([2, 0, 3, 1, 4])");
                line("q, k, v = torch.unbind(p, 0)");
                line("y = torch.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape([x.size(0), -1, " +
                     width + "])");
                line("x = x + " + linear("y", channels_, channels_));
                return;
            }
            case 2:  // feed-forward
                line("y = torch.gelu(" + linear(layer_norm("x"), channels_, 20) + ")");
                line("x = x + " + linear("y", 20, channels_));
                return;
            case 3: {  // recurrent, as a module that adds a batch dimension where there is none
                const auto name = fresh("cell");
                const double scale = 1.2 / std::sqrt(static_cast<double>(channels_));
                const auto cell = tensor(name + ".weight_ih", {24, channels_}, scale) + ", " +
                                  tensor(name + ".weight_hh", {24, 8}, 0.4) + ", " +
                                  tensor(name + ".bias_ih", {24}, 0.1) + ", " + tensor(name + ".bias_hh", {24}, 0.2);
                line("y = x");
                line("if x.dim() != 3:");
                line("    y = torch.unsqueeze(x, 0)");
                line("y, h = torch.gru(y, torch.zeros([1, y.size(0), 8]), [" + cell +
                     "], True, 1, 0.0, False, False, True)");
                line("if x.dim() != 3:");
                line("    y = torch.squeeze(y, 0)");
                line("x = x + " + linear("y", 8, channels_));
                return;
            }
            default:  // gated feed-forward
                line("y = torch.glu(" + linear("x", channels_, 16) + ", -1)");
                line("x = x + " + linear("y", 8, channels_));
        }
    }

    const bool all_;
    std::vector<uint8_t> decisions_;
    size_t next_ = 0;
    std::vector<std::string> outputs_;
    std::vector<std::pair<std::string, at::Tensor>> tensors_;
    std::string source_;
    int64_t channels_ = 3;
    int count_ = 0;
};

/// Decisions drawn by `seed`, more than any graph takes.
inline std::vector<uint8_t> decisions_of(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<uint8_t> bytes(256);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

}  // namespace coppice::testing
