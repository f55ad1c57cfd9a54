// Every gradient against autograd of the penalty as the papers write it.
#include <cmath>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

using prune::Groups;

struct Bound {
    Model model = residual_model();
    Context context;
    Groups groups;

    Bound() {
        context.example = {sine({2, 3, 8, 8})};
        for (const auto& named : named_tensors(model))
            if (named.role == Role::kParameter) at::Tensor(named.tensor).set_requires_grad(true);
        groups = prune::find_groups(model, Facts::observe(model, context.example));
    }

    /// All parameters of a channel as one vector; differentiable.
    at::Tensor channel(size_t g, int64_t c) const {
        std::vector<at::Tensor> parts;
        for (const auto& slice : groups.all()[g].slices)
            for (size_t i = 0; i < slice.channel_of.size(); ++i)
                if (slice.parameter && slice.channel_of[i] == c)
                    parts.push_back(get_attribute(model, slice.name)
                                        .toTensor()
                                        .select(slice.dim, static_cast<int64_t>(i))
                                        .flatten()
                                        .to(at::kDouble));
        return at::cat(parts);
    }

    void expect_gradients_of(const at::Tensor& written, prune::Penalty& penalty) {
        EXPECT_NEAR(penalty.value(), written.item<double>(), 1e-6 * std::abs(written.item<double>()));
        written.backward();
        std::map<std::string, at::Tensor> expected;
        int64_t touched = 0;
        for (const auto& named : named_tensors(model)) {
            if (named.role != Role::kParameter) continue;
            at::Tensor parameter = named.tensor;
            expected[named.name] =
                parameter.grad().defined() ? parameter.grad().clone() : at::zeros_like(parameter.detach());
            parameter.mutable_grad() = at::ones_like(parameter.detach());  // what backward() left of the loss
        }
        penalty.add_gradients();
        for (const auto& [name, gradient] : expected) {
            const auto found = get_attribute(model, name).toTensor().grad() - 1;
            touched += gradient.ne(0).any().item<bool>();
            EXPECT_LT(max_difference(found, gradient), 1e-6) << name;  // float32, on top of a gradient of 1
        }
        EXPECT_GT(touched, 0);
    }
};

TEST(Regularisers, GroupLassoIsTheSumOfTheNormsOfChannels) {
    Bound bound;
    at::Tensor written = at::zeros({}, at::kDouble);
    for (size_t g = 0; g < bound.groups.all().size(); ++g)
        for (int64_t c = 0; c < bound.groups.all()[g].channels; ++c) written = written + bound.channel(g, c).norm();
    bound.expect_gradients_of(0.03 * written,
                              *prune::group_lasso(0.03)->bind(bound.model, bound.groups, bound.context));
}

TEST(Regularisers, GroupLassoLeavesAChannelAtZeroThere) {
    Bound bound;
    {
        torch::NoGradGuard no_grad;
        for (const auto& slice : bound.groups.all()[0].slices)
            for (size_t i = 0; i < slice.channel_of.size(); ++i)
                if (slice.channel_of[i] == 2) slice.tensor.select(slice.dim, static_cast<int64_t>(i)).zero_();
    }
    prune::group_lasso(0.03)->bind(bound.model, bound.groups, bound.context)->add_gradients();
    const auto gradient = get_attribute(bound.model, "conv1.weight").toTensor().grad();
    EXPECT_EQ(gradient[2].abs().max().item<float>(), 0);
    EXPECT_GT(gradient[1].abs().max().item<float>(), 0);
    EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(Regularisers, GroupNormGrowsTowardsTheWeakestChannel) {
    Bound bound;
    at::Tensor written = at::zeros({}, at::kDouble);
    for (size_t g = 0; g < bound.groups.all().size(); ++g) {
        std::vector<at::Tensor> importance;
        for (int64_t c = 0; c < bound.groups.all()[g].channels; ++c)
            importance.push_back(bound.channel(g, c).square().sum());
        double largest = 0, smallest = 1e300;
        for (const auto& i : importance) {
            largest = std::max(largest, i.item<double>());
            smallest = std::min(smallest, i.item<double>());
        }
        for (const auto& i : importance) {
            const double gamma = std::pow(2, 3 * (largest - i.item<double>()) / (largest - smallest));
            EXPECT_GE(gamma, 1);
            EXPECT_LE(gamma, 8);
            written = written + gamma * i;
        }
    }
    bound.expect_gradients_of(0.02 / 2 * written,
                              *prune::group_norm(0.02, 3)->bind(bound.model, bound.groups, bound.context));
}

TEST(Regularisers, SlimmingIsTheL1NormOfTheScales) {
    Bound bound;
    at::Tensor written = at::zeros({}, at::kDouble);
    for (const char* name : {"bn1.weight", "bn2.weight", "bn3.weight", "bn4.weight"})
        written = written + get_attribute(bound.model, name).toTensor().to(at::kDouble).abs().sum();
    bound.expect_gradients_of(0.04 * written,
                              *prune::bn_slimming(0.04)->bind(bound.model, bound.groups, bound.context));
}

TEST(Regularisers, GregPenalisesTheChosenAndGrowsUpToTheCeiling) {
    Bound bound;
    prune::GregOptions options;
    options.target.round_to = 1;  // half of each group
    options.increment = 0.01;
    options.every_steps = 2;
    options.ceiling = 0.025;
    const auto penalty =
        prune::greg(prune::magnitude(), prune::uniform(), options)->bind(bound.model, bound.groups, bound.context);
    at::Tensor chosen = at::zeros({}, at::kDouble);
    for (size_t g = 0; g < bound.groups.all().size(); ++g) {
        std::vector<std::pair<double, int64_t>> norms;
        for (int64_t c = 0; c < bound.groups.all()[g].channels; ++c)
            norms.emplace_back(bound.channel(g, c).square().sum().item<double>(), c);
        std::sort(norms.begin(), norms.end());
        for (size_t i = 0; i < norms.size() / 2; ++i)
            chosen = chosen + bound.channel(g, norms[i].second).square().sum();
    }
    bound.expect_gradients_of(0.01 / 2 * chosen, *penalty);  // step 0
    const double squares = chosen.item<double>();
    for (const double lambda : {0.01, 0.02, 0.02, 0.025, 0.025, 0.025}) {  // steps 1 to 6
        EXPECT_NEAR(penalty->value(), lambda / 2 * squares, 1e-6 * squares);
        penalty->add_gradients();
    }
}

TEST(Regularisers, OnlyParametersThatTrainGetAGradient) {
    Bound bound;
    at::Tensor(get_attribute(bound.model, "conv2.weight").toTensor()).set_requires_grad(false);
    prune::group_norm()->bind(bound.model, bound.groups, bound.context)->add_gradients();
    EXPECT_FALSE(get_attribute(bound.model, "conv2.weight").toTensor().grad().defined());
    EXPECT_TRUE(get_attribute(bound.model, "conv3.weight").toTensor().grad().defined());
}

TEST(Regularisers, MistakesAreNamed) {
    EXPECT_ERROR(prune::group_lasso(-1), InvalidArgument, "strength is -1");
    EXPECT_ERROR(prune::group_norm(1e-3, -2), InvalidArgument, "alpha is -2");
    EXPECT_ERROR(prune::bn_slimming(std::nan("")), InvalidArgument, "strength is");
    prune::GregOptions options;
    options.every_steps = 0;
    EXPECT_ERROR(prune::greg(prune::magnitude(), prune::uniform(), options), InvalidArgument, "every_steps is 0");
    const auto plain = build_model({{"a.weight", sine({8, 3}, 0.9)}, {"b.weight", sine({2, 8}, 0.8)}},
                                   "def forward(self, x):\n    return torch.linear(torch.relu(torch.linear(x, "
                                   "self.a.weight)), self.b.weight)\n");
    Context context;
    context.example = {sine({2, 3})};
    const auto groups = prune::find_groups(plain, Facts::observe(plain, context.example));
    EXPECT_ERROR(prune::bn_slimming()->bind(plain, groups, context), UnsupportedModel,
                 "no channel that can go is scaled by a batch norm");
}

}  // namespace
}  // namespace coppice::testing
