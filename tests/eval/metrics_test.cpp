// Metrics against slow references in plain loops.
#include <coppice/eval.h>

#include <cmath>
#include <set>

#include "support/support.h"

namespace coppice::eval {
namespace {

using ::testing::HasSubstr;

Batch labelled(const at::Tensor& target, bool pairs = false) {
    Batch batch;
    batch.target = target;
    batch.pairs = pairs;
    return batch;
}

std::unique_ptr<Metric> metric(const std::string& name) {
    return make_metric(name, Task::kClassification, "test");
}

// Fed in two batches, as evaluate() does.
Figure result(const std::string& name, const at::Tensor& output, const at::Tensor& target) {
    const auto m = metric(name);
    const int64_t cut = target.size(0) / 3;
    m->add(output.narrow(0, 0, cut), labelled(target.narrow(0, 0, cut)));
    m->add(output.narrow(0, cut, target.size(0) - cut), labelled(target.narrow(0, cut, target.size(0) - cut)));
    return m->result();
}

// 200 examples of 4 classes whose scores lean towards the target; class 3 is rare.
struct Classes {
    at::Tensor scores, target;
    Classes() {
        target = (at::arange(200) * 7 % 20).to(at::kLong);
        target = at::where(target == 19, at::full_like(target, 3), target.remainder(3));
        scores = 2 * (at::arange(800.0) * 1.7).sin().reshape({200, 4}).to(at::kFloat);
        scores = scores + 1.5 * at::one_hot(target, 4).to(at::kFloat);
    }
    int64_t predicted(int64_t i) const { return scores[i].argmax().item<int64_t>(); }
    int64_t label(int64_t i) const { return target[i].item<int64_t>(); }
};

void expect_figure(const Figure& figure, double expected) {
    ASSERT_TRUE(figure.available()) << figure.reason;
    EXPECT_NEAR(*figure.value, expected, 1e-9);  // sums of 200 numbers in another order
    EXPECT_EQ(figure.provenance, Provenance::kMeasured);
    ASSERT_TRUE(figure.interval);
    EXPECT_LE(figure.interval->low, *figure.value);
    EXPECT_GE(figure.interval->high, *figure.value);
    EXPECT_LT(figure.interval->low, figure.interval->high);
}

TEST(ClassMetrics, MatchPlainLoopsOverTheConfusionMatrix) {
    const Classes data;
    double recall = 0, f1 = 0, iou = 0;
    for (int64_t c = 0; c < 4; ++c) {
        double tp = 0, fp = 0, fn = 0;
        for (int64_t i = 0; i < 200; ++i) {
            tp += data.predicted(i) == c && data.label(i) == c;
            fp += data.predicted(i) == c && data.label(i) != c;
            fn += data.predicted(i) != c && data.label(i) == c;
        }
        ASSERT_GT(tp + fn, 0);
        recall += tp / (tp + fn) / 4;
        f1 += 2 * tp / (2 * tp + fp + fn) / 4;
        iou += tp / (tp + fp + fn) / 4;
    }
    expect_figure(result("balanced_accuracy", data.scores, data.target), recall);
    expect_figure(result("f1", data.scores, data.target), f1);
    expect_figure(result("mean_iou", data.scores, data.target), iou);
}

TEST(ClassMetrics, OfPositionsAreSummedOverAllPositions) {
    // Two images of 2 x 2: class 0 is predicted everywhere, half of it is right.
    auto scores = at::zeros({2, 2, 2, 2});
    scores.select(1, 0).fill_(1);
    const auto target = at::tensor({0, 0, 0, 0, 1, 1, 1, 1}, at::kLong).reshape({2, 2, 2});
    const auto m = metric("mean_iou");
    m->add(scores, labelled(target));
    EXPECT_DOUBLE_EQ(*m->result().value, 0.25);  // class 0: 4 / 8, class 1: 0 / 4
}

TEST(ClassMetrics, AClassThatNeverOccursDoesNotCount) {
    const auto m = metric("balanced_accuracy");
    m->add(at::eye(3).narrow(0, 0, 2), labelled(at::tensor({0, 1}, at::kLong)));
    EXPECT_DOUBLE_EQ(*m->result().value, 1);
    EXPECT_DOUBLE_EQ(m->points(0.5), 50);
    EXPECT_ERROR(metric("f1")->add(at::zeros({2, 3}), labelled(at::tensor({0, 3}, at::kLong))), InvalidArgument,
                 "outside [0, 3)");
    EXPECT_ERROR(metric("f1")->add(at::zeros({2, 3}), labelled(at::zeros({3}, at::kLong))), InvalidArgument,
                 "metric f1");
}

TEST(Auc, IsTheShareOfPairsInTheRightOrderMeanOverClasses) {
    const Classes data;
    const auto probability = data.scores.to(at::kDouble).softmax(1);
    double mean = 0;
    for (int64_t c = 0; c < 4; ++c) {
        double right = 0, pairs = 0;
        for (int64_t i = 0; i < 200; ++i)
            for (int64_t j = 0; j < 200; ++j) {
                if (data.label(i) != c || data.label(j) == c) continue;
                const double a = probability[i][c].item<double>(), b = probability[j][c].item<double>();
                right += a > b ? 1 : a == b ? 0.5 : 0;
                pairs += 1;
            }
        mean += right / pairs / 4;
    }
    expect_figure(result("auc", data.scores, data.target), mean);
}

TEST(Auc, HasDeLongsIntervalForTwoClasses) {
    // 3 positives at logits 3 1 2, 4 negatives at 0 1 2.5 -1. Shares beaten: 1, (2 + 0.5) / 4, 3 / 4; of positives
    // above: 1, 2.5 / 3, 1 / 3, 1.
    const auto logit = at::tensor({3.F, 1.F, 2.F, 0.F, 1.F, 2.5F, -1.F});
    const auto scores = at::stack({at::zeros({7}), logit}, 1);
    const auto m = metric("auc");
    m->add(scores, labelled(at::tensor({1, 1, 1, 0, 0, 0, 0}, at::kLong)));
    const double area = (1 + 0.625 + 0.75) / 3;
    const auto figure = m->result();
    EXPECT_NEAR(*figure.value, area, 1e-12);
    const auto variance = [&](const std::vector<double>& shares) {
        double sum = 0;
        for (const double share : shares) sum += (share - area) * (share - area);
        return sum / static_cast<double>(shares.size());
    };
    // DeLong: var(V10) / m + var(V01) / n; here with m and n instead of m - 1 and n - 1, and N / (N - 1) over all.
    const double s10 = variance({1, 0.625, 0.75}), s01 = variance({1, 2.5 / 3, 1.0 / 3, 1});
    const double error = std::sqrt((s10 / 3 + s01 / 4) * 7 / 6);
    EXPECT_NEAR(figure.interval->low, std::max(0.0, area - 1.96 * error), 1e-9);
    const auto one = metric("auc");
    one->add(scores, labelled(at::zeros({7}, at::kLong)));
    EXPECT_THAT(one->result().reason, HasSubstr("all examples are of one class"));
}

TEST(Ece, IsTheMeanGapOfFifteenBins) {
    const Classes data;
    const auto probability = data.scores.to(at::kDouble).softmax(1);
    double count[15] = {}, confidence[15] = {}, hits[15] = {};
    for (int64_t i = 0; i < 200; ++i) {
        const double sure = probability[i].max().item<double>();
        const int bin = std::min(14, static_cast<int>(sure * 15));
        count[bin] += 1;
        confidence[bin] += sure;
        hits[bin] += data.predicted(i) == data.label(i);
    }
    double expected = 0;
    for (int bin = 0; bin < 15; ++bin)
        if (count[bin] > 0)
            expected += count[bin] / 200 * std::abs(hits[bin] / count[bin] - confidence[bin] / count[bin]);
    const auto figure = result("ece", data.scores, data.target);
    EXPECT_NEAR(*figure.value, expected, 1e-9);
    EXPECT_THAT(figure.method, HasSubstr("softmax of the outputs"));
    EXPECT_FALSE(metric("ece")->higher_is_better());
    // Given as probabilities they are taken as such.
    const auto direct = result("ece", probability.to(at::kFloat), data.target);
    EXPECT_NEAR(*direct.value, expected, 1e-5);  // float32 probabilities
    EXPECT_THAT(direct.method, HasSubstr("of the probabilities"));
}

TEST(Perplexity, IsTheExponentOfTheMeanCrossEntropyOverPositions) {
    const auto scores = testing::sine({5, 7, 3}, 2.0);  // [N, C, T]
    const auto target = (at::arange(15) % 7).to(at::kLong).reshape({5, 3});
    double nats = 0;
    for (int64_t i = 0; i < 5; ++i)
        for (int64_t t = 0; t < 3; ++t) {
            double sum = 0;
            for (int64_t c = 0; c < 7; ++c) sum += std::exp(scores[i][c][t].item<double>());
            nats += std::log(sum) - scores[i][target[i][t].item<int64_t>()][t].item<double>();
        }
    const auto m = metric("perplexity");
    m->add(scores, labelled(target));
    EXPECT_NEAR(*m->result().value, std::exp(nats / 15), 1e-9);
    const auto uniform = metric("perplexity");
    uniform->add(at::zeros({4, 50}), labelled(at::arange(4)));
    EXPECT_NEAR(*uniform->result().value, 50, 1e-9);
    EXPECT_DOUBLE_EQ(uniform->points(12), -12);
}

TEST(ValueMetrics, MatchPlainLoops) {
    // Far from 0, where squares of raw values would lose the digits.
    const auto target = 1e4 + 10 * (at::arange(120.0) * 0.9).sin().reshape({60, 2});
    const auto output = target + 3 * (at::arange(120.0) * 2.3).cos().reshape({60, 2});
    double n = 0, mt = 0, mo = 0;
    for (int64_t i = 0; i < 120; ++i) {
        mt += target.flatten()[i].item<double>() / 120;
        mo += output.flatten()[i].item<double>() / 120;
    }
    double error = 0, tt = 0, oo = 0, to = 0, relative = 0;
    for (int64_t i = 0; i < 120; ++i, n += 1) {
        const double t = target.flatten()[i].item<double>(), o = output.flatten()[i].item<double>();
        error += (o - t) * (o - t);
        tt += (t - mt) * (t - mt);
        oo += (o - mo) * (o - mo);
        to += (t - mt) * (o - mo);
        relative += std::abs((o - t) / t) / 120;
    }
    expect_figure(result("r2", output, target), 1 - error / tt);
    expect_figure(result("pearson", output, target), to / std::sqrt(tt * oo));
    expect_figure(result("mape", output, target), relative);
}

TEST(ValueMetrics, WhatIsNotDefinedIsUnavailable) {
    EXPECT_THAT(result("r2", at::arange(9.0), at::ones({9})).reason, HasSubstr("all equal"));
    EXPECT_THAT(result("pearson", at::ones({9}), at::arange(9.0)).reason, HasSubstr("all equal"));
    EXPECT_THAT(result("mape", at::ones({9}), at::arange(9.0)).reason, HasSubstr("a target is 0"));
}

TEST(SumsMetrics, PairWithTheBaselineOnTheSameExamples) {
    const Classes data;
    const auto baseline = metric("f1"), same = metric("f1"), worse = metric("f1");
    baseline->add(data.scores, labelled(data.target));
    same->add(data.scores, labelled(data.target));
    worse->add(-data.scores, labelled(data.target));
    EXPECT_EQ(same->paired(*baseline)["difference"].get<double>(), 0);
    EXPECT_EQ(same->paired(*baseline)["interval"], Json({0.0, 0.0})) << "the same resamples for both";
    const auto change = worse->paired(*baseline);
    EXPECT_NEAR(change["difference"].get<double>(), *worse->result().value - *baseline->result().value, 1e-12);
    EXPECT_LT(change["interval"][1].get<double>(), 0);
    EXPECT_TRUE(worse->paired(*metric("mape")).is_null());
    const auto auc = metric("auc"), flipped = metric("auc");
    auc->add(data.scores, labelled(data.target));
    flipped->add(-data.scores, labelled(data.target));
    EXPECT_LT(flipped->paired(*auc)["interval"][1].get<double>(), 0);
}

TEST(KlToBaseline, IsReportedWithAgreement) {
    const auto data = tensor_dataset({testing::sine({6, 3}, 2.0)}, at::arange(6).remainder(3), "six");
    const Runner identity([](Inputs inputs) { return inputs[0]; });
    const Runner half([](Inputs inputs) { return inputs[0].toTensor() * 0.5; });
    const auto baseline = evaluate(identity, *data, {"top1"}, Task::kClassification);
    const auto other = evaluate(half, *data, {"top1"}, Task::kClassification, 4, nullptr);
    const auto compared = evaluate(half, *data, {"top1"}, Task::kClassification, 256, &baseline);
    double expected = 0;
    for (int64_t i = 0; i < 6; ++i) {
        double p[3], q[3], ps = 0, qs = 0;
        for (int64_t c = 0; c < 3; ++c) {
            const double score = testing::sine({6, 3}, 2.0)[i][c].item<double>();
            ps += p[c] = std::exp(score);
            qs += q[c] = std::exp(0.5 * score);
        }
        for (int64_t c = 0; c < 3; ++c) expected += p[c] / ps * std::log(p[c] / ps / (q[c] / qs)) / 6;
    }
    ASSERT_NE(compared.find("kl_to_baseline"), nullptr);
    EXPECT_NEAR(*compared.find("kl_to_baseline")->figure.value, expected, 1e-6);  // outputs are kept in float32
    EXPECT_FALSE(compared.find("kl_to_baseline")->higher_is_better);
    EXPECT_EQ(other.find("kl_to_baseline"), nullptr);
}

TEST(ScriptMetric, IsAMeanOfScoresOrOneNumberAsTheFileGives) {
    const testing::TemporaryFolder folder;
    auto within = testing::build_module({}, R"(
def forward(self, output, target):
    return ((output - target).abs() < 0.5) * 1.0
)");
    within.save((folder / "within.pt").string());
    auto largest = testing::build_module({}, R"(
def forward(self, output, target):
    return (output - target).abs().max()
)");
    largest.register_attribute("higher_is_better", c10::BoolType::get(), false);
    largest.save((folder / "largest.pt").string());
    const auto output = at::arange(12.0), target = output + at::tensor({0.0, 0.4, 0.8}).repeat({4});
    const auto scores = result("file:" + (folder / "within.pt").string(), output, target);
    EXPECT_NEAR(*scores.value, 2.0 / 3, 1e-12);
    EXPECT_TRUE(scores.interval);
    const auto name = "file:" + (folder / "largest.pt").string();
    EXPECT_NEAR(*result(name, output, target).value, 0.8, 1e-12);
    EXPECT_FALSE(metric(name)->higher_is_better());
    EXPECT_TRUE(metric("file:" + (folder / "within.pt").string())->higher_is_better());

    const auto data = tensor_dataset({output}, target, "twelve");
    const Runner identity([](Inputs inputs) { return inputs[0]; });
    const auto evaluation = evaluate(identity, *data, {name}, Task::kRegression, 5);
    EXPECT_NEAR(*evaluation.find(name)->figure.value, 0.8, 1e-6);  // outputs in float32

    EXPECT_ERROR(metric("file:" + (folder / "absent.pt").string()), IoError, "absent.pt");
    auto wrong = testing::build_module({}, "def forward(self, output, target):\n    return output.unsqueeze(0)\n");
    wrong.save((folder / "wrong.pt").string());
    EXPECT_ERROR(result("file:" + (folder / "wrong.pt").string(), output, target), InvalidArgument,
                 "Return one score per example");
    EXPECT_ERROR(metric("fi"), InvalidArgument, "Did you mean \"f1\"?");
}

}  // namespace
}  // namespace coppice::eval
