#include <coppice/prune.h>

#include "prune/weights/weights_cases.h"
#include "reference/sparsity.h"

namespace coppice::testing {
namespace {

using namespace prune;

TEST(WeightMagnitude, SetsTheSmallestToZeroAndLeavesTheOthersToTheBit) {
    const auto model = two_layers();
    auto context = context_of({sine({2, 3, 6, 6})});
    const auto pruned = weight_pruning(weight_magnitude(), unstructured(), options_of(0.4))->apply(model, context);
    for (const char* name : {"conv.weight", "fc.weight"}) {
        const auto before = get_attribute(model, name).toTensor(), after = get_attribute(pruned, name).toTensor();
        const auto count = std::llround(0.4 * static_cast<double>(before.numel()));
        // Ties cannot occur among these weights, so the order of the columns does not matter.
        const auto keep = reference::keep_highest(before.abs(), count);
        EXPECT_TRUE(at::equal(after, before * keep)) << name;
    }
}

TEST(WeightMagnitude, OneGlobalRankingTakesTheSmallestOfAllLayers) {
    const auto model = two_layers();
    auto context = context_of({sine({2, 3, 6, 6})});
    auto options = options_of(0.5);
    options.scope = "global";
    const auto pruned = weight_pruning(weight_magnitude(), unstructured(), options)->apply(model, context);
    const auto conv = get_attribute(model, "conv.weight").toTensor(), fc = get_attribute(model, "fc.weight").toTensor();
    const auto all = at::cat({conv.flatten(), fc.flatten()});
    const auto keep = reference::keep_highest(all.abs(), all.numel() / 2);
    const auto expected = all * keep;
    EXPECT_TRUE(
        at::equal(get_attribute(pruned, "conv.weight").toTensor().flatten(), expected.slice(0, 0, conv.numel())));
    EXPECT_TRUE(at::equal(get_attribute(pruned, "fc.weight").toTensor().flatten(), expected.slice(0, conv.numel())));
}

// Inputs of full rank: the samples of a plain sine, put into rows, have rank two.
at::Tensor rough(at::IntArrayRef shape) {
    return (at::arange(c10::multiply_integers(shape), at::kDouble).square() * 0.37).sin().reshape(shape);
}

// ||x_j|| of a convolution by running over output positions and taps one by one.
at::Tensor plain_squares(const at::Tensor& x, const ConvCase& c) {
    const int64_t in = x.size(1) / c.groups;
    auto squares = at::zeros({c.groups, c.kernel * c.kernel, in}, at::kDouble);
    const int64_t span = c.dilation * (c.kernel - 1) + 1;
    const int64_t size = (x.size(2) + 2 * c.padding - span) / c.stride + 1;
    const auto values = x.to(at::kDouble);
    for (int64_t n = 0; n < x.size(0); ++n)
        for (int64_t channel = 0; channel < x.size(1); ++channel)
            for (int64_t y = 0; y < size; ++y)
                for (int64_t z = 0; z < size; ++z)
                    for (int64_t a = 0; a < c.kernel; ++a)
                        for (int64_t b = 0; b < c.kernel; ++b) {
                            const int64_t row = y * c.stride - c.padding + a * c.dilation;
                            const int64_t column = z * c.stride - c.padding + b * c.dilation;
                            if (row < 0 || column < 0 || row >= x.size(2) || column >= x.size(3)) continue;
                            squares[channel / in][a * c.kernel + b][channel % in] +=
                                values[n][channel][row][column].square();
                        }
    return squares.reshape({c.groups, -1});
}

TEST(Wanda, WeighsAConvolutionByItsInputsAtEachTap) {
    for (const auto& c : conv_cases()) {
        SCOPED_TRACE(c.name);
        const auto x = sine({3, 4, 7, 7}).abs();
        const auto model = conv_model(c);
        auto context = context_of({x});
        context.data.calibration = tensor_dataset({x}, at::zeros({3}, at::kLong), "by hand");
        const auto pruned = weight_pruning(weight_wanda(), unstructured(), options_of(0.5))->apply(model, context);
        const auto weight = get_attribute(model, "conv.weight").toTensor();  // [out, in / g, k, k]
        const auto norms = plain_squares(x, c).sqrt();
        // Per output channel o of group g: |w[o, i, a, b]| * norm[g, (a b), i].
        auto scores = at::zeros(weight.sizes(), at::kDouble);
        for (int64_t o = 0; o < weight.size(0); ++o) {
            const int64_t g = o / (weight.size(0) / c.groups);
            const auto by_tap = norms[g].reshape({c.kernel, c.kernel, weight.size(1)}).permute({2, 0, 1});
            scores[o] = weight[o].to(at::kDouble).abs() * by_tap;
        }
        const auto expected = weight * reference::keep_highest(scores, weight.numel() / 2);
        EXPECT_TRUE(at::equal(get_attribute(pruned, "conv.weight").toTensor(), expected));
    }
}

TEST(Wanda, ComparesWithinEachOutputWhenAsked) {
    const auto x = sine({5, 8});
    const auto model = linear_model(sine({6, 8}, 0.3) + 0.01);
    auto context = context_of({x});
    context.data.calibration = tensor_dataset({x}, at::zeros({5}, at::kLong), "by hand");
    auto options = options_of(0.25);
    options.scope = "row";
    const auto pruned = weight_pruning(weight_wanda(), unstructured(), options)->apply(model, context);
    const auto weight = get_attribute(model, "fc.weight").toTensor();
    const auto scores = weight.to(at::kDouble).abs() * x.to(at::kDouble).square().sum(0).sqrt();
    for (int64_t o = 0; o < 6; ++o)
        EXPECT_TRUE(at::equal(get_attribute(pruned, "fc.weight").toTensor()[o],
                              weight[o] * reference::keep_highest(scores[o], 2)));
}

TEST(SparseGpt, MatchesTheDirectInverseOfTheRemainingHessian) {
    const auto x = rough({40, 12}), weight = sine({5, 12}, 0.7).to(at::kDouble);
    WeightMatrix matrix{"fc", weight.unsqueeze(0), {}, x.t().mm(x).unsqueeze(0)};
    const auto gram = matrix.gram[0];
    const auto hessian = gram + 0.01 * gram.diagonal().mean() * at::eye(12, at::kDouble);
    for (const bool per_row : {false, true}) {
        const auto expected = reference::sparsegpt(weight, hessian, [&](const at::Tensor& scores) {
            if (!per_row) return reference::keep_highest(scores, 30);
            auto keep = at::ones_like(scores, at::kBool);
            for (int64_t i = 0; i < 5; ++i) keep[i] = reference::keep_highest(scores[i], 6);
            return keep;
        });
        const auto pruned = sparsegpt()->prune(matrix, *unstructured(), 0.5, per_row)[0];
        EXPECT_EQ(pruned.count_nonzero().item<int64_t>(), 30);
        // 1e-9: two ways to invert matrices of condition below 1e3 in float64.
        EXPECT_LT(max_difference(pruned, expected), 1e-9);
    }
}

TEST(SparseGpt, BlocksOfColumnsPassTheirErrorsOn) {  // the mask differs with the block, the updates must not
    const auto x = rough({64, 24}), weight = sine({4, 24}, 0.7).to(at::kDouble);
    WeightMatrix matrix{"fc", weight.unsqueeze(0), {}, x.t().mm(x).unsqueeze(0)};
    // 2:4 decides four columns at a time from updated weights, whatever the block.
    const auto whole = sparsegpt({0.01, 1024})->prune(matrix, *n_of_m(2, 4), 0, false);
    const auto small = sparsegpt({0.01, 4})->prune(matrix, *n_of_m(2, 4), 0, false);
    EXPECT_LT(max_difference(whole, small), 1e-12);  // float64, another order of the sums
    const auto groups_of_four = whole.reshape({-1, 4});
    EXPECT_TRUE(at::equal((groups_of_four != 0).sum(1), at::full({24}, 2)));
}

TEST(SparseGpt, ARowThatLosesOneWeightIsTheLeastSquaresFit) {
    // With the first column gone, the best fit of w X by the other columns is the solution of the normal equations.
    const auto x = rough({60, 6});
    auto weight = at::ones({1, 6}, at::kDouble);
    weight[0][0] = 0.01;
    const auto gram = x.t().mm(x);
    WeightMatrix matrix{"fc", weight.unsqueeze(0), {}, gram.unsqueeze(0)};
    const auto pruned = sparsegpt({1e-10, 128})->prune(matrix, *unstructured(), 1.0 / 6, false)[0];
    ASSERT_EQ(pruned[0][0].item<double>(), 0);
    const auto others = x.slice(1, 1);
    const auto target = x.mm(weight.t());
    const auto fit = at::linalg_solve(others.t().mm(others), others.t().mm(target));
    EXPECT_LT(max_difference(pruned.slice(1, 1), fit.t()), 1e-6);  // the damping of 1e-10 shifts it a little
}

TEST(SparseGpt, ChangesTheOutputsLessThanWandaAndWandaLessThanMagnitude) {
    // Correlated inputs of very different scale: what the criteria differ in.
    const auto mix = sine({32, 32}, 0.4) + at::eye(32);
    const auto x = rough({200, 32}).matmul(mix.to(at::kDouble)) * at::linspace(0.1, 3, 32, at::kDouble);
    const auto weight = rough({16, 32});
    WeightMatrix matrix{"fc", weight.unsqueeze(0), x.square().sum(0).unsqueeze(0), x.t().mm(x).unsqueeze(0)};
    const auto error = [&](const WeightCriterion& criterion) {
        const auto pruned = criterion.prune(matrix, *unstructured(), 0.5, false)[0];
        return (x.mm((pruned - weight).t())).norm().item<double>();
    };
    const double magnitude = error(*weight_magnitude()), wanda = error(*weight_wanda()), obs = error(*sparsegpt());
    EXPECT_LT(wanda, magnitude);
    EXPECT_LT(obs, 0.7 * wanda);
}

TEST(SparseGpt, AnInputThatIsAlwaysZeroGoesFirst) {
    auto x = rough({30, 6});
    x.select(1, 4).zero_();
    WeightMatrix matrix{"fc", at::ones({1, 2, 6}, at::kDouble), {}, x.t().mm(x).unsqueeze(0)};
    const auto pruned = sparsegpt()->prune(matrix, *unstructured(), 1.0 / 6, false)[0];
    EXPECT_TRUE(at::equal(pruned.select(1, 4), at::zeros({2}, at::kDouble)));
    EXPECT_EQ(pruned.count_nonzero().item<int64_t>(), 10);
}

TEST(SparseGpt, RejectsNoDampingAtAll) {
    EXPECT_ERROR(sparsegpt({0, 128}), InvalidArgument, "damping must be in (0, 1]");
}

}  // namespace
}  // namespace coppice::testing
