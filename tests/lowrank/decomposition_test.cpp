#include <coppice/lowrank.h>

#include "reference/lowrank.h"
#include "support/support.h"

namespace coppice::testing {
namespace {

using lowrank::Decomposition;
using lowrank::Form;

at::Tensor weight(at::IntArrayRef shape) {  // closed form, full rank
    return (at::arange(c10::multiply_integers(shape), at::kDouble).square() * 0.37).sin().reshape(shape);
}

TEST(Decomposition, FullRankReproducesALinearWeight) {
    const auto w = weight({6, 9});
    const auto factors = Decomposition(w, Form::kChannel).factors(6);
    EXPECT_LT(max_difference(reference::linear_of_factors(factors.first, factors.second), w), 1e-12);
}

TEST(Decomposition, FullRankReproducesAKernelInBothForms) {
    const auto w = weight({5, 4, 3, 2});
    for (const Form form : {Form::kChannel, Form::kSpatial}) {
        const Decomposition decomposition(w, form);
        const auto factors = decomposition.factors(decomposition.full_rank());
        EXPECT_LT(max_difference(reference::conv_of_factors(factors.first, factors.second), w), 1e-12);
    }
}

TEST(Decomposition, FactorsHaveTheShapesOfTheirForm) {
    const auto w = weight({5, 4, 3, 2});
    const auto channel = Decomposition(w, Form::kChannel).factors(2);
    EXPECT_EQ(channel.first.sizes(), (at::IntArrayRef{2, 4, 3, 2}));
    EXPECT_EQ(channel.second.sizes(), (at::IntArrayRef{5, 2, 1, 1}));
    const auto spatial = Decomposition(w, Form::kSpatial).factors(2);
    EXPECT_EQ(spatial.first.sizes(), (at::IntArrayRef{2, 4, 1, 2}));
    EXPECT_EQ(spatial.second.sizes(), (at::IntArrayRef{5, 2, 3, 1}));
}

TEST(Decomposition, SquaredErrorIsTheSumOfDroppedSquaredSingularValues) {
    const auto w = weight({5, 4, 3, 3});
    for (const Form form : {Form::kChannel, Form::kSpatial}) {
        const Decomposition decomposition(w, form);
        for (int64_t rank = 1; rank <= decomposition.full_rank(); ++rank) {
            const auto factors = decomposition.factors(rank);
            const auto error = reference::squared_norm(reference::conv_of_factors(factors.first, factors.second) - w);
            double dropped = 0;
            for (size_t i = size_t(rank); i < decomposition.singular_values().size(); ++i)
                dropped += decomposition.singular_values()[i] * decomposition.singular_values()[i];
            EXPECT_NEAR(error, dropped, 1e-10) << "rank " << rank;
            EXPECT_NEAR(decomposition.squared_error(rank), dropped, 1e-12) << "rank " << rank;
        }
        EXPECT_NEAR(decomposition.squared_error(0), reference::squared_norm(w), 1e-10);
    }
}

TEST(Decomposition, FindsTheSingularValuesOfADiagonal) {
    auto w = at::zeros({3, 4}, at::kDouble);
    w[0][2] = -2.0, w[1][0] = 5.0, w[2][3] = 1.0;
    const auto values = Decomposition(w, Form::kChannel).singular_values();
    ASSERT_EQ(values.size(), 3u);
    for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(values[i], (std::vector<double>{5, 2, 1})[i], 1e-12);
}

TEST(Decomposition, ASeparableKernelHasSpatialRankOne) {  // the Sobel filter: (1, 2, 1)^T (-1, 0, 1)
    const auto sobel = at::tensor({-1.0, 0.0, 1.0, -2.0, 0.0, 2.0, -1.0, 0.0, 1.0}, at::kDouble).reshape({1, 1, 3, 3});
    const Decomposition decomposition(sobel, Form::kSpatial);
    EXPECT_NEAR(decomposition.squared_error(1), 0, 1e-12);
    const auto factors = decomposition.factors(1);
    EXPECT_LT(max_difference(reference::conv_of_factors(factors.first, factors.second), sobel), 1e-12);
}

TEST(Decomposition, FactorsKeepTheDtypeAndShareTheSingularValuesEvenly) {
    const auto factors = Decomposition(weight({6, 9}).to(at::kFloat), Form::kChannel).factors(3);
    EXPECT_EQ(factors.first.scalar_type(), at::kFloat);
    for (int64_t r = 0; r < 3; ++r)  // 1e-5: float32 factors of norm about 1
        EXPECT_NEAR(factors.first.select(0, r).norm().item<double>(), factors.second.select(1, r).norm().item<double>(),
                    1e-5);
    EXPECT_EQ(factors.first.storage().nbytes(), 3 * 9 * sizeof(float));
}

TEST(Decomposition, SaysWhatIsWrong) {
    auto broken = weight({4, 4});
    broken[1][2] = NAN;
    EXPECT_ERROR(Decomposition(broken, Form::kChannel), UnsupportedModel, "NaN or infinity");
    EXPECT_ERROR(Decomposition(weight({4, 4}), Form::kSpatial), InvalidArgument, "spatial form is for 2-d");
    EXPECT_ERROR(Decomposition(weight({4, 4}), Form::kChannel).factors(5), InvalidArgument, "must be in [1, 4]");
}

}  // namespace
}  // namespace coppice::testing
