// Every criterion of the table on small and real models: what Criterion promises.
#include "prune/criteria/criteria.h"

namespace coppice::testing {
namespace {

std::unique_ptr<prune::Criterion> make_criterion(const std::string& name) {
    // Few batches: these tests are about the contract, not about the figures.
    std::vector<std::pair<std::string, std::string>> settings;
    if (name == "bn_scale") settings = {{"elsewhere", "magnitude"}};
    const auto criterion_needs = [&](const std::unique_ptr<prune::Criterion>& made) { return made->needs(); };
    Options probe(name, settings);
    const auto& row = find_entry(prune::criteria(), "criterion", name, "test");
    if (criterion_needs(row.make(probe)).calibration_data) {
        settings.emplace_back("batches", "2");
        settings.emplace_back("batch_size", "4");
    }
    Options options(name, settings);
    auto made = row.make(options);
    options.done();
    return made;
}

class CriterionContract : public ::testing::TestWithParam<std::string> {
protected:
    /// Scores of the criterion, checked for shape, type and finite values.
    std::vector<at::Tensor> expect_scores(const Model& model, const prune::Groups& groups, Context& context) {
        const auto scores = make_criterion(GetParam())->scores(model, groups, context);
        EXPECT_EQ(scores.size(), groups.all().size());
        for (size_t g = 0; g < scores.size(); ++g) {
            EXPECT_EQ(scores[g].sizes(), (std::vector<int64_t>{groups.all()[g].channels})) << groups.all()[g].name;
            EXPECT_EQ(scores[g].scalar_type(), at::kDouble);
            EXPECT_TRUE(scores[g].isfinite().all().item<bool>()) << groups.all()[g].name;
        }
        return scores;
    }

    void expect_scores_on(const std::string& file, Context context) {
        const auto model = Model::load(data_path(file));
        expect_scores(model, prune::find_groups(model, Facts::observe(model, context.example)), context);
    }

    static Context context_of(const std::vector<at::Tensor>& inputs, const at::Tensor& target, Task task) {
        Context context;
        for (const auto& input : inputs) context.example.push_back(input.slice(0, 0, 2));
        context.task = task;
        context.data.calibration = tensor_dataset(inputs, target, "by hand");
        return context;
    }
};

TEST_P(CriterionContract, SameSeedSameBitsAndAnUntouchedModel) {
    const auto model = residual_model();
    auto context = context_of({sine({8, 3, 8, 8})}, at::arange(8), Task::kClassification);
    const auto groups = prune::find_groups(model, Facts::observe(model, context.example));
    std::vector<at::Tensor> before;
    for (const auto& named : named_tensors(model)) before.push_back(named.tensor.detach().clone());
    const auto scores = expect_scores(model, groups, context);
    const auto again = make_criterion(GetParam())->scores(model, groups, context);
    for (size_t g = 0; g < scores.size(); ++g) EXPECT_TRUE(at::equal(scores[g], again[g])) << "not the same bits";
    const auto after = named_tensors(model);
    for (size_t i = 0; i < after.size(); ++i)
        EXPECT_TRUE(at::equal(before[i], after[i].tensor)) << after[i].name << " changed";
}

TEST_P(CriterionContract, ScoresAConvolutionalRecurrentNetwork) {
    SKIP_WITHOUT_DATA("fsdd/cnn_gru.pt");
    expect_scores_on("fsdd/cnn_gru.pt", context_of({sine({4, 1, 2000}, 0.3)}, at::arange(4), Task::kClassification));
}

TEST_P(CriterionContract, ScoresAForecaster) {
    SKIP_WITHOUT_DATA("etth1/light_ts.pt");
    expect_scores_on("etth1/light_ts.pt", context_of({sine({4, 96, 7})}, sine({4, 96, 7}), Task::kRegression));
}

INSTANTIATE_TEST_SUITE_P(All, CriterionContract, ::testing::ValuesIn(names_of(prune::criteria())),
                         [](const auto& info) { return info.param; });

/// Pairs of short sentences for MiniLM.
class Sentences final : public Dataset {
public:
    int64_t size() const override { return 2; }
    Batch batch(const std::vector<int64_t>& indices) const override {
        std::vector<at::Tensor> ids;
        for (const auto i : indices) ids.push_back((at::arange(14) + 20 * i + 5).reshape({2, 7}));
        Batch batch;
        const auto all = at::cat(ids);
        batch.inputs = {all, at::ones_like(all)};
        batch.target = at::full({static_cast<int64_t>(indices.size())}, 2.5);
        batch.pairs = true;
        return batch;
    }
    std::string description() const override { return "two pairs"; }
    std::string fingerprint() const override { return "none"; }
};

TEST(PruneCriteria, ScoreHeadsFeedForwardAndWidthOfATransformer) {
    SKIP_WITHOUT_DATA("stsb/minilm_l6.pt");
    const auto model = Model::load(data_path("stsb/minilm_l6.pt"));
    Context context;
    const Sentences data;
    context.example = data.batch({0}).inputs;
    context.task = Task::kSimilarity;
    context.data.calibration = std::make_shared<Sentences>();
    const auto groups = prune::find_groups(model, Facts::observe(model, context.example));
    // Those that look at a model in different ways; the others share their code.
    for (const char* name : {"fpgm", "mean_activation", "reconstruction", "taylor", "wanda"}) {
        const auto scores = make_criterion(name)->scores(model, groups, context);
        for (size_t g = 0; g < scores.size(); ++g) {
            EXPECT_EQ(scores[g].size(0), groups.all()[g].channels) << name;
            EXPECT_TRUE(scores[g].isfinite().all().item<bool>()) << name << " at " << groups.all()[g].name;
        }
    }
}

TEST(PruneCriteria, AChannelThatCarriesNothingGoesFirst) {
    // Channel 2 of the hidden layer is made of zeros: constantly zero behind the relu.
    for (const auto& name : names_of(prune::criteria())) {
        if (name == "random" || name == "fpgm") continue;  // fpgm asks how different a filter is, not how large
        auto model = build_model({{"a.weight", sine({4, 6}, 0.9)}, {"b.weight", sine({3, 4}, 0.8) + 0.1}}, R"(
def forward(self, x):
    return torch.linear(torch.relu(torch.linear(x, self.a.weight)), self.b.weight)
)");
        auto a = get_attribute(model, "a.weight").toTensor().detach().clone();
        a[2].zero_();
        set_tensor(model, "a.weight", a);
        auto b = get_attribute(model, "b.weight").toTensor().detach().clone();
        b.select(1, 2).fill_(0.01);
        set_tensor(model, "b.weight", b);
        Context context = calibrated_on({sine({8, 6})}, at::tensor({0, 1, 2, 0, 1, 2, 0, 1}, at::kLong));
        const auto scores = only_scores(*make_criterion(name), model, context);
        EXPECT_EQ(scores.argmin().item<int64_t>(), 2) << name << ": " << scores;
    }
}

}  // namespace
}  // namespace coppice::testing
