// The real models reach the quality that their description states. A program of its own: it takes about a minute of
// CPU.
#include <ATen/Parallel.h>
#include <coppice/eval.h>

#include <fstream>
#include <sstream>

#include "support/support.h"

namespace coppice::eval {
namespace {

using testing::data_path;

// Data are read here by the shortest road and not by the formats of compress/data.

c10::Dict<c10::IValue, c10::IValue> pickled(const std::string& name) {
    std::ifstream file(data_path(name), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    return torch::pickle_load(bytes).toGenericDict();
}

torch::jit::Module model(const std::string& name) {
    return torch::jit::load(data_path(name).string());
}

std::vector<uint8_t> bytes_of(const std::string& name) {
    std::ifstream file(data_path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

at::Tensor idx(const std::string& name, size_t header, at::IntArrayRef shape) {
    auto bytes = bytes_of(name);
    return at::from_blob(bytes.data() + header, shape, at::kByte).clone();
}

double value_of(const torch::jit::Module& module, const Dataset& data, const std::string& name, Task task,
                int64_t batch = 256) {
    at::set_num_threads(1);  // on a busy machine two threads wait for each other at every operator
    const auto result = evaluate(module, data, {name}, task, batch);
    EXPECT_TRUE(result.metrics[0].figure.interval);
    EXPECT_LT(result.metrics[0].figure.interval->low, *result.metrics[0].figure.value);
    EXPECT_GT(result.metrics[0].figure.interval->high, *result.metrics[0].figure.value);
    return *result.metrics[0].figure.value;
}

TEST(KnownQuality, DigitsMlp) {
    SKIP_WITHOUT_DATA("digits/mlp.pt");
    const auto dict = pickled("digits/digits.pt");
    const auto data = tensor_dataset({dict.at("image").toTensor().slice(0, 1297).to(at::kFloat)},
                                     dict.at("label").toTensor().slice(0, 1297), "digits");
    EXPECT_NEAR(value_of(model("digits/mlp.pt"), *data, "top1", Task::kClassification), 0.9320, 1e-9);
}

TEST(KnownQuality, FashionMlpAndCnn) {
    SKIP_WITHOUT_DATA("fashion/mlp.pt");
    const auto images = idx("fashion/t10k-images-idx3-ubyte", 16, {10000, 1, 28, 28}).to(at::kFloat).div(255);
    const auto labels = idx("fashion/t10k-labels-idx1-ubyte", 8, {10000}).to(at::kLong);
    const auto data = tensor_dataset({images}, labels, "Fashion-MNIST");
    EXPECT_NEAR(value_of(model("fashion/mlp.pt"), *data, "top1", Task::kClassification), 0.8872, 1e-9);
    EXPECT_NEAR(value_of(model("fashion/cnn.pt"), *data, "top1", Task::kClassification), 0.9197, 1e-9);
}

TEST(KnownQuality, ResNet20) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    auto bytes = bytes_of("cifar10/test.bin");
    const auto records = at::from_blob(bytes.data(), {10000, 3073}, at::kByte).clone();
    const auto mean = at::tensor({0.485F, 0.456F, 0.406F}).reshape({1, 3, 1, 1});
    const auto deviation = at::tensor({0.229F, 0.224F, 0.225F}).reshape({1, 3, 1, 1});
    const auto images = (records.slice(1, 1).reshape({-1, 3, 32, 32}).to(at::kFloat) / 255 - mean) / deviation;
    const auto data = tensor_dataset({images}, records.select(1, 0).to(at::kLong), "CIFAR-10 (JPEG copy)");
    EXPECT_NEAR(value_of(model("cifar10/resnet20.pt"), *data, "top1", Task::kClassification), 0.8870, 1e-9);
}

TEST(KnownQuality, SpokenDigits) {
    SKIP_WITHOUT_DATA("fsdd/cnn_gru.pt");
    const auto dict = pickled("fsdd/test.pt");
    const auto waves = dict.at("waveform").toTensor().to(at::kFloat).div(32768).unsqueeze(1);
    const auto data = tensor_dataset({waves}, dict.at("label").toTensor(), "FSDD");
    EXPECT_NEAR(value_of(model("fsdd/cnn_gru.pt"), *data, "top1", Task::kClassification, 100), 0.96, 1e-9);
}

// A dataset whose batches a function makes.
class Made final : public Dataset {
public:
    Made(int64_t size, std::function<Batch(const std::vector<int64_t>&)> make) : size_(size), make_(std::move(make)) {}
    int64_t size() const override { return size_; }
    Batch batch(const std::vector<int64_t>& indices) const override { return make_(indices); }
    std::string description() const override { return "made"; }
    std::string fingerprint() const override { return "made"; }

private:
    int64_t size_;
    std::function<Batch(const std::vector<int64_t>&)> make_;
};

TEST(KnownQuality, MiniLm) {
    SKIP_WITHOUT_DATA("stsb/minilm_l6.pt");
    const auto dict = pickled("stsb/test.pt");
    const auto ids = dict.at("ids").toTensor().to(at::kLong);  // [750, 2, 33]
    const auto scores = dict.at("score").toTensor();
    const Made data(750, [&](const std::vector<int64_t>& indices) {
        const auto chosen = at::tensor(indices, at::kLong);
        const auto rows = ids.index_select(0, chosen).reshape({-1, ids.size(2)});
        Batch batch;
        batch.inputs = {rows, (rows > 0).to(at::kLong)};
        batch.target = scores.index_select(0, chosen);
        batch.pairs = true;
        return batch;
    });
    EXPECT_NEAR(value_of(model("stsb/minilm_l6.pt"), data, "spearman", Task::kSimilarity, 125), 0.9103, 5e-5);
}

TEST(KnownQuality, LightTs) {
    SKIP_WITHOUT_DATA("etth1/light_ts.pt");
    std::ifstream file(data_path("etth1/ETTh1.csv"));
    std::string line;
    std::getline(file, line);
    std::vector<float> values;
    while (std::getline(file, line)) {
        std::istringstream fields(line.substr(line.find(',') + 1));
        for (std::string field; std::getline(fields, field, ',');) values.push_back(std::stof(field));
    }
    auto series = at::tensor(values).reshape({-1, 7});
    const auto train = series.slice(0, 0, 8640).to(at::kDouble);
    series = ((series - train.mean(0)) / train.std(0, /*unbiased=*/false)).to(at::kFloat);
    const Made data(2785, [&](const std::vector<int64_t>& indices) {
        std::vector<at::Tensor> past, future;
        for (const auto index : indices) {
            past.push_back(series.slice(0, 11520 - 96 + index, 11520 + index));
            future.push_back(series.slice(0, 11520 + index, 11520 + index + 96));
        }
        Batch batch;
        batch.inputs = {at::stack(past)};
        batch.target = at::stack(future);
        return batch;
    });
    EXPECT_NEAR(value_of(model("etth1/light_ts.pt"), data, "mse", Task::kRegression), 0.3959, 5e-5);
}

TEST(KnownQuality, GraphConvolution) {
    SKIP_WITHOUT_DATA("cora/gcn.pt");
    const auto dict = pickled("cora/graph.pt");
    const Made data(1, [&](const std::vector<int64_t>&) {
        Batch batch;
        batch.inputs = {dict.at("x").toTensor().to(at::kFloat), dict.at("edges").toTensor(),
                        dict.at("weight").toTensor()};
        batch.rows = dict.at("test").toTensor().to(at::kLong);
        batch.target = dict.at("y").toTensor().index_select(0, batch.rows);
        return batch;
    });
    const auto result = evaluate(model("cora/gcn.pt"), data, {"top1"}, Task::kClassification);
    EXPECT_EQ(result.examples, 1000);
    EXPECT_NEAR(*result.metrics[0].figure.value, 0.8210, 1e-9);
}

}  // namespace
}  // namespace coppice::eval
