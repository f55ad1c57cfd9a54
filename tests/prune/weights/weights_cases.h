/// Small models for single weights.
#pragma once

#include <coppice/prune.h>

#include "support/support.h"

namespace coppice::testing {

inline Context context_of(const Inputs& example) {
    Context context;
    context.example = example;
    return context;
}

inline prune::WeightPruningOptions options_of(double sparsity) {
    prune::WeightPruningOptions options;
    options.sparsity = sparsity;
    options.batch_size = 2;  // several batches, the last one smaller
    return options;
}

/// conv 3 -> 4, 3x3; flatten; linear 64 -> 5. Input [N, 3, 6, 6].
inline Model two_layers() {
    return build_model({{"conv.weight", sine({4, 3, 3, 3}, 0.3)},
                        {"fc.weight", (at::arange(320.0) * 0.7).sin().reshape({5, 64}).to(at::kFloat)}},
                       "def forward(self, x):\n"
                       "    x = torch.relu(torch.conv2d(x, self.conv.weight))\n"
                       "    return torch.linear(torch.flatten(x, 1), self.fc.weight)\n");
}

inline Model linear_model(const at::Tensor& weight) {
    return build_model({{"fc.weight", weight}}, "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
}

struct ConvCase {
    std::string name;
    int64_t kernel, stride, padding, dilation, groups;
};

inline std::vector<ConvCase> conv_cases() {
    return {{"plain", 3, 1, 1, 1, 1},   {"strided", 3, 2, 0, 1, 1},   {"dilated", 2, 1, 2, 2, 1},
            {"grouped", 3, 1, 1, 1, 2}, {"depthwise", 3, 2, 1, 1, 4}, {"pointwise", 1, 1, 0, 1, 1}};
}

/// 4 -> 8 channels.
inline Model conv_model(const ConvCase& c) {
    const auto pair = [](int64_t v) { return "[" + std::to_string(v) + ", " + std::to_string(v) + "]"; };
    return build_model({{"conv.weight", sine({8, 4 / c.groups, c.kernel, c.kernel}, 0.5)}},
                       "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, None, " + pair(c.stride) +
                           ", " + pair(c.padding) + ", " + pair(c.dilation) + ", " + std::to_string(c.groups) + ")\n");
}

}  // namespace coppice::testing
