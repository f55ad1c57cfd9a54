#include <cmath>

#include "models.h"
#include "reference/optimizers.h"

namespace coppice::testing {
namespace {

std::vector<std::vector<double>> rows(const at::Tensor& scores) {
    std::vector<std::vector<double>> out;
    for (int64_t n = 0; n < scores.size(0); ++n) {
        out.emplace_back();
        for (int64_t c = 0; c < scores.size(1); ++c) out.back().push_back(scores[n][c].item<double>());
    }
    return out;
}

}  // namespace

TEST(CrossEntropy, AgreesWithPlainLoopsWithAndWithoutSmoothing) {
    const auto scores = sine({5, 4}, 2).to(at::kDouble);
    Batch batch;
    batch.target = at::tensor({3, 0, 1, 1, 2}, at::kLong);
    for (const double smoothing : {0.0, 0.1, 0.5})
        EXPECT_NEAR((*cross_entropy(smoothing))(scores, {}, batch).item<double>(),
                    reference::cross_entropy(rows(scores), {3, 0, 1, 1, 2}, smoothing), 1e-12);
}

TEST(CrossEntropy, TakesProbabilitiesAndChosenRows) {
    const auto scores = sine({5, 4}, 2).to(at::kDouble);
    Batch batch;
    batch.target = at::tensor({1., 0., 0., 0., 0., 0., 1., 0.}, at::kDouble).reshape({2, 4});
    batch.rows = at::tensor({4, 1}, at::kLong);
    const auto all = rows(scores);
    EXPECT_NEAR((*cross_entropy())(scores, {}, batch).item<double>(),
                reference::cross_entropy({all[4], all[1]}, {0, 2}, 0), 1e-12);
}

TEST(CrossEntropy, RefusesWhatItCannotMean) {
    EXPECT_ERROR(cross_entropy(1), InvalidArgument, "must be in [0, 1)");
    EXPECT_ERROR(cross_entropy(-0.1), InvalidArgument, "must be in [0, 1)");
    EXPECT_ERROR((*cross_entropy())(at::ones({4}), {}, {}), InvalidArgument, "for values use mse");
}

TEST(MeanSquaredError, IsByHand) {
    Batch batch;
    batch.target = at::tensor({1.0, 2.0, 5.0});
    EXPECT_NEAR((*mean_squared_error())(at::tensor({1.0, 4.0, 2.0}), {}, batch).item<double>(), 13.0 / 3, 1e-6);
    EXPECT_ERROR((*mean_squared_error())(at::ones({3, 1}), {}, batch), InvalidArgument, "Shapes must agree");
}

TEST(PairSimilarity, ComparesNeighbouringRows) {
    Batch batch;
    batch.pairs = true;
    batch.target = at::tensor({5.0, 2.5});
    // Pairs (1,0)-(3,0): cosine 1 against 1. (0,2)-(1,1): cosine 1/sqrt 2 against 0.5.
    const auto output = at::tensor({1., 0., 3., 0., 0., 2., 1., 1.}).reshape({4, 2});
    EXPECT_NEAR((*pair_similarity())(output, {}, batch).item<double>(), std::pow(std::sqrt(0.5) - 0.5, 2) / 2, 1e-7);
    batch.pairs = false;
    EXPECT_ERROR((*pair_similarity())(output, {}, batch), InvalidArgument, "set pairs: true");
}

TEST(Losses, OfTheTableAreMadeFromTheirOptions) {
    EXPECT_EQ(names_of(builtin_losses()), (std::vector<std::string>{"cross_entropy", "mse", "pair_similarity"}));
    Options options("stage", {{"loss", "cross_entropy"}});
    EXPECT_TRUE(make<Loss>(options, "loss", "mse", builtin_losses())->needs().labels);
    Options wrong(
        "stage",
        Setting::map(
            {{"loss", Setting::map({{"cross_entropy", Setting::map({{"label_smoothing", Setting::scalar("2")}})}})}}));
    EXPECT_ERROR(make<Loss>(wrong, "loss", "mse", builtin_losses()), InvalidArgument, "label_smoothing is 2");
}

}  // namespace coppice::testing
