// Real models: quality on real data stays, what is int8 is counted. Figures over all data are in tests/bench/results.
#include <ATen/Parallel.h>

#include <fstream>

#include "layer_check.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// The first `count` images of a CIFAR binary file, normalised, and their labels.
std::pair<at::Tensor, at::Tensor> cifar(const std::string& name, int64_t count) {
    std::ifstream file(data_path("cifar10/" + name), std::ios::binary);
    auto bytes = at::empty({count, 3073}, at::kByte);
    file.read(static_cast<char*>(bytes.data_ptr()), bytes.numel());
    const auto mean = at::tensor({0.485f, 0.456f, 0.406f}).reshape({1, 3, 1, 1});
    const auto deviation = at::tensor({0.229f, 0.224f, 0.225f}).reshape({1, 3, 1, 1});
    const auto pixels = bytes.slice(1, 1).reshape({count, 3, 32, 32}).to(at::kFloat) / 255;
    return {(pixels - mean) / deviation, bytes.select(1, 0).to(at::kLong)};
}

constexpr int kThreads = 1;  // every barrier between two threads costs a time slice on a busy machine

TEST(RealModels, ResNet20IsInt8ThroughoutAndAgreesWithItsSimulation) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    torch::NoGradGuard no_grad;
    at::set_num_threads(kThreads);
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    std::vector<Inputs> calibration;
    for (const auto& batch : cifar("train.bin", 64).first.split(32)) calibration.push_back({batch});
    const auto plan = plan_static(model, {calibration[0][0].toTensor().slice(0, 0, 1)}, calibration);
    const auto int8 = convert(plan);
    std::map<std::string, int> count;
    for (const auto* node : all_nodes(*int8.graph())) ++count[node->kind().toQualString()];
    EXPECT_EQ(count["quantized::conv2d_relu"], 10);  // the stem and the first of nine blocks' two
    EXPECT_EQ(count["quantized::conv2d"], 11);       // the second of each block, and two shortcuts
    EXPECT_EQ(count["quantized::add_relu"], 9);
    EXPECT_EQ(count["aten::quantize_per_tensor"], 1);
    EXPECT_EQ(count["aten::dequantize"], 1);
    EXPECT_EQ(count["aten::batch_norm"] + count["prim::If"] + count["aten::slice"] + count["aten::pad"], 0);

    const auto [images, labels] = cifar("test.bin", 300);
    const auto checked = testing::check_every_layer(int8, {images.slice(0, 0, 4)});
    EXPECT_EQ(checked["quantized::conv2d"] + checked["quantized::conv2d_relu"], 21);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;

    const auto exact = model.forward({images}).toTensor().argmax(1);
    const auto rounded = int8.forward({images}).toTensor().argmax(1);
    const auto simulated = fake_quantized(plan, {images}).toTensor().argmax(1);
    EXPECT_GE(rounded.eq(simulated).sum().item<int64_t>(), 297);  // measured 99.9 % of 1,000
    EXPECT_GE(rounded.eq(exact).sum().item<int64_t>(), 291);      // measured 99.5 % of 1,000
    EXPECT_GE(rounded.eq(labels).sum().item<int64_t>(), exact.eq(labels).sum().item<int64_t>() - 5);  // of 300
}

TEST(RealModels, SmoothingMiniLMsPostNormsLeavesItsFunction) {
    SKIP_WITHOUT_DATA("stsb/minilm_l6.pt");
    torch::NoGradGuard no_grad;
    at::set_num_threads(kThreads);
    const auto model = Model::load(data_path("stsb/minilm_l6.pt"));
    const auto ids = at::arange(4 * 12).reshape({4, 12}).remainder(90) + 5;
    const Inputs inputs{ids, at::ones_like(ids)};
    auto smoothed = model.clone();
    std::vector<LayerChange> changes;
    // Of 13 norms all but the last, which no linear layer reads; a residual sum reads each of them.
    EXPECT_EQ(smooth(smoothed, inputs, std::vector<Inputs>{inputs}, SmoothOptions{}, &changes), 12);
    ASSERT_EQ(changes.size(), 13u);
    for (const auto& change : changes)
        EXPECT_THAT(change.reason,
                    ::testing::HasSubstr(change.action == "kept" ? "no linear layer" : "multiplied back"));
    const auto exact = first_tensor(model.forward(inputs));  // unit vectors
    EXPECT_LE(max_difference(first_tensor(smoothed.forward(inputs)), exact), 1e-5);
    EXPECT_GT(max_difference(get_attribute(smoothed, "norm.weight").toTensor(),
                             get_attribute(model, "norm.weight").toTensor()),
              0.01);
}

TEST(RealModels, EveryOneIsQuantizedAsFarAsItGoesAndStillRuns) {
    at::set_num_threads(kThreads);
    const auto ids = at::arange(2 * 12).reshape({2, 12}).remainder(90) + 5;
    struct Case {
        const char* file;
        Inputs inputs;
        int64_t least_int8_layers;
        const char* stays_float;  ///< an operator that is listed with its reason; empty: none
    };
    const std::vector<Case> cases = {
        {"fashion/cnn.pt", {at::rand({2, 1, 28, 28})}, 4, ""},
        {"fashion/mlp.pt", {at::rand({2, 1, 28, 28})}, 3, ""},
        {"digits/mlp.pt", {at::rand({2, 64}) * 16}, 3, ""},
        {"fsdd/cnn_gru.pt", {at::rand({2, 1, 8000}) - 0.5}, 5, "aten::gru"},
        {"stsb/minilm_l6.pt", {ids, at::ones_like(ids)}, 36, "aten::scaled_dot_product_attention"},
        {"etth1/light_ts.pt", {at::randn({2, 96, 7})}, 10, ""},
        {"cora/gcn.pt",
         {at::randint(0, 2, {30, 1433}), at::stack({at::arange(30), at::arange(30)}), at::ones({30})},
         2,
         "aten::index_add"},
    };
    for (const auto& item : cases) {
        if (!std::filesystem::exists(data_path(item.file))) GTEST_SKIP() << "needs the development data: " << item.file;
        SCOPED_TRACE(item.file);
        torch::NoGradGuard no_grad;
        const auto model = Model::load(data_path(item.file));
        StaticPlan plan;
        try {
            plan = plan_static(model, item.inputs, {item.inputs});
        } catch (const std::exception& error) {
            ADD_FAILURE() << error.what();
            continue;
        }
        int64_t int8_layers = 0;
        bool listed = *item.stays_float == '\0';
        for (const auto& layer : plan.layers()) {
            int8_layers += layer.int8 && layer.parameters > 0;
            EXPECT_TRUE(layer.int8 || !layer.reason.empty()) << layer.layer;
            listed |= layer.op == item.stays_float && !layer.int8;
        }
        EXPECT_GE(int8_layers, item.least_int8_layers);
        EXPECT_TRUE(listed) << item.stays_float;
        const auto int8 = convert(plan);
        const auto exact = first_tensor(model.forward(item.inputs)), rounded = first_tensor(int8.forward(item.inputs));
        const double noise = (exact - rounded).pow(2).sum().item<double>(), signal = exact.pow(2).sum().item<double>();
        EXPECT_LT(noise, 0.02 * signal);  // 17 dB, on inputs that only look like the real ones
        const auto checked = testing::check_every_layer(int8, item.inputs);
        EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
        TemporaryFolder folder;
        int8.save(folder / "int8.pt");
        auto stock = torch::jit::load((folder / "int8.pt").string());
        EXPECT_TRUE(at::equal(first_tensor(stock.forward(item.inputs)), rounded));
    }
}

}  // namespace
}  // namespace coppice::quantize
