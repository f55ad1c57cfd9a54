// Weight sharing: k-means against plain loops, and the stage's graphs, values and files.
#include <torch/csrc/jit/testing/file_check.h>

#include <cmath>
#include <set>

#include <coppice/quantize.h>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

std::vector<double> sorted_values(const at::Tensor& weight) {
    const auto flat = std::get<0>(weight.to(at::kDouble).flatten().sort());
    return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

int64_t distinct(const at::Tensor& values) {
    return std::get<0>(at::_unique2(values.detach())).numel();
}

size_t nearest(const std::vector<double>& centroids, double value) {
    size_t best = 0;
    for (size_t i = 1; i < centroids.size(); ++i)
        if (std::abs(value - centroids[i]) < std::abs(value - centroids[best])) best = i;
    return best;
}

TEST(Cluster, IsLloydsAlgorithmByPlainLoops) {
    const auto weight = sine({40, 25}, 0.3).pow(3);
    for (const auto& row : centroid_inits()) {
        Options options(row.name);
        const auto init = row.make(options);
        const auto sorted = sorted_values(weight);
        auto centroids = init->centroids(sorted, 8, 5);
        ASSERT_EQ(centroids.size(), 8u) << row.name;
        for (int step = 0; step < 100; ++step) {
            std::vector<double> sum(8, 0), count(8, 0);
            for (const double value : sorted) {
                const size_t at = nearest(centroids, value);
                sum[at] += value;
                ++count[at];
            }
            for (size_t i = 0; i < 8; ++i)
                if (count[i] > 0) centroids[i] = sum[i] / count[i];
        }
        const auto book = cluster(weight, 8, *init, 100, 5);
        ASSERT_EQ(book.values.numel(), 8);
        // Float32 of the same numbers; prefix sums of 1,000 weights lose nothing that this would show.
        for (int64_t i = 0; i < 8; ++i)
            EXPECT_NEAR(book.values[i].item<double>(), centroids[static_cast<size_t>(i)], 1e-6) << row.name;
        EXPECT_EQ(book.indices.sizes(), weight.sizes());
        EXPECT_EQ(book.indices.scalar_type(), at::kByte);
        const auto error = (book.weights() - weight).abs().flatten();
        const auto flat = weight.flatten();
        for (int64_t i = 0; i < flat.numel(); ++i) {
            const double value = flat[i].item<double>();
            const double least = std::abs(value - centroids[nearest(centroids, value)]);
            EXPECT_NEAR(error[i].item<double>(), least, 1e-6);
        }
    }
}

TEST(CentroidInits, StartWhereTheyPromise) {
    const std::vector<double> sorted = {-4, 0, 0.5, 1, 1, 1, 1, 2, 3, 12};
    EXPECT_EQ(linear_init()->centroids(sorted, 5, 0), (std::vector<double>{-4, 0, 4, 8, 12}));
    EXPECT_EQ(density_init()->centroids(sorted, 5, 0), (std::vector<double>{0, 1, 1, 2, 12}));
    std::vector<double> many;
    for (int i = 0; i < 1000; ++i) many.push_back(i);
    int far = 0;
    for (uint64_t seed = 0; seed < 50; ++seed) {
        for (const auto& init : {random_init(), plus_plus_init()}) {
            const auto drawn = init->centroids(many, 6, seed);
            EXPECT_EQ(drawn, init->centroids(many, 6, seed));
            EXPECT_EQ(std::set<double>(drawn.begin(), drawn.end()).size(), 6u);
            EXPECT_TRUE(std::is_sorted(drawn.begin(), drawn.end()));
        }
        // Two groups: the second centroid of k-means++ lies in the other one, but for a chance of 1e-6.
        const std::vector<double> groups = {0, 0.001, 0.002, 1000, 1000.001, 1000.002};
        const auto two = plus_plus_init()->centroids(groups, 2, seed);
        far += two[0] < 1 && two[1] > 999;
    }
    EXPECT_EQ(far, 50);
}

TEST(Cluster, KeepsPrunedZerosAndWhatIsAlreadyShared) {
    auto weight = sine({32, 32}, 0.3) + 0.5;
    weight = at::where(at::arange(1024).view({32, 32}).remainder(3) == 0, at::zeros({}), weight);
    const auto book = cluster(weight, 8, *linear_init());
    EXPECT_EQ(book.values.numel(), 8);
    EXPECT_TRUE(at::equal(book.weights().masked_select(weight == 0), at::zeros({(weight == 0).sum().item<int64_t>()})));
    const auto again = cluster(book.weights(), 8, *random_init(), 100, 3);
    EXPECT_TRUE(at::equal(again.weights(), book.weights()));
    const auto constant = cluster(at::full({4, 4}, 0.1f), 4, *linear_init());
    EXPECT_TRUE(at::equal(constant.weights(), at::full({4, 4}, 0.1f)));
    EXPECT_ERROR(cluster(weight, 257, *linear_init()), InvalidArgument, "2 to 256");
}

Model conv_embedding_linear() {
    return build_model({{"e.weight", sine({50, 64}, 0.9)},
                        {"c.weight", sine({48, 64, 3}, 0.2)},
                        {"c.bias", sine({48}, 0.3)},
                        {"w", sine({16, 48}, 0.3)}},
                       "def forward(self, ids):\n"
                       "    x = torch.embedding(self.e.weight, ids).transpose(1, 2)\n"
                       "    y = torch.relu(torch.conv1d(x, self.c.weight, self.c.bias))\n"
                       "    return torch.matmul(y.transpose(1, 2), self.w.t())\n");
}

Model shared(const Model& model, const std::vector<std::pair<std::string, std::string>>& scalars, Context& context) {
    Options options("quantize.codebook", scalars);
    const auto stage = find_entry(stages(), "stage", "quantize.codebook", "test").make(options);
    options.done();
    return stage->apply(model, context);
}

TEST(Codebook, BothStoragesComputeTheSameBitsAndDifferInTheGraph) {
    torch::NoGradGuard no_grad;
    Context context;
    context.example = {at::arange(40).remainder(50).view({2, 20})};
    const auto model = conv_embedding_linear();
    auto other = context;
    const auto floats = shared(model, {{"bits", "3"}, {"min_sqnr_db", "0"}}, context);
    const auto bytes = shared(model, {{"bits", "3"}, {"storage", "indices"}, {"min_sqnr_db", "0"}}, other);
    const auto x = first_tensor(floats.forward(context.example)), y = first_tensor(bytes.forward(context.example));
    EXPECT_TRUE(at::equal(x, y));
    for (const char* name : {"e.weight", "c.weight", "w"})
        EXPECT_EQ(distinct(get_attribute(floats, name).toTensor()), 8) << name;
    EXPECT_TRUE(at::equal(get_attribute(floats, "c.bias").toTensor(), sine({48}, 0.3)));
    torch::jit::testing::FileCheck()
        .check_count("aten::index_select", 3, /*exactly=*/true)
        ->check("aten::matmul")
        ->run(*bytes.graph());
    torch::jit::testing::FileCheck().check_not("aten::index_select")->run(*floats.graph());
    // Rows are looked up before they are expanded.
    torch::jit::testing::FileCheck()
        .check("aten::embedding")
        ->check("aten::index_select")
        ->check("aten::conv1d")
        ->run(*bytes.graph());
    int64_t stored = 0;
    for (const auto& named : named_tensors(bytes)) stored += named.tensor.nbytes();
    EXPECT_EQ(stored, 50 * 64 + 48 * 64 * 3 + 16 * 48 + 3 * 8 * 4 + 48 * 4);
    EXPECT_EQ(context.facts["quantized_layers"], 3);
    TemporaryFolder folder;
    for (const auto* one : {&floats, &bytes}) {
        one->save(folder / "model.pt");
        auto stock = torch::jit::load((folder / "model.pt").string());
        EXPECT_TRUE(at::equal(first_tensor(stock.forward(context.example)), x));
    }
}

TEST(Codebook, TheFileShrinksToAboutTheBitsOfTheIndices) {
    const auto model = build_model({{"w", at::randn({256, 512}, at::make_generator<at::CPUGeneratorImpl>(1))}},
                                   "def forward(self, x):\n    return torch.linear(x, self.w)\n");
    TemporaryFolder folder;
    const auto size = [&](const Model& some) {
        some.save(folder / "model.pt");
        return static_cast<double>(std::filesystem::file_size(folder / "model.pt"));
    };
    const double whole = size(model);
    for (const auto& [bits, storage, most] :
         {std::tuple("4", "indices", 5.0), std::tuple("4", "weights", 10.0), std::tuple("2", "indices", 3.0)}) {
        Context context;
        context.example = {sine({4, 512})};
        const double small = size(shared(model, {{"bits", bits}, {"storage", storage}, {"min_sqnr_db", "0"}}, context));
        EXPECT_LT(small, whole * most / 32 + 4096) << bits << " " << storage;  // 4 kB of code and headers
    }
}

TEST(Codebook, MoreBitsLessNoise) {
    double before = -6;
    for (const char* bits : {"2", "4", "6", "8"}) {
        Context context;
        context.example = {at::arange(40).remainder(50).view({2, 20})};
        shared(conv_embedding_linear(), {{"bits", bits}, {"min_sqnr_db", "0"}}, context);
        const double noise = context.facts["worst_layer_sqnr_db"];
        EXPECT_GT(noise, before + 6) << bits;  // two bits are worth 12 dB to a uniform distribution
        before = noise;
    }
}

TEST(Codebook, TreatsRecurrentWeightsInPlaceAndRefusesTheirIndices) {
    std::vector<std::pair<std::string, at::Tensor>> tensors = {{"ih", sine({96, 16}, 0.2)},
                                                               {"hh", sine({96, 24}, 0.2)}};
    const auto model = build_model(tensors,
                                   "def forward(self, x):\n"
                                   "    h = torch.zeros([1, x.size(0), 24])\n"
                                   "    y, s, c = torch.lstm(x, [h, h], [self.ih, self.hh], False, 1, 0.0, False, "
                                   "False, True)\n"
                                   "    return y\n");
    Context context;
    context.example = {sine({2, 5, 16})};
    const auto mixed = shared(model, {{"bits", "5"}}, context);
    EXPECT_EQ(distinct(get_attribute(mixed, "ih").toTensor()), 32);
    EXPECT_EQ(distinct(get_attribute(mixed, "hh").toTensor()), 32);
    EXPECT_ERROR(shared(model, {{"storage", "indices"}}, context), UnsupportedModel, "storage weights treats them");
    CodebookOptions options;
    options.bits = 9;
    EXPECT_ERROR(codebook_sharing(options), InvalidArgument, "must be 2 to 8");
    options.bits = 4;
    options.storage = "bytes";
    EXPECT_ERROR(codebook_sharing(options), InvalidArgument, "indices");
}

/// An embedding and the product that turns back into its entries share a parameter.
Model tied() {
    return build_model({{"e.weight", sine({50, 16}, 0.9)}},
                       "def forward(self, ids):\n"
                       "    h = torch.embedding(self.e.weight, ids)\n"
                       "    return torch.linear(h, self.e.weight), torch.matmul(h, self.e.weight.t()), h\n");
}

TEST(Codebook, ALayerThatStaysFloatKeepsItsWeightWhereAnotherSharesIt) {
    torch::NoGradGuard no_grad;
    const Inputs inputs = {at::arange(40).remainder(50).view({2, 20})};
    const auto weight = sine({50, 16}, 0.9);
    const auto book = cluster(weight, 8, *linear_init(), 100, 0).weights();
    ASSERT_GT(max_difference(book, weight), 0.01);
    // Which of the three readers, embedding, linear and product with the transpose, are left alone.
    for (const std::set<int>& floats : {std::set<int>{0}, {1}, {2}, {0, 1}, {1, 2}, {}}) {
        Context context;
        context.example = inputs;
        CodebookOptions options;
        options.bits = 3;
        options.min_sqnr_db = -100;
        for (const int layer : floats) options.ignore.push_back(layer == 0 ? "e" : "e#" + std::to_string(layer + 1));
        const auto result = codebook_sharing(options)->apply(tied(), context);
        EXPECT_EQ(context.facts["float_layers"], floats.size());
        const auto of = [&](int layer) { return floats.count(layer) ? weight : book; };
        const auto h = at::embedding(of(0), inputs[0].toTensor());
        const auto found = result.forward(inputs).toTuple()->elements();
        EXPECT_LE(max_difference(found[2].toTensor(), h), 1e-6);
        EXPECT_LE(max_difference(found[0].toTensor(), at::linear(h, of(1))), 1e-5);
        EXPECT_LE(max_difference(found[1].toTensor(), h.matmul(of(2).t())), 1e-5);
        int64_t stored = 0;
        for (const auto& named : named_tensors(result)) stored += named.tensor.numel();
        EXPECT_EQ(stored, (floats.empty() ? 1 : 2) * weight.numel());  // what is shared is stored once
    }
}

}  // namespace
}  // namespace coppice::quantize
