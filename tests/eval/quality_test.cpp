#include "metrics/quality.h"

#include <coppice/eval.h>

#include <cmath>

#include "support/support.h"

namespace coppice::eval {
namespace {

Batch labelled(const at::Tensor& target, bool pairs = false) {
    Batch batch;
    batch.target = target;
    batch.pairs = pairs;
    return batch;
}

std::unique_ptr<Metric> metric(const std::string& name, const std::string& task = "auto") {
    Options options("metric " + name, name == "loss" ? std::vector<std::pair<std::string, std::string>>{{"task", task}}
                                                     : std::vector<std::pair<std::string, std::string>>{});
    auto made = find_entry(metrics(), "metric", name, "test").make(options);
    options.done();
    return made;
}

TEST(Metrics, AreListedSortedAndEachRefusesAnEmptySet) {
    const auto names = names_of(metrics());
    EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
    for (const auto& name : names) EXPECT_THROW(metric(name)->result(), InvalidArgument) << name;
    for (const auto task : {Task::kClassification, Task::kRegression, Task::kSimilarity})
        for (const auto& name : default_metrics(task)) EXPECT_NO_THROW(metric(name)) << name;
}

TEST(TopK, CountsHitsOverBatches) {
    const auto top1 = metric("top1"), top5 = metric("top5");
    // Scores fall from class 0 to class 7: the rank of a target is its index.
    const auto scores = at::arange(8, 0, -1, at::kFloat).expand({4, 8});
    for (const auto& m : {top1.get(), top5.get()}) {
        m->add(scores, labelled(at::tensor({0, 1, 4, 5}, at::kLong)));
        m->add(scores.narrow(0, 0, 1), labelled(at::tensor({0}, at::kLong)));
    }
    EXPECT_DOUBLE_EQ(*top1->result().value, 2.0 / 5);
    EXPECT_DOUBLE_EQ(*top5->result().value, 4.0 / 5);
    EXPECT_EQ(top1->result().unit, "ratio");
    EXPECT_EQ(top1->result().provenance, Provenance::kMeasured);
    EXPECT_DOUBLE_EQ(top1->result().interval->low, wilson_interval(2, 5).low);
    EXPECT_DOUBLE_EQ(top1->points(0.887), 88.7);
}

TEST(TopK, ARowWithNanOrATieDoesNotCountForFree) {
    const auto top1 = metric("top1");
    const auto scores = at::tensor({NAN, 0.F, 0.F, 1.F, 1.F, 0.F, 1.F, 1.F, 0.F}).reshape({3, 3});
    top1->add(scores, labelled(at::tensor({0, 1, 0}, at::kLong)));  // NaN; tie, second of the two; tie, the first
    EXPECT_DOUBLE_EQ(*top1->result().value, 1.0 / 3);
}

TEST(TopK, TakesProbabilitiesAndPositions) {
    const auto top1 = metric("top1");
    top1->add(at::eye(3), labelled(at::eye(3)));
    EXPECT_DOUBLE_EQ(*top1->result().value, 1);
    const auto dense = metric("top1");  // [N, C, L]: two images of two positions, half of them right
    dense->add(at::eye(2).expand({2, 2, 2}), labelled(at::tensor({0, 0, 1, 1}, at::kLong).reshape({2, 2})));
    EXPECT_DOUBLE_EQ(*dense->result().value, 0.5);
}

TEST(TopK, FiveOfFiveClassesIsNoMeasure) {
    const auto top5 = metric("top5");
    top5->add(at::eye(5), labelled(at::arange(5)));
    EXPECT_FALSE(top5->result().available());
    EXPECT_THAT(top5->result().reason, ::testing::HasSubstr("always among 5"));
}

TEST(TopK, NamesWhatDoesNotFit) {
    EXPECT_ERROR(metric("top1")->add(at::zeros({2, 3}), labelled(at::zeros({3}, at::kLong))), InvalidArgument,
                 "[2, 3]");
    EXPECT_ERROR(metric("top1")->add(at::zeros({2, 3}), labelled(at::tensor({0, 3}, at::kLong))), InvalidArgument,
                 "outside [0, 3)");
    EXPECT_ERROR(metric("top1")->add(at::zeros({4}), labelled(at::zeros({4}, at::kLong))), InvalidArgument,
                 "dimension 1");
}

TEST(TopK, PairsWithTheBaselineAsMcNemarDoes) {
    const auto labels = at::zeros({20}, at::kLong);
    const auto right = at::tensor({1.F, 0.F}), wrong = at::tensor({0.F, 1.F});
    const auto outputs = [&](const std::vector<int>& misses) {
        std::vector<at::Tensor> rows(20, right);
        for (const int i : misses) rows[i] = wrong;
        return at::stack(rows);
    };
    const auto baseline = metric("top1"), candidate = metric("top1");
    baseline->add(outputs({0, 1}), labelled(labels));
    candidate->add(outputs({1, 2, 3, 4, 5}), labelled(labels));
    const auto paired = candidate->paired(*baseline);
    EXPECT_DOUBLE_EQ(paired["difference"].get<double>(), -3.0 / 20);
    EXPECT_EQ(paired["gained"], 1);
    EXPECT_EQ(paired["lost"], 4);
    EXPECT_DOUBLE_EQ(paired["p_value"].get<double>(), 2 * 6 / 32.0);
    // Agresti & Min: (1.5 - 4.5) / 22 +- 1.96 sqrt(6 - 9 / 22) / 22
    EXPECT_NEAR(paired["interval"][0].get<double>(), -3.0 / 22 - 1.96 * std::sqrt(6 - 9.0 / 22) / 22, 1e-12);
}

TEST(Errors, AreMeansOverExamplesByPlainLoops) {
    const auto output = testing::sine({6, 4, 2}), target = testing::sine({6, 4, 2}, 0.5);
    double squared = 0, absolute = 0;
    for (int64_t i = 0; i < output.numel(); ++i) {
        const double error = output.flatten()[i].item<double>() - target.flatten()[i].item<double>();
        squared += error * error / 48;
        absolute += std::abs(error) / 48;
    }
    for (const auto& [name, expected] :
         std::vector<std::pair<std::string, double>>{{"mse", squared}, {"mae", absolute}, {"loss", squared}}) {
        const auto m = metric(name, "regression");
        m->add(output.narrow(0, 0, 4), labelled(target.narrow(0, 0, 4)));
        m->add(output.narrow(0, 4, 2), labelled(target.narrow(0, 4, 2)));
        EXPECT_NEAR(*m->result().value, expected, 1e-12) << name;  // the order of 48 float64 additions
        EXPECT_FALSE(m->higher_is_better());
        EXPECT_EQ(m->points(0.25), -0.25);
        ASSERT_TRUE(m->result().interval);
        EXPECT_LT(m->result().interval->low, expected);
        EXPECT_GT(m->result().interval->high, expected);
    }
    EXPECT_ERROR(metric("mse")->add(at::zeros({2, 3}), labelled(at::zeros({3, 2}))), InvalidArgument, "do not fit");
}

TEST(Loss, IsCrossEntropyForClassIndices) {
    const auto m = metric("loss");
    m->add(at::tensor({2.F, 0.F, 1.F, 1.F}).reshape({2, 2}), labelled(at::tensor({0, 1}, at::kLong)));
    EXPECT_NEAR(*m->result().value, (std::log(1 + std::exp(-2.0)) + std::log(2.0)) / 2, 1e-12);
}

TEST(Loss, OfPairsIsTheSquaredErrorOfTheCosine) {
    const auto m = metric("loss");
    // Rows (3, 4) and (4, 3): cosine 24/25; target 4 of 5.
    m->add(at::tensor({3.F, 4.F, 4.F, 3.F}).reshape({2, 2}), labelled(at::tensor({4.F}), /*pairs=*/true));
    EXPECT_NEAR(*m->result().value, 0.16 * 0.16, 1e-12);
}

TEST(Spearman, IsOneForAnyMonotoneMapAndSharesTies) {
    const auto m = metric("spearman");
    m->add(at::arange(20.0).exp(), labelled(at::arange(20.0)));
    EXPECT_NEAR(*m->result().value, 1, 1e-12);
    EXPECT_TRUE(at::equal(ranks_of(at::tensor({3.0, 1.0, 3.0, 2.0})), at::tensor({3.5, 1.0, 3.5, 2.0}, at::kDouble)));
    // Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): ranks 1..5 against 2 1 4 3 5, sum d^2 = 4.
    const auto five = metric("spearman");
    five->add(at::tensor({1.0, 2.0, 3.0, 4.0, 5.0}), labelled(at::tensor({2.0, 1.0, 4.0, 3.0, 5.0})));
    EXPECT_NEAR(*five->result().value, 1 - 6 * 4 / 120.0, 1e-12);
}

TEST(Spearman, ComparesRowsTwoByTwo) {
    const auto m = metric("spearman");
    // Dot products 1, 4, 0 of the pairs rank as the targets do.
    const auto rows = at::tensor({1.F, 0.F, 1.F, 0.F, 2.F, 0.F, 2.F, 0.F, 1.F, 0.F, 0.F, 1.F}).reshape({6, 2});
    m->add(rows, labelled(at::tensor({3.F, 5.F, 1.F}), /*pairs=*/true));
    EXPECT_NEAR(*m->result().value, 1, 1e-12);
    EXPECT_ERROR(metric("spearman")->add(rows, labelled(at::zeros({4}), true)), InvalidArgument,
                 "3 values for 4 targets");
}

TEST(Evaluate, RunsTheModelOnceForAllMetricsInOrder) {
    const auto data = tensor_dataset({at::eye(4).repeat({3, 1})}, at::arange(4).repeat({3}), "four classes, thrice");
    int64_t calls = 0;
    const Runner identity([&calls](Inputs inputs) {
        ++calls;
        return inputs[0];
    });
    const auto result = evaluate(identity, *data, {"top1", "loss"}, Task::kClassification, 5);
    EXPECT_EQ(calls, 3) << "12 examples in batches of 5";
    EXPECT_EQ(result.examples, 12);
    ASSERT_EQ(result.metrics.size(), 2);
    EXPECT_EQ(*result.find("top1")->figure.value, 1);
    EXPECT_EQ(result.find("top1")->points, 100);
    EXPECT_EQ(result.find("agreement"), nullptr);
    EXPECT_ERROR(evaluate(identity, *data, {"top2"}, Task::kClassification), InvalidArgument,
                 "unknown metric \"top2\"");
}

TEST(Evaluate, ReportsAgreementWithTheBaseline) {
    const auto data = tensor_dataset({at::eye(4)}, at::arange(4), "four classes");
    const Runner identity([](Inputs inputs) { return inputs[0]; });
    const Runner flips_one([](Inputs inputs) {
        auto output = inputs[0].toTensor().clone();
        output[0] = at::tensor({0.F, 1.F, 0.F, 0.F});
        return output;
    });
    const auto baseline = evaluate(identity, *data, {"top1"}, Task::kClassification);
    const auto other = evaluate(flips_one, *data, {"top1"}, Task::kClassification, 256, &baseline);
    EXPECT_DOUBLE_EQ(*other.find("agreement")->figure.value, 0.75);
    EXPECT_DOUBLE_EQ(other.find("agreement")->points, 75);
    EXPECT_EQ(other.find("top1")->paired["lost"], 1);
    EXPECT_EQ(other.find("top1")->paired["gained"], 0);
}

TEST(Evaluate, ReportsDifferencesOfValues) {
    const auto data = tensor_dataset({at::arange(4.0).to(at::kFloat).unsqueeze(1)}, at::zeros({4, 1}), "values");
    const Runner identity([](Inputs inputs) { return inputs[0]; });
    const Runner offset([](Inputs inputs) {
        auto output = inputs[0].toTensor().clone();
        output[3] += 2;
        return output;
    });
    const auto baseline = evaluate(identity, *data, {"mse"}, Task::kRegression);
    const auto other = evaluate(offset, *data, {"mse"}, Task::kRegression, 256, &baseline);
    EXPECT_DOUBLE_EQ(*other.find("max_difference")->figure.value, 2);
    EXPECT_DOUBLE_EQ(*other.find("mean_difference")->figure.value, 0.5);
    EXPECT_DOUBLE_EQ(other.find("mse")->paired["difference"].get<double>(), (25 - 9) / 4.0);
}

TEST(Evaluate, RunsInEvalModeAndPutsTrainingModeBack) {
    auto module = testing::build_module({}, "def forward(self, x):\n    return torch.dropout(x, 0.5, self.training)\n");
    module.setattr("training", true);
    const auto data = tensor_dataset({at::ones({8, 4})}, at::ones({8, 4}), "ones");
    EXPECT_EQ(*evaluate(module, *data, {"mse"}, Task::kRegression).metrics[0].figure.value, 0);
    EXPECT_TRUE(module.attr("training").toBool());
}

}  // namespace
}  // namespace coppice::eval
