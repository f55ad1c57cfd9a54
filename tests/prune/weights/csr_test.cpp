#include <coppice/train.h>

#include "prune/weights/weights_cases.h"

namespace coppice::testing {
namespace {

using namespace prune;

/// Says what it is told, and remembers what it was asked.
class FakeStopwatch final : public Stopwatch {
public:
    explicit FakeStopwatch(double high) : high_(high) {}
    std::vector<double> seconds(const std::vector<OperatorRun>&, int64_t) const override {
        throw std::logic_error("not asked for");
    }
    TimeRatio ratio(const Model& before, const Model& after, const Inputs& example) const override {
        torch::NoGradGuard no_grad;
        EXPECT_LT(max_difference(first_tensor(before.forward(example)), first_tensor(after.forward(example))), 1e-5);
        inputs.push_back(example[0].toTensor());
        TimeRatio ratio;
        ratio.median = ratio.low = ratio.high = high_;
        return ratio;
    }
    mutable std::vector<at::Tensor> inputs;

private:
    const double high_;
};

at::Tensor sparse_weight(int64_t out, int64_t in) {  // every tenth weight is not zero
    auto weight = at::zeros({out * in});
    weight.slice(0, 0, c10::nullopt, 10).copy_(sine({(out * in + 9) / 10}) + 1.5);
    return weight.reshape({out, in});
}

/// [N, T, 20] -> 3-d, then 2-d; one weight is dense, one read twice.
Model sparse_model() {
    return build_model({{"a.weight", sparse_weight(30, 20)},
                        {"a.bias", sine({30})},
                        {"b.weight", sparse_weight(30, 30)},
                        {"dense.weight", sine({30, 30}, 0.3)},
                        {"head.weight", sparse_weight(7, 30)},
                        {"head.bias", sine({7})}},
                       "def forward(self, x):\n"
                       "    x = torch.relu(torch.linear(x, self.a.weight, self.a.bias))\n"
                       "    x = torch.linear(torch.linear(x, self.b.weight), self.b.weight)\n"
                       "    x = torch.linear(x, self.dense.weight)\n"
                       "    return torch.linear(torch.mean(x, 1), self.head.weight, self.head.bias)\n");
}

const Inputs kExample = {sine({4, 5, 20})};

CsrOptions with(const std::shared_ptr<FakeStopwatch>& stopwatch) {
    CsrOptions options;
    options.stopwatch = stopwatch;
    return options;
}

TEST(SparseRows, FasterLayersAreReplacedAndComputeTheSame) {
    const auto model = sparse_model();
    auto context = context_of(kExample);
    const auto stopwatch = std::make_shared<FakeStopwatch>(0.5);
    const auto sparse = sparse_rows(with(stopwatch))->apply(model, context);
    EXPECT_EQ(context.facts["layers_sparse"], 3);
    ASSERT_EQ(context.changes.size(), 4u);
    for (const auto& change : context.changes) EXPECT_EQ(change.action, change.layer == "dense" ? "kept" : "csr");
    EXPECT_EQ(context.changes[2].reason, "sparsity is below 0.7");
    ASSERT_EQ(stopwatch->inputs.size(), 3u);  // each on the input that the layer has
    EXPECT_EQ(stopwatch->inputs[0].sizes(), (std::vector<int64_t>{4, 5, 20}));
    EXPECT_EQ(stopwatch->inputs[2].sizes(), (std::vector<int64_t>{4, 30}));
    for (const auto& named : named_tensors(sparse))
        EXPECT_EQ(named.tensor.layout() == at::kSparseCsr, named.name.find("_csr") != std::string::npos) << named.name;
    EXPECT_FALSE(has_attribute(sparse, "a.weight"));
    torch::NoGradGuard no_grad;
    for (const int64_t batch : {1, 4, 9}) {  // other sizes than the example's
        const Inputs inputs = {sine({batch, 3 + batch, 20})};
        const auto expected = first_tensor(model.forward(inputs));
        // 1e-5 relative: another order of the sums.
        EXPECT_LT(max_difference(first_tensor(sparse.forward(inputs)), expected),
                  1e-5 * expected.abs().max().item<double>());
    }
    const auto before = cost(model, kExample), after = cost(sparse, kExample);
    EXPECT_EQ(after.parameters, before.parameters);
    EXPECT_EQ(after.nonzero_parameters, before.nonzero_parameters);
    EXPECT_EQ(after.macs, before.macs);
    EXPECT_LT(after.parameter_bytes, before.parameter_bytes);
}

TEST(SparseRows, LayersThatAreNotFasterStay) {
    const auto model = sparse_model();
    auto context = context_of(kExample);
    const auto same = sparse_rows(with(std::make_shared<FakeStopwatch>(0.97)))->apply(model, context);
    EXPECT_EQ(context.facts["layers_sparse"], 0);
    EXPECT_THAT(context.changes[0].reason, ::testing::HasSubstr("not faster beyond noise"));
    EXPECT_TRUE(at::equal(first_tensor(same.forward(kExample)), first_tensor(model.forward(kExample))));
}

TEST(SparseRows, TheFileLoadsInStockLibTorchAndAgain) {
    const auto model = sparse_model();
    auto context = context_of(kExample);
    const auto sparse = sparse_rows(with(std::make_shared<FakeStopwatch>(0.5)))->apply(model, context);
    TemporaryFolder folder;
    sparse.save(folder / "sparse.pt");
    torch::NoGradGuard no_grad;
    const auto expected = first_tensor(sparse.forward(kExample));
    auto stock = torch::jit::load((folder / "sparse.pt").string());
    for (int run = 0; run < 4; ++run)  // the executor specialises from the second run on
        EXPECT_TRUE(at::equal(first_tensor(stock.forward(kExample)), expected));
    const auto again = Model::load(folder / "sparse.pt").clone();
    EXPECT_TRUE(at::equal(first_tensor(again.forward(kExample)), expected));
    EXPECT_ERROR(trainable(again), InvalidArgument, "is stored sparse, and does not train");
}

TEST(SparseRows, ASharedWeightThatOthersReadStaysDense) {
    const auto model = build_model({{"a.weight", sparse_weight(20, 20)}},
                                   "def forward(self, x):\n"
                                   "    return torch.linear(x, self.a.weight) + torch.sum(self.a.weight)\n");
    auto context = context_of({sine({4, 20})});
    sparse_rows(with(std::make_shared<FakeStopwatch>(0.5)))->apply(model, context);
    EXPECT_EQ(context.changes[0].reason, "its weight is also read by aten::sum");
}

TEST(SparseRows, MistakesAreNamed) {
    CsrOptions options;
    options.least_sparsity = 1.5;
    EXPECT_ERROR(sparse_rows(options), InvalidArgument, "least_sparsity must be in [0, 1]");
    options.least_sparsity = 0.5;
    options.ignore = {"("};
    EXPECT_ERROR(sparse_rows(options), InvalidArgument, "no regular expression");
}

}  // namespace
}  // namespace coppice::testing
