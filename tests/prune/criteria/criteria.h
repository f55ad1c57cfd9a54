/// What tests of criteria share.
#pragma once

#include "prune/masking.h"

namespace coppice::testing {

/// y = b relu(a x + bias): 4 inputs, 3 hidden channels, 2 outputs.
inline Model hidden_layer() {
    return build_model({{"a.weight", sine({3, 4}, 0.9)}, {"a.bias", sine({3}, 0.3)}, {"b.weight", sine({2, 3}, 0.8)}},
                       R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(x, self.a.weight, self.a.bias)), self.b.weight)
)");
}

/// A 1x1 convolution that copies its input of `channels` images, and one that reads it.
inline Model copied_images(int64_t channels) {
    return build_model({{"a.weight", at::eye(channels).reshape({channels, channels, 1, 1})},
                        {"b.weight", sine({2, channels, 3, 3}, 0.4)}},
                       R"(
def forward(self, x):
    return torch.conv2d(torch.conv2d(x, self.a.weight), self.b.weight, None, [1, 1], [1, 1])
)");
}

inline Context calibrated_on(const Inputs& inputs, const at::Tensor& target = {}) {
    Context context;
    context.example = inputs;
    std::vector<at::Tensor> tensors;
    for (const auto& input : inputs) tensors.push_back(input.toTensor());
    context.data.calibration =
        tensor_dataset(tensors, target.defined() ? target : at::zeros({tensors[0].size(0)}), "by hand");
    return context;
}

/// Scores of the only group of `model`.
inline at::Tensor only_scores(const prune::Criterion& criterion, const Model& model, Context context) {
    const auto groups = prune::find_groups(model, Facts::observe(model, context.example));
    EXPECT_EQ(groups.all().size(), 1u);
    return criterion.scores(model, groups, context).at(0);
}

}  // namespace coppice::testing
