#include <cmath>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

// y = b relu(a x): 4 inputs, 3 hidden channels, 2 classes.
Model tiny() {
    return build_model({{"a.weight", sine({3, 4}, 0.9)}, {"a.bias", sine({3}, 0.3)}, {"b.weight", sine({2, 3}, 0.8)}},
                       R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(x, self.a.weight, self.a.bias)), self.b.weight)
)");
}

Context context_with(const at::Tensor& x, const at::Tensor& target) {
    Context context;
    context.example = {x};
    context.data.calibration = tensor_dataset({x}, target, "by hand");
    return context;
}

TEST(PruneTaylor, MatchesTheGradientComputedByPlainLoops) {
    const auto model = tiny();
    const auto x = sine({5, 4}) + 0.3;
    const auto target = at::tensor({0, 1, 1, 0, 1}, at::kLong);
    auto context = context_with(x, target);
    const auto groups = prune::find_groups(model, Facts::observe(model, {x}));
    ASSERT_EQ(groups.all().size(), 1u);
    prune::TaylorOptions options;
    options.batches = 1;
    options.batch_size = 5;
    const auto scores = prune::taylor(options)->scores(model, groups, context).at(0);

    // By hand: d loss / d hidden, then (sum over the channel's weights and bias of w * dL/dw)^2.
    std::vector<double> change(3, 0.0);
    const auto value = [](double index) { return std::sin(index); };
    for (int64_t n = 0; n < 5; ++n) {
        double pre[3], hidden[3], logits[2] = {0, 0};
        for (int64_t h = 0; h < 3; ++h) {
            pre[h] = 0.3 * value(h);
            for (int64_t i = 0; i < 4; ++i) pre[h] += 0.9 * value(h * 4 + i) * (value(n * 4 + i) + 0.3);
            hidden[h] = std::max(pre[h], 0.0);
            for (int64_t o = 0; o < 2; ++o) logits[o] += 0.8 * value(o * 3 + h) * hidden[h];
        }
        const double sum = std::exp(logits[0]) + std::exp(logits[1]);
        for (int64_t h = 0; h < 3; ++h) {
            double gradient = 0;  // of the hidden channel
            for (int64_t o = 0; o < 2; ++o)
                gradient +=
                    (std::exp(logits[o]) / sum - (target[n].item<int64_t>() == o ? 1 : 0)) / 5 * 0.8 * value(o * 3 + h);
            if (pre[h] > 0) change[h] += gradient * pre[h];  // sum of w * dL/dw over weights and bias is pre * dL/dpre
        }
    }
    for (int64_t h = 0; h < 3; ++h)
        EXPECT_NEAR(scores[h].item<double>(), change[h] * change[h], 1e-6);  // float32 model
}

TEST(PruneTaylor, AveragesOverBatches) {
    const auto model = tiny();
    const auto x = sine({4, 4}) + 0.3;
    const auto target = at::tensor({0, 1, 1, 0}, at::kLong);
    auto context = context_with(x, target);
    const auto groups = prune::find_groups(model, Facts::observe(model, {x}));
    prune::TaylorOptions options;
    options.batches = 10;  // more than there are
    options.batch_size = 1;
    const auto all = prune::taylor(options)->scores(model, groups, context).at(0);
    auto mean = at::zeros({3}, at::kDouble);
    for (int64_t n = 0; n < 4; ++n) {
        auto one = context_with(x.slice(0, n, n + 1), target.slice(0, n, n + 1));
        mean += prune::taylor(options)->scores(model, groups, one).at(0) / 4;
    }
    EXPECT_LT(max_difference(all, mean), 1e-9);
}

TEST(PruneTaylor, FormsDifferInWhereTheSignIsLost) {
    const auto model = tiny();
    const auto x = (at::arange(20.0) * 3).sin().reshape({5, 4}) * 2 - 0.1;  // products of both signs
    auto context = context_with(x, at::tensor({0, 1, 1, 0, 1}, at::kLong));
    const auto groups = prune::find_groups(model, Facts::observe(model, {x}));
    const auto scores = [&](prune::TaylorForm form) {
        prune::TaylorOptions options;
        options.form = form;
        return prune::taylor(options)->scores(model, groups, context).at(0);
    };
    const auto squared = scores(prune::TaylorForm::kSquared), absolute = scores(prune::TaylorForm::kAbsolute),
               elementwise = scores(prune::TaylorForm::kElementwise);
    EXPECT_LT(max_difference(absolute.square(), squared), 1e-12);  // one batch; float64 from the products on
    for (int64_t c = 0; c < 3; ++c)  // the triangle inequality, strict where products of both signs meet
        EXPECT_GE(elementwise[c].item<double>(), absolute[c].item<double>());
    EXPECT_GT((elementwise - absolute).max().item<double>(), 1e-3);
}

prune::TaylorOptions gates() {
    prune::TaylorOptions options;
    options.at = prune::TaylorAt::kGates;
    return options;
}

TEST(PruneTaylor, GatesAreTheParametersOfSingleExamplesWhereOneLayerMakesTheChannel) {
    const auto model = tiny();
    const auto x = sine({6, 4}) + 0.3;
    const auto target = at::tensor({0, 1, 1, 0, 1, 0}, at::kLong);
    auto context = context_with(x, target);
    const auto groups = prune::find_groups(model, Facts::observe(model, {x}));
    const auto by_gates = prune::taylor(gates())->scores(model, groups, context).at(0);
    prune::TaylorOptions single;
    single.batches = 6;
    single.batch_size = 1;
    // Sum of w * dL/dw over weights and bias is the pre-activation times its gradient, and through a relu the
    // activation times its own.
    EXPECT_LT(max_difference(by_gates, prune::taylor(single)->scores(model, groups, context).at(0)),
              1e-6);  // float32 gradients, scores below 1
}

TEST(PruneTaylor, GatesAreTheDerivativeByTheSizeOfTheChannelWhereverItIsRead) {
    // Against differences: the model whose removed channel is scaled by 1 +- h, behind convolution, norm and residual.
    const auto model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    const auto groups = prune::find_groups(model, Facts::observe(model, example));
    const auto target = at::tensor({3, 7}, at::kLong);
    auto context = context_with(example[0].toTensor(), target);
    auto options = gates();
    options.form = prune::TaylorForm::kAbsolute;
    options.batches = 2;
    options.batch_size = 1;
    const auto scores = prune::taylor(options)->scores(model, groups, context);
    torch::NoGradGuard no_grad;
    for (size_t g = 0; g < groups.all().size(); ++g) {
        const int64_t channel = groups.all()[g].channels / 2;
        double expected = 0;
        for (int64_t n = 0; n < 2; ++n) {
            const auto loss = [&](double scale) {
                NodeHooks hooks;
                hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& values) {
                    auto* edited = const_cast<torch::jit::Node*>(node);
                    if (!as_conv(edited) && !as_linear(edited)) return;
                    const auto places = groups.places(node->inputs()[0], 1);
                    auto x = values[0].toTensor().clone();
                    for (size_t i = 0; i < places.size(); ++i)
                        if (places[i].group == static_cast<int64_t>(g) && places[i].channel == channel)
                            x.select(1, static_cast<int64_t>(i)).mul_(scale);
                    values[0] = x;
                };
                const auto logits =
                    first_tensor(run_nodes(model, {example[0].toTensor().slice(0, n, n + 1)}, hooks)).to(at::kDouble);
                return -at::log_softmax(logits, 1)[0][target[n].item<int64_t>()].item<double>();
            };
            expected += std::abs(loss(1.005) - loss(0.995)) / 0.01 / 2;
        }
        // Central differences of a float32 model: a relu may switch within the step, and a loss has seven digits.
        EXPECT_NEAR(scores[g][channel].item<double>(), expected, 2e-2 * expected + 1e-4) << groups.all()[g].name;
    }
    auto elementwise = gates();
    elementwise.form = prune::TaylorForm::kElementwise;
    EXPECT_ERROR(prune::taylor(elementwise), InvalidArgument, "a gate is one number");
}

TEST(PruneTaylor, LeavesNoGradientsAndNoTraceInTheModel) {
    const auto model = tiny();
    const auto x = sine({4, 4});
    auto context = context_with(x, at::tensor({0, 1, 1, 0}, at::kLong));
    prune::taylor()->scores(model, prune::find_groups(model, Facts::observe(model, {x})), context);
    prune::taylor(gates())->scores(model, prune::find_groups(model, Facts::observe(model, {x})), context);
    for (const auto& named : named_tensors(model)) EXPECT_FALSE(named.tensor.grad().defined()) << named.name;
}

TEST(PruneTaylor, RanksADeadChannelLast) {
    auto model = tiny();
    auto weight = get_attribute(model, "b.weight").toTensor().detach().clone();
    weight.select(1, 2).zero_();  // nothing reads hidden channel 2
    set_tensor(model, "b.weight", weight);
    const auto x = sine({8, 4}) + 0.5;
    auto context = context_with(x, at::tensor({0, 1, 1, 0, 1, 0, 0, 1}, at::kLong));
    const auto scores =
        prune::taylor()->scores(model, prune::find_groups(model, Facts::observe(model, {x})), context).at(0);
    EXPECT_EQ(scores[2].item<double>(), 0.0);
}

TEST(PruneTaylor, NeedsLabelledData) {
    EXPECT_TRUE(prune::taylor()->needs().calibration_data);
    EXPECT_TRUE(prune::taylor()->needs().labels);
    Context context;
    EXPECT_ERROR(prune::taylor()->scores(tiny(), prune::Groups(std::vector<prune::ChannelGroup>{}), context),
                 InvalidArgument, "no calibration data");
    EXPECT_ERROR(prune::taylor({0, 64}), InvalidArgument, "at least 1");
}

}  // namespace
}  // namespace coppice::testing
