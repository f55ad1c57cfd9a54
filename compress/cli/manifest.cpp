// What a run directory says about the run as a whole: manifest.json of `coppice compress` and `coppice eval`.
#include <torch/version.h>

#include <coppice/data.h>
#include <coppice/eval.h>

#include <ctime>

#include "commands.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

std::string iso_time() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    ::gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

}  // namespace

Json data_manifest(const DataSplits& data) {
    Json splits = Json::object();
    const std::vector<std::pair<std::string, std::shared_ptr<const Dataset>>> all = {
        {"train", data.train}, {"validation", data.validation}, {"test", data.test}, {"calibration", data.calibration}};
    for (const auto& [name, dataset] : all)
        if (dataset)
            splits[name] = {{"description", dataset->description()},
                            {"examples", dataset->size()},
                            {"sha256", dataset->fingerprint()}};
    return splits;
}

Json run_manifest(const Recipe& recipe, const DataSplits& data, const std::filesystem::path& model) {
    return {{"format", "coppice-run"},
            {"version", 1},
            {"coppice", version()},
            {"libtorch", TORCH_VERSION},
            {"recipe_sha256", sha256_of(to_yaml(recipe.resolved))},
            {"model", {{"path", model.string()}, {"sha256", sha256_of_file(model.string())}}},
            {"data", data_manifest(data)},
            {"seed", recipe.seed},
            {"environment", eval::environment().to_json()},
            {"task", recipe.resolved["task"]["type"]},
            {"metric", recipe.metric},
            {"created", iso_time()},
            {"recipe", recipe.resolved}};
}

}  // namespace coppice::cli
