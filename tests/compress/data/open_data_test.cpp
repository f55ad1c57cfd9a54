#include "files.h"

namespace coppice::testing {
namespace {

class OpenData : public ::testing::Test {
protected:
    OpenData() {
        write_file(folder_ / "train.bin", cifar_records(40));
        write_file(folder_ / "test.bin", cifar_records(10));
    }
    DataSplits open(std::vector<std::pair<std::string, Setting>> members, Json* resolved = nullptr) {
        return open_data(Setting::map(std::move(members), "recipe.yaml line 2, column 3"), folder_.path().string(),
                         resolved);
    }
    static std::pair<std::string, Setting> scalar(const char* name, const std::string& value) {
        return {name, Setting::scalar(value)};
    }
    TemporaryFolder folder_;
};

}  // namespace

TEST_F(OpenData, TakesPathsRelativeToTheRecipeAndSharesOptions) {
    Json resolved;
    const auto splits = open({scalar("format", "cifar10"),
                              scalar("train", "train.bin"),
                              scalar("test", "test.bin"),
                              scalar("calibration", "8"),
                              {"mean", list({"0"})},
                              {"std", list({"1"})}},
                             &resolved);
    EXPECT_EQ(splits.train->size(), 40);
    EXPECT_EQ(splits.test->size(), 10);
    EXPECT_EQ(splits.calibration->size(), 8);
    EXPECT_EQ(splits.validation, nullptr);
    EXPECT_EQ(splits.test->batch({1}).inputs[0].toTensor()[0][0][0][0].item<float>(), 7.0f / 255.0f);
    EXPECT_EQ(resolved["train"]["path"], (folder_ / "train.bin").string());
    EXPECT_EQ(resolved["test"]["mean"], Json::array({0.0}));
    EXPECT_EQ(resolved["calibration"], 8);
}

TEST_F(OpenData, AFolderAloneGivesTrainAndTest) {
    const auto splits = open({scalar("format", "cifar10"), scalar("path", ".")});
    EXPECT_EQ(splits.train->size(), 40);
    EXPECT_EQ(splits.test->size(), 10);
    EXPECT_EQ(splits.calibration->size(), 40);  // 512 by default, or all
}

TEST_F(OpenData, ASplitOverridesTheSharedOptions) {
    const auto splits = open({scalar("format", "cifar10"),
                              scalar("path", "train.bin"),
                              {"train", Setting::map({{"rows", list({"0", "30"})}})},
                              {"validation", Setting::map({{"rows", list({"30", "40"})}})},
                              {"test", Setting::map({scalar("path", "test.bin")})},
                              {"calibration", Setting::map({{"rows", list({"0", "5"})}})}});
    EXPECT_EQ(splits.train->size(), 30);
    EXPECT_EQ(splits.validation->batch({0}).target.item<int64_t>(), 0);
    EXPECT_EQ(splits.calibration->size(), 5);
    EXPECT_EQ(splits.test->size(), 10);
}

TEST_F(OpenData, ACountOfValidationIsHeldOutOfTrain) {
    const auto splits =
        open({scalar("format", "cifar10"), scalar("path", "."), scalar("validation", "10"), scalar("seed", "3")});
    ASSERT_EQ(splits.train->size(), 30);
    ASSERT_EQ(splits.validation->size(), 10);
    std::vector<float> first;  // the first red pixel tells the images of 40 apart: 7 i mod 256
    for (int64_t i = 0; i < 30; ++i)
        first.push_back(splits.train->batch({i}).inputs[0].toTensor()[0][0][0][0].item<float>());
    for (int64_t i = 0; i < 10; ++i)
        first.push_back(splits.validation->batch({i}).inputs[0].toTensor()[0][0][0][0].item<float>());
    std::sort(first.begin(), first.end());
    EXPECT_EQ(std::unique(first.begin(), first.end()) - first.begin(), 40);
}

TEST_F(OpenData, WhatItResolvedOpensTheSameData) {
    Json resolved;
    const auto before = open({scalar("format", "cifar10"), scalar("path", "."), scalar("validation", "10")}, &resolved);
    EXPECT_FALSE(resolved["train"].contains("base"));
    const std::function<Setting(const Json&)> setting = [&](const Json& json) -> Setting {
        if (json.is_object()) {
            std::vector<std::pair<std::string, Setting>> members;
            for (const auto& [key, value] : json.items()) members.emplace_back(key, setting(value));
            return Setting::map(members);
        }
        if (json.is_array()) {
            Setting items = list({});
            for (const auto& value : json) items.items.push_back(setting(value));
            return items;
        }
        return Setting::scalar(json.is_string() ? json.get<std::string>() : json.dump());
    };
    const auto after = open_data(setting(resolved), "/elsewhere");
    EXPECT_EQ(after.train->fingerprint(), before.train->fingerprint());
    EXPECT_EQ(after.validation->fingerprint(), before.validation->fingerprint());
    EXPECT_EQ(after.test->fingerprint(), before.test->fingerprint());
    EXPECT_EQ(after.calibration->fingerprint(), before.calibration->fingerprint());
}

TEST_F(OpenData, NamesThePlaceOfAMistake) {
    EXPECT_ERROR(open({scalar("path", ".")}), InvalidArgument, "recipe.yaml line 2, column 3, data: names no format");
    EXPECT_ERROR(open({scalar("format", "cifar")}), InvalidArgument, "names no split");
    EXPECT_ERROR(open({scalar("format", "cifar"), scalar("test", "test.bin")}), InvalidArgument,
                 "Did you mean \"cifar10\"?");
    EXPECT_ERROR(open({scalar("format", "cifar10"), scalar("test", "test.bin"), scalar("trian", "train.bin")}),
                 InvalidArgument, "Did you mean \"train\"?");
    EXPECT_ERROR(open({scalar("format", "cifar10"), scalar("path", "test.bin")}), InvalidArgument, "names no split");
    EXPECT_ERROR(open({scalar("format", "cifar10"), scalar("test", "absent.bin")}), IoError, "absent.bin");
    EXPECT_ERROR(open({scalar("format", "cifar10"), scalar("test", "test.bin"), scalar("calibration", "5")}),
                 InvalidArgument, "there is no train split");
    EXPECT_ERROR(open({scalar("format", "cifar10"), scalar("path", "."), scalar("validation", "40")}), InvalidArgument,
                 "holds out 40 examples of 40");
    EXPECT_ERROR(open_data(list({"a"}), "."), InvalidArgument, "must be a map");
}

}  // namespace coppice::testing
