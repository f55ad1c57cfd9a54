#include "files.h"

namespace coppice::testing {
namespace {

class Tensors : public ::testing::Test {
protected:
    std::unique_ptr<Dataset> open(std::vector<std::pair<std::string, Setting>> members) {
        members.emplace_back("path", Setting::scalar((folder_ / "t.pt").string()));
        return open_format("tensors", std::move(members));
    }
    void write(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
        write_tensors(folder_ / "t.pt", tensors);
    }
    static Setting input(const std::string& key, std::vector<std::pair<std::string, Setting>> options) {
        return Setting::map({{key, Setting::map(std::move(options))}});
    }
    TemporaryFolder folder_;
};

}  // namespace

TEST_F(Tensors, BecomeWhatModelsTakeAndIndicesStayIndices) {
    write({{"a", at::arange(6, at::kByte).reshape({3, 2})},
           {"b", at::arange(3, at::kInt)},
           {"label", at::arange(3, at::kByte)}});
    const auto data = open({{"inputs", list({"a", "b"})}});
    ASSERT_EQ(data->size(), 3);
    const auto batch = data->batch({2, 0});
    ASSERT_EQ(batch.inputs.size(), 2u);
    EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(), at::tensor({4., 5., 0., 1.}).to(at::kFloat).reshape({2, 2})));
    EXPECT_TRUE(at::equal(batch.inputs[1].toTensor(), at::tensor({2, 0}, at::kLong)));
    EXPECT_EQ(batch.inputs[0].toTensor().scalar_type(), at::kFloat);
    EXPECT_EQ(batch.inputs[1].toTensor().scalar_type(), at::kLong);
    EXPECT_TRUE(at::equal(batch.target, at::tensor({2, 0}, at::kLong)));
    EXPECT_FALSE(batch.pairs);
}

TEST_F(Tensors, AreScaledNormalisedAndGivenADimension) {
    write({{"w", at::tensor({0, 8, -8, 16}, at::kShort).reshape({2, 2})}, {"y", at::tensor({0.5, 1.5})}});
    auto inputs = list({});
    inputs.items.push_back(input("w", {{"divide", Setting::scalar("8")}, {"unsqueeze", Setting::scalar("1")}}));
    inputs.items.push_back(
        input("w", {{"scale", Setting::scalar("0.5")}, {"mean", list({"1", "2"})}, {"std", list({"1", "4"})}}));
    const auto data = open({{"inputs", inputs}, {"target", Setting::scalar("y")}, {"rows", list({"1", "2"})}});
    ASSERT_EQ(data->size(), 1);
    const auto batch = data->batch({0});
    EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(), at::tensor({-1., 2.}).to(at::kFloat).reshape({1, 1, 2})));
    EXPECT_TRUE(at::equal(batch.inputs[1].toTensor(), at::tensor({-5., 1.5}).to(at::kFloat).reshape({1, 2})));
    EXPECT_EQ(batch.target.scalar_type(), at::kFloat);
    EXPECT_EQ(batch.target.item<float>(), 1.5f);
}

TEST_F(Tensors, PairsAreFlattenedAndMasked) {
    write(
        {{"ids", at::tensor({1, 0, 2, 3, 4, 0, 5, 6}, at::kInt).reshape({2, 2, 2})}, {"score", at::tensor({1., 5.})}});
    const auto data = open({{"inputs", Setting::scalar("ids")},
                            {"mask", Setting::scalar("ids")},
                            {"pairs", Setting::scalar("true")},
                            {"target", Setting::scalar("score")}});
    ASSERT_EQ(data->size(), 2);
    const auto batch = data->batch({1, 0});
    EXPECT_TRUE(batch.pairs);
    EXPECT_EQ(batch.examples(), 2);
    EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(), at::tensor({4, 0, 5, 6, 1, 0, 2, 3}, at::kLong).reshape({4, 2})));
    EXPECT_TRUE(at::equal(batch.inputs[1].toTensor(), at::tensor({1, 0, 1, 1, 1, 0, 1, 1}, at::kLong).reshape({4, 2})));
}

TEST_F(Tensors, OfAGraphAreOneExampleWithChosenRows) {
    write({{"x", at::ones({4, 3}, at::kByte)},
           {"edges", at::zeros({2, 7}, at::kLong)},
           {"y", at::tensor({5, 6, 7, 8}, at::kLong)},
           {"test", at::tensor({3, 1}, at::kLong)}});
    const auto data = open(
        {{"inputs", list({"x", "edges"})}, {"target", Setting::scalar("y")}, {"output_rows", Setting::scalar("test")}});
    ASSERT_EQ(data->size(), 1);
    const auto batch = data->batch({0});
    EXPECT_EQ(batch.inputs[0].toTensor().sizes(), (std::vector<int64_t>{4, 3}));
    EXPECT_EQ(batch.inputs[1].toTensor().sizes(), (std::vector<int64_t>{2, 7}));
    EXPECT_TRUE(at::equal(batch.rows, at::tensor({3, 1}, at::kLong)));
    EXPECT_TRUE(at::equal(batch.target, at::tensor({8, 6}, at::kLong)));
    EXPECT_TRUE(at::equal(selected(at::arange(4), batch), at::tensor({3, 1}, at::kLong)));
    EXPECT_ERROR(data->batch({1}), InvalidArgument, "Examples are 0 to 0");
}

TEST_F(Tensors, SayWhatIsWrong) {
    EXPECT_ERROR(open({{"inputs", list({"x"})}}), IoError, "there is no such file");
    write_file(folder_ / "t.pt", "no pickle");
    EXPECT_ERROR(open({{"inputs", list({"x"})}}), IoError, "is no pickled dict of tensors");
    const auto bytes = torch::pickle_save(c10::IValue(at::ones({2})));
    write_file(folder_ / "t.pt", {bytes.begin(), bytes.end()});
    EXPECT_ERROR(open({{"inputs", list({"x"})}}), IoError, "holds a Tensor, not a dict of tensors");
    write({{"image", at::ones({4, 2})}, {"label", at::tensor({0, 1, 2}, at::kLong)}});
    EXPECT_ERROR(open({}), InvalidArgument, "inputs is missing");
    EXPECT_ERROR(open({{"inputs", list({"images"})}}), InvalidArgument, "Keys present: ");
    EXPECT_ERROR(open({{"inputs", list({"images"})}}), InvalidArgument, "label [3]");
    EXPECT_ERROR(open({{"inputs", list({"image"})}, {"target", Setting::scalar("y")}}), InvalidArgument,
                 "target is \"y\", no key");
    EXPECT_ERROR(open({{"inputs", list({"image"})}}), IoError, "numbers of examples differ");
    write({{"image", at::ones({3, 2})}, {"label", at::tensor({0, 1, 2}, at::kLong)}});
    EXPECT_ERROR(open({{"inputs", list({"image"})}, {"classes", Setting::scalar("2")}}), IoError,
                 "label 2 of example 2 is out of the range 0 to 1");
    EXPECT_ERROR(open({{"inputs", list({"image"})}, {"rows", list({"2", "4"})}}), InvalidArgument, "rows is [2, 4]");
    EXPECT_ERROR(open({{"inputs", list({"label"})}, {"divide", Setting::scalar("2")}}), InvalidArgument,
                 "cannot be scaled");
    auto inputs = list({});
    inputs.items.push_back(input("image", {{"divde", Setting::scalar("2")}}));
    EXPECT_ERROR(open({{"inputs", inputs}}), InvalidArgument, "Did you mean \"divide\"?");
}

TEST(RealTensors, AreReadAsTheirReadmeSays) {
    SKIP_WITHOUT_DATA("digits/digits.pt");
    const auto path = [](const char* name) {
        return std::pair<std::string, Setting>("path", Setting::scalar(data_path(name).string()));
    };
    const auto scalar = [](const char* key, const char* value) {
        return std::pair<std::string, Setting>(key, Setting::scalar(value));
    };
    const auto digits =
        open_format("tensors", {path("digits/digits.pt"), scalar("inputs", "image"), {"rows", list({"1297", "1797"})}});
    EXPECT_EQ(digits->size(), 500);
    EXPECT_LE(digits->batch({0, 499}).inputs[0].toTensor().max().item<float>(), 16);

    const auto speech = open_format("tensors", {path("fsdd/test.pt"), scalar("inputs", "waveform"),
                                                scalar("divide", "32768"), scalar("unsqueeze", "1")});
    const auto wave = speech->batch({5}).inputs[0].toTensor();
    EXPECT_EQ(wave.sizes(), (std::vector<int64_t>{1, 1, 8000}));
    EXPECT_LE(wave.abs().max().item<float>(), 1);
    EXPECT_GT(wave.abs().max().item<float>(), 0.01);

    const auto pairs = open_format("tensors", {path("stsb/test.pt"), scalar("inputs", "ids"), scalar("mask", "ids"),
                                               scalar("pairs", "true"), scalar("target", "score")});
    EXPECT_EQ(pairs->size(), 750);
    const auto batch = pairs->batch({0, 1, 2});
    EXPECT_EQ(batch.inputs[0].toTensor().sizes(), (std::vector<int64_t>{6, 33}));
    EXPECT_TRUE(at::equal(batch.inputs[1].toTensor(), (batch.inputs[0].toTensor() > 0).to(at::kLong)));
    EXPECT_EQ(batch.target.sizes(), (std::vector<int64_t>{3}));

    const auto graph = open_format("tensors", {path("cora/graph.pt"),
                                               {"inputs", list({"x", "edges", "weight"})},
                                               scalar("target", "y"),
                                               scalar("output_rows", "test")});
    const auto whole = graph->batch({0});
    EXPECT_EQ(whole.inputs[0].toTensor().sizes(), (std::vector<int64_t>{2708, 1433}));
    EXPECT_EQ(whole.inputs[1].toTensor().sizes(), (std::vector<int64_t>{2, 13264}));
    EXPECT_EQ(whole.target.sizes(), (std::vector<int64_t>{1000}));
}

}  // namespace coppice::testing
