// The model card: its front matter is read by a YAML library, its numbers are computed again here.
#include <yaml-cpp/yaml.h>

#include <coppice/report.h>

#include "eval/report/sample.h"
#include "support/support.h"

namespace coppice::eval {
namespace {

using coppice::testing::TemporaryFolder;
using coppice::testing::write_sample_run;
using ::testing::HasSubstr;
using ::testing::Not;

Json sample(size_t runs = 1) {
    TemporaryFolder folder;
    std::vector<std::filesystem::path> folders;
    for (size_t i = 0; i < runs; ++i) {
        folders.push_back(folder / ("run-" + std::to_string(i)));
        write_sample_run(folders.back());
    }
    return collect_report(folders);
}

YAML::Node front_matter(const std::string& card) {
    EXPECT_EQ(card.rfind("---\n", 0), 0u);
    const size_t end = card.find("\n---\n", 4);
    return YAML::Load(card.substr(4, end - 3));
}

TEST(ModelCard, ItsFrontMatterHoldsWhatAHubReads) {
    const auto yaml = front_matter(model_card(sample()));
    EXPECT_EQ(yaml["library_name"].as<std::string>(), "pytorch");
    const auto entry = yaml["model-index"][0];
    EXPECT_EQ(entry["name"].as<std::string>(), "resnet20");
    const auto result = entry["results"][0];
    EXPECT_EQ(result["task"]["type"].as<std::string>(), "other");  // the manifest says nothing of images
    EXPECT_EQ(result["dataset"]["name"].as<std::string>(), "CIFAR-10, 10,000 test images");
    EXPECT_EQ(result["dataset"]["type"].as<std::string>(), "cifar-10-10-000-test-images");
    EXPECT_EQ(result["metrics"][0]["type"].as<std::string>(), "accuracy");
    EXPECT_EQ(result["metrics"][0]["value"].as<double>(), 0.8739);
    // 11 W over the seconds of all stages of sample.cpp, at 473 g/kWh.
    const double seconds = 9.4 + 512 + 3.1 + 2.2 + 0.8 + 7.7 + 408 + 14.2 + 4.6;
    const auto emissions = yaml["co2_eq_emissions"];
    EXPECT_NEAR(emissions["emissions"].as<double>(), 11 * seconds / 3.6e6 * 473, 1e-9);  // grams
    EXPECT_THAT(emissions["source"].as<std::string>(), HasSubstr("energy modelled"));
    EXPECT_EQ(emissions["training_type"].as<std::string>(), "fine-tuning");
    std::vector<std::string> tags;
    for (const auto& tag : yaml["tags"]) tags.push_back(tag.as<std::string>());
    // lowrank.svd was undone: the model is not factorised.
    EXPECT_THAT(tags, ::testing::ElementsAre("torchscript", "coppice", "model-compression", "pruning", "quantization"));
}

TEST(ModelCard, NamesTheTaskOfImages) {
    Json report = sample();
    report["runs"][0]["manifest"]["recipe"] = {{"data", {{"format", "cifar10"}}}};
    EXPECT_EQ(front_matter(model_card(report))["pipeline_tag"].as<std::string>(), "image-classification");
}

TEST(ModelCard, WithoutCarbonItSaysSoAndInventsNothing) {
    Json report = sample();
    for (auto& stage : report["runs"][0]["stages"])
        if (stage["measurement"].contains("compression")) stage["measurement"]["compression"].erase("carbon_g");
    const std::string card = model_card(report);
    EXPECT_FALSE(front_matter(card)["co2_eq_emissions"]);
    EXPECT_THAT(card, HasSubstr("# co2_eq_emissions is not known: not recorded for 1 prune.channel"));
}

TEST(ModelCard, TextFromFilesCannotBreakTheFrontMatter) {
    Json report = sample();
    const std::string attack = "x\": {[\n---\n# ' \\ é";
    for (auto& stage : report["runs"][0]["stages"]) stage["measurement"]["quality"]["data"] = attack;
    report["runs"][0]["manifest"]["model"]["path"] = attack;
    const auto yaml = front_matter(model_card(report));
    EXPECT_EQ(yaml["model-index"][0]["results"][0]["dataset"]["name"].as<std::string>(), "x\": {[?---?# ' \\ é");
}

TEST(ModelCard, SaysWhatWasNotMeasured) {
    const std::string card = model_card(sample());
    EXPECT_THAT(card, HasSubstr("Energy was not measured but modelled"));
    EXPECT_THAT(card, HasSubstr("0.50 and 3.0 times the figures"));
    EXPECT_THAT(card, HasSubstr("another answer than the original on 7.91 % of the examples"));
    EXPECT_THAT(card, HasSubstr("int8 kernels of the x86 engine"));
    EXPECT_THAT(card, HasSubstr("| lowrank.svd |"));
    EXPECT_THAT(card, Not(HasSubstr("<script>")));
}

TEST(ModelCard, IsAboutOneModel) {
    EXPECT_ERROR(model_card(sample(2)), InvalidArgument, "about one model, and there are 2 runs");
    Json report = sample();
    report["runs"][0]["manifest"]["kind"] = "eval";
    EXPECT_ERROR(model_card(report), InvalidArgument, "several models");
}

TEST(ModelCard, IsWrittenOnlyWhenAskedFor) {
    TemporaryFolder folder;
    write_report(sample(), folder.path());
    EXPECT_FALSE(std::filesystem::exists(folder / "model-card.md"));
    EXPECT_EQ(write_report(sample(), folder.path(), {"card"})[0], folder / "model-card.md");
}

}  // namespace
}  // namespace coppice::eval
