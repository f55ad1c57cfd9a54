// Pruning in steps against the same done by plain loops on lists of numbers.
#include <cmath>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

constexpr int64_t kIn = 5, kFirst = 12, kSecond = 10, kOut = 4;

Model two_hidden_layers() {
    return build_model(
        {{"a.weight", sine({kFirst, kIn}, 0.6)},
         {"b.weight",
          (at::arange(kSecond * kFirst, at::kDouble) * 1.7).cos().to(at::kFloat).reshape({kSecond, kFirst})},
         {"c.weight", sine({kOut, kSecond}, 0.9)}},
        R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)), self.c.weight)
)");
}

/// Squared norm of everything that vanishes with each hidden unit, among the units that are left.
void norms(const Model& model, const std::vector<char>& first, const std::vector<char>& second,
           std::vector<double>& of_first, std::vector<double>& of_second) {
    const auto a = get_attribute(model, "a.weight").toTensor(), b = get_attribute(model, "b.weight").toTensor(),
               c = get_attribute(model, "c.weight").toTensor();
    const auto square = [](const at::Tensor& t, int64_t i, int64_t j) { return std::pow(t[i][j].item<double>(), 2); };
    of_first.assign(kFirst, 0);
    of_second.assign(kSecond, 0);
    for (int64_t h = 0; h < kFirst; ++h) {
        for (int64_t i = 0; i < kIn; ++i) of_first[h] += square(a, h, i);
        for (int64_t k = 0; k < kSecond; ++k) {
            if (second[k]) of_first[h] += square(b, k, h);
            if (first[h]) of_second[k] += square(b, k, h);
        }
    }
    for (int64_t k = 0; k < kSecond; ++k)
        for (int64_t o = 0; o < kOut; ++o) of_second[k] += square(c, o, k);
}

/// Drops the weakest units that are left until `keep` are.
void drop(std::vector<char>& left, const std::vector<double>& norm, int64_t keep) {
    while (std::count(left.begin(), left.end(), 1) > keep) {
        int64_t weakest = -1;
        for (size_t h = 0; h < left.size(); ++h)
            if (left[h] && (weakest < 0 || norm[h] < norm[weakest])) weakest = static_cast<int64_t>(h);
        left[weakest] = 0;
    }
}

TEST(PruneInSteps, ScoresAnewAfterEachCutAsPlainLoopsDo) {
    const auto model = two_hidden_layers();
    const Inputs example = {sine({2, kIn})};
    std::vector<char> first(kFirst, 1), second(kSecond, 1), first_at_once = first, second_at_once = second;
    std::vector<double> of_first, of_second;
    norms(model, first, second, of_first, of_second);
    drop(first_at_once, of_first, 3);
    drop(second_at_once, of_second, 4);
    // Two equal steps towards a share of 0.7 and widths to the nearest, the larger of two as near: 12 -> 7.8 -> 3.6 and
    // 10 -> 6.5 -> 3.
    for (const auto& [keep_first, keep_second] : {std::pair{8, 7}, std::pair{4, 3}}) {
        norms(model, first, second, of_first, of_second);
        drop(first, of_first, keep_first);
        drop(second, of_second, keep_second);
    }
    Context context;
    context.example = example;
    const auto smaller =
        make_stage({{"scope", "uniform"}, {"ratio", "0.7"}, {"round_to", "1"}, {"schedule", "linear"}, {"steps", "2"}})
            ->apply(model, context);
    std::vector<int64_t> kept_first, kept_second;
    for (int64_t h = 0; h < kFirst; ++h)
        if (first[h]) kept_first.push_back(h);
    for (int64_t k = 0; k < kSecond; ++k)
        if (second[k]) kept_second.push_back(k);
    const auto expected = get_attribute(model, "b.weight")
                              .toTensor()
                              .index_select(0, at::tensor(kept_second, at::kLong))
                              .index_select(1, at::tensor(kept_first, at::kLong));
    const auto found = get_attribute(smaller, "b.weight").toTensor();
    EXPECT_TRUE(at::equal(found, expected)) << found << expected;
    EXPECT_NE(first, first_at_once) << "the example does not tell steps from a single one";
}

TEST(PruneInSteps, MeetTheSameTargetWithEveryAllocationAndSchedule) {
    const auto model = residual_model();
    for (const auto& allocation : prune::allocations())
        for (const char* schedule : {"linear", "cubic", "exponential"}) {
            SCOPED_TRACE(allocation.name + ", " + schedule);
            Context context;
            context.example = {sine({2, 3, 8, 8})};
            context.evaluate = [](const Model& m) { return static_cast<double>(named_tensors(m)[0].tensor.numel()); };
            const auto smaller = make_stage({{"scope", allocation.name},
                                             {"macs_ratio", "0.5"},
                                             {"round_to", "2"},
                                             {"schedule", schedule},
                                             {"steps", "4"}})
                                     ->apply(model, context);
            const double reached = cost(smaller, context.example).macs / cost(model, context.example).macs;
            EXPECT_LE(reached, 0.5 + 1e-9);
            EXPECT_GE(reached, 0.35);  // 8 and 16 channels in twos: a step of one group is up to 0.1
            EXPECT_EQ(get_attribute(smaller, "conv2.weight").toTensor().size(0) % 2, 0);
        }
}

/// Keeps a batch norm's mean of every model that it is asked about.
class Recorder final : public prune::Criterion {
public:
    explicit Recorder(std::vector<at::Tensor>& means) : means_(means) {}
    std::vector<at::Tensor> scores(const Model& model, const prune::Groups& groups, Context& context) const override {
        means_.push_back(get_attribute(model, "bn2.running_mean").toTensor().clone());
        return prune::magnitude()->scores(model, groups, context);
    }

private:
    std::vector<at::Tensor>& means_;
};

TEST(PruneInSteps, BatchNormIsEstimatedBeforeEachScoring) {
    const auto model = residual_model();
    std::vector<at::Tensor> plain, anew;
    for (const int64_t batches : {0, 2}) {
        Context context;
        context.example = {sine({2, 3, 8, 8})};
        context.data.calibration = tensor_dataset({sine({16, 3, 8, 8})}, at::arange(16), "by hand");
        prune::ChannelPruningOptions options;
        options.target.round_to = 1;
        options.schedule = prune::linear();
        options.steps = 3;
        options.bn_batches = batches;
        options.bn_batch_size = 8;
        prune::channel_pruning(std::make_unique<Recorder>(batches ? anew : plain), prune::uniform(), options)
            ->apply(model, context);
    }
    ASSERT_EQ(plain.size(), 3u);
    ASSERT_EQ(anew.size(), 3u);
    EXPECT_TRUE(at::equal(plain[0], anew[0]));  // nothing was cut yet
    for (size_t step = 1; step < 3; ++step) {
        EXPECT_EQ(plain[step].sizes(), anew[step].sizes());
        EXPECT_GT(max_difference(plain[step], anew[step]), 1e-3) << step;
    }
}

TEST(PruneInSteps, ChannelsThatWentRankBelowThoseThatStay) {
    const auto model = residual_model();
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    const auto facts = Facts::observe(model, context.example);
    const auto groups = prune::find_groups(model, facts);
    const prune::CostModel cost(model, context.example, groups);
    prune::Target target;
    target.round_to = 1;
    const auto before = prune::magnitude()->scores(model, groups, context);
    const auto after = prune::scores_in_steps(model, facts, groups, *prune::magnitude(), *prune::uniform(), cost,
                                              target, *prune::linear(), 2, {}, context);
    const auto gone = prune::uniform()->allocate(groups, before, cost, prune::at_time(target, *prune::linear(), 0.5));
    for (size_t g = 0; g < gone.size(); ++g) {
        ASSERT_FALSE(gone[g].empty());
        const std::set<int64_t> removed(gone[g].begin(), gone[g].end());
        double highest_removed = -1e300, lowest_left = 1e300;
        for (int64_t c = 0; c < groups.all()[g].channels; ++c) {
            const double score = after[g][c].item<double>();
            if (removed.count(c))
                highest_removed = std::max(highest_removed, score);
            else
                lowest_left = std::min(lowest_left, score);
        }
        EXPECT_LT(highest_removed, lowest_left) << groups.all()[g].name;
        for (const int64_t a : gone[g])
            for (const int64_t b : gone[g])
                if (before[g][a].item<double>() < before[g][b].item<double>()) {
                    EXPECT_LT(after[g][a].item<double>(), after[g][b].item<double>());
                }
    }
}

TEST(PruneInSteps, MistakesAreNamed) {
    EXPECT_ERROR(make_stage({{"steps", "3"}}), InvalidArgument, "steps is 3, but the schedule is one_shot");
    EXPECT_ERROR(make_stage({{"schedule", "cubic"}}), InvalidArgument, "but steps is 1");
    EXPECT_ERROR(make_stage({{"schedule", "cubed"}}), InvalidArgument, "Did you mean \"cubic\"");
    EXPECT_ERROR(make_stage({{"schedule", "cubic"}, {"steps", "3"}, {"latency_ratio", "0.5"}}), InvalidArgument,
                 "steps cannot lead to a time");
}

}  // namespace
}  // namespace coppice::testing
