// Which blocks are found, and block reconstruction against all roundings of a block, tried one by one.
#include "plan/blocks.h"

#include <map>

#include "../layer_check.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

StaticOptions few_bits(int64_t bits, std::shared_ptr<const Rounding> rounding) {
    StaticOptions options;
    options.observer = minmax();
    options.weight_bits = bits;
    options.rounding = std::move(rounding);
    options.min_sqnr_db = -1e9;
    return options;
}

std::vector<std::vector<std::string>> layers_by_block(const Model& model, const Inputs& x) {
    const auto plan = plan_static(model, x, {x}, few_bits(8, nullptr));
    const auto blocks = find_blocks(plan.model(), plan.impl().facts, plan.impl().units);
    const LayerNames names(plan.model());
    std::vector<std::vector<std::string>> found;
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (i > 0) EXPECT_EQ(blocks[i].input, blocks[i - 1].output);
        std::vector<std::string> layers;
        for (auto* node : blocks[i].nodes)
            if (as_conv(node) || as_linear(node)) layers.push_back(names.of(node));
        if (!layers.empty()) found.push_back(layers);
    }
    return found;
}

TEST(Blocks, AreTheLayersOfAChainAndAllThatASumHoldsTogether) {
    using Names = std::vector<std::vector<std::string>>;
    EXPECT_EQ(layers_by_block(residual_model(), {sine({4, 3, 8, 8})}),
              (Names{{"conv1"}, {"conv2", "conv3", "shortcut"}, {"fc"}}));
    const std::vector<std::pair<std::string, at::Tensor>> tensors = {
        {"a.weight", sine({6, 6})}, {"b.weight", sine({6, 6}, 0.7)}, {"c.weight", sine({6, 6}, 0.4)}};
    EXPECT_EQ(layers_by_block(build_model(tensors,
                                          "def forward(self, x):\n"
                                          "    y = torch.relu(torch.linear(x, self.a.weight))\n"
                                          "    y = torch.relu(torch.linear(y, self.b.weight))\n"
                                          "    return torch.linear(y, self.c.weight)\n"),
                              {sine({4, 6})}),
              (Names{{"a"}, {"b"}, {"c"}}));
    // A skip over everything makes it one.
    EXPECT_EQ(layers_by_block(build_model(tensors,
                                          "def forward(self, x):\n"
                                          "    y = torch.relu(torch.linear(x, self.a.weight))\n"
                                          "    z = torch.cat([torch.linear(y, self.b.weight), y], 1).chunk(2, 1)\n"
                                          "    return x + torch.linear(z[0] + z[1], self.c.weight)\n"),
                              {sine({4, 6})}),
              (Names{{"a", "b", "c"}}));
}

at::Tensor cosine(at::IntArrayRef shape, double step, double start) {
    return (at::arange(c10::multiply_integers(shape), at::kDouble) * step + start)
        .cos()
        .mul(0.4)
        .to(at::kFloat)
        .reshape(shape);
}

const at::Tensor kA = cosine({2, 3}, 2.3, 0), kB = cosine({3, 2}, 1.1, 1);

/// y = x + B relu(A x) of three channels, and what follows it: channels times 10, 1 and 0.01.
Model small_block() {
    return build_model({{"a.weight", kA}, {"b.weight", kB}, {"c.weight", at::diag(at::tensor({10.0f, 1.0f, 0.01f}))}},
                       "def forward(self, x):\n"
                       "    x = x + torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)\n"
                       "    return torch.linear(x, self.c.weight)\n");
}

at::Tensor anchor(const StaticPlan& plan, const std::string& name) {
    for (const auto& [node, weight] : plan.impl().weights)
        if (LayerNames(plan.model()).of(node) == name) return weight;
    throw std::runtime_error("no layer " + name);
}

/// Weighed squared error of the block's output with weights `a` and `b`, in plain tensors.
double block_error(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b, const at::Tensor& channels) {
    const auto exact = at::relu(x.mm(kA.t())).mm(kB.t());
    return ((at::relu(x.mm(a.t())).mm(b.t()) - exact).square() * channels).sum().item<double>();
}

TEST(Brecq, IsNearTheBestOfAllRoundingsOfTheBlock) {
    const auto index = at::arange(64 * 3, at::kDouble);
    const auto x = ((index * 1.7).sin() + 0.6 * (index * 0.37).sin()).to(at::kFloat).reshape({64, 3});
    const std::map<std::string, at::Tensor> channels = {{"mse", at::ones({3})},
                                                        {"fisher", at::tensor({100.0f, 1.0f, 1e-4f})}};  // squares of c
    for (const auto& entry : channels) {
        const std::string& loss = entry.first;
        const at::Tensor& weights = entry.second;
        SCOPED_TRACE(loss);
        const auto nearest_of_all = plan_static(small_block(), {x}, {{x}}, few_bits(3, nearest()));
        auto together = std::make_shared<StaticPlan::Impl>(nearest_of_all.impl());
        reconstruct_blocks(*together, {{x}}, {600, 32, loss});
        const auto error_of = [&](const StaticPlan& plan) {
            return block_error(x, anchor(plan, "a").dequantize(), anchor(plan, "b").dequantize(), weights);
        };
        const auto scale_a = anchor(nearest_of_all, "a").q_per_channel_scales().to(at::kFloat).unsqueeze(1);
        const auto scale_b = anchor(nearest_of_all, "b").q_per_channel_scales().to(at::kFloat).unsqueeze(1);
        const auto down_a = (kA / scale_a).floor(), down_b = (kB / scale_b).floor();
        double least = 1e30;
        for (int choice = 0; choice < (1 << 12); ++choice) {
            auto up = at::zeros({12});
            for (int bit = 0; bit < 12; ++bit) up[bit] = (choice >> bit) & 1;
            const auto a = (down_a + up.slice(0, 0, 6).reshape({2, 3})).clamp(-3, 3) * scale_a;
            const auto b = (down_b + up.slice(0, 6, 12).reshape({3, 2})).clamp(-3, 3) * scale_b;
            least = std::min(least, block_error(x, a, b, weights));
        }
        const double before = error_of(nearest_of_all), after = error_of(StaticPlan(together));
        EXPECT_GE(after, least * (1 - 1e-6));
        // Most of what the best of 4096 roundings gains over nearest is gained: here nearly half of the error.
        EXPECT_GT(before, 1.3 * least);
        EXPECT_LE(after - least, 0.3 * (before - least));
    }
}

TEST(Brecq, IsNeverWorseThanWhatWasThereOnWhatItLearnsFrom) {
    const auto index = at::arange(64 * 3, at::kDouble);
    for (const double step : {1.7, 0.9, 2.6}) {
        const auto x = ((index * step).sin() + 0.6 * (index * 0.37).sin()).to(at::kFloat).reshape({64, 3});
        const auto layerwise = plan_static(small_block(), {x}, {{x}}, few_bits(3, adaround()));
        const auto together = plan_static(small_block(), {x}, {{x}}, few_bits(3, brecq({100, 32, "mse"})));
        const auto error_of = [&](const StaticPlan& plan) {
            return block_error(x, anchor(plan, "a").dequantize(), anchor(plan, "b").dequantize(), at::ones({3}));
        };
        EXPECT_LE(error_of(together), error_of(layerwise) * (1 + 1e-6)) << step;  // summed in another order
    }
}

TEST(Brecq, SaysPerBlockWhatWasGained) {
    const auto x = sine({48, 3}, 1.4);
    const auto plan = plan_static(small_block(), {x}, {{x}}, few_bits(3, brecq({50, 32, "mse"})));
    int blocks = 0;
    for (const auto& change : plan.impl().folded) {
        if (change.after == "2 layers together") EXPECT_EQ(change.layer, "a");
        blocks += change.after == "2 layers together" || change.after == "1 layer";
    }
    EXPECT_EQ(blocks, 2);
}

TEST(Brecq, TakesWholeBatchesWhereAShapeComesFromOutsideTheBlock) {
    const auto model = build_model({{"a.weight", sine({6, 6}, 0.7)}, {"b.weight", sine({6, 6}, 0.9)}},
                                   "def forward(self, x):\n"
                                   "    n = x.size(0)\n"
                                   "    x = torch.relu(torch.linear(x, self.a.weight))\n"
                                   "    x = x + torch.linear(x, self.b.weight)\n"
                                   "    return x.view([n * 2, 3])\n");
    const std::vector<Inputs> data = {{sine({8, 6})}, {sine({5, 6}, 1.2)}};
    const auto plan = plan_static(model, data[0], data, few_bits(3, brecq({40, 4, "mse"})));
    const auto exact = model.forward(data[1]).toTensor();
    const auto rounded = fake_quantized(plan, data[1]).toTensor();
    EXPECT_EQ(rounded.sizes(), (std::vector<int64_t>{10, 3}));
    EXPECT_LT(max_difference(rounded, exact), 0.5 * exact.abs().max().item<double>());
}

TEST(Brecq, RefusesOptionsOutOfTheirRangeAndStagesThatTreatLayersOneByOne) {
    EXPECT_ERROR(brecq({0, 32, "mse"}), InvalidArgument, "steps");
    EXPECT_ERROR(brecq({10, 32, "kl"}), InvalidArgument, "fisher");
    WeightOnlyOptions weights;
    weights.rounding = brecq();
    EXPECT_ERROR(weight_only(weights), InvalidArgument, "brecq in quantize.static");
    MixedOptions mixed;
    mixed.rounding = brecq();
    EXPECT_ERROR(mixed_precision(mixed), InvalidArgument, "brecq in quantize.static");
}

TEST(Brecq, StopsWhenItsProgressThrows) {
    auto options = few_bits(3, brecq({400, 32, "fisher"}));
    int calls = 0;
    options.progress = [&](const std::string& task, double done, double total, const std::string&) {
        if (task != "reconstructing blocks") return;
        EXPECT_LE(done, total);
        if (++calls == 5) throw Interrupted("test", "enough", "");
    };
    const auto x = sine({48, 3}, 1.4);
    EXPECT_ERROR(plan_static(small_block(), {x}, {{x}}, options), Interrupted, "enough");
}

}  // namespace
}  // namespace coppice::quantize
