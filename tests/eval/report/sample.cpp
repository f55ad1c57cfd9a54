#include "eval/report/sample.h"

#include <cmath>
#include <fstream>

namespace coppice::testing {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
}

struct Row {
    const char* name;
    bool kept;
    double top1, top5, loss, agreement;
    double file_bytes, parameters, nonzero, macs, peak;
    double seconds_b1, seconds_b128;
    double made_in;  // seconds
    const char* verdict;
};

// Accuracies and times have the shape of real runs on CIFAR-10; the rest follows from them.
const Row kRows[] = {
    {"baseline", true, 0.8870, 0.9952, 0.3912, 1, 1106344, 272474, 272474, 40.81e6, 312e6, 3.62e-3, 0.2214, 0, ""},
    {"prune.channel", true, 0.6931, 0.9611, 1.0241, 0.7214, 611204, 149806, 149806, 20.33e6, 268e6, 2.81e-3, 0.1306,
     9.4, "Removed 228 of 688 channels: 20.3 M of 40.8 M MACs remain."},
    {"train.finetune", true, 0.8782, 0.9941, 0.4182, 0.9264, 611240, 149806, 149806, 20.33e6, 268e6, 2.80e-3, 0.1304,
     512, "8 epochs with distillation brought 18.5 points back."},
    {"lowrank.svd", false, 0.8437, 0.9902, 0.5210, 0.8809, 583112, 142610, 142610, 19.02e6, 271e6, 3.44e-3, 0.1419, 3.1,
     "Undone: slower at batch 1 than before and 4.3 points below the baseline; the gate allows 1.5."},
    {"prune.weight", false, 0.8705, 0.9936, 0.4431, 0.9170, 388102, 149806, 75210, 20.33e6, 268e6, 2.80e-3, 0.1303, 2.2,
     "Undone: half of the weights are zero, the file is smaller, and nothing runs faster."},
    {"quantize.dynamic", false, 0.8780, 0.9941, 0.4184, 0.9262, 609412, 149806, 149806, 20.33e6, 268e6, 2.83e-3, 0.1309,
     0.8, "Undone: one linear layer of 640 weights was converted; no gain."},
    {"prune.channel", true, 0.8304, 0.9897, 0.5533, 0.8692, 502118, 122344, 122344, 15.61e6, 255e6, 2.53e-3, 0.1068,
     7.7, "Removed 81 of 460 channels: 15.6 M of 20.3 M MACs remain."},
    {"train.finetune", true, 0.8744, 0.9938, 0.4270, 0.9218, 502160, 122344, 122344, 15.61e6, 255e6, 2.54e-3, 0.1066,
     408, "6 epochs with distillation brought 4.4 points back."},
    {"quantize.static", true, 0.8739, 0.9937, 0.4288, 0.9209, 172480, 122344, 122344, 15.61e6, 233e6, 1.66e-3, 0.0597,
     14.2, "int8 in 21 of 21 layers; the file is a third."},
    {"deploy", true, 0.8739, 0.9937, 0.4288, 0.9209, 168912, 122344, 122344, 15.61e6, 231e6, 1.21e-3, 0.0521, 4.6,
     "Channels-last and fused: 1.4 times as fast at batch 1."},
};

Json figure_of_share(double share, double examples) {
    Json figure = sample_figure(share, "ratio", "measured", "share of correct answers over the split");
    const double half = 1.96 * std::sqrt(share * (1 - share) / examples);
    figure["interval"] = {share - half, std::min(1.0, share + half)};
    return figure;
}

Json environment() {
    return {{"cpu", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"},
            {"flags", {"avx2", "fma", "avx512f", "avx512_vnni", "amx_int8"}},
            {"cores", 2},
            {"threads", 2},
            {"libtorch", "2.15.0"},
            {"engine", "x86"},
            {"kernel", "6.1.0"},
            {"virtual_machine", true},
            {"governor", nullptr}};
}

Json measurement_of(const Row& row, const Row& base) {
    const double seconds[] = {row.seconds_b1, row.seconds_b128}, base_seconds[] = {base.seconds_b1, base.seconds_b128};
    const double joules = 11.6 * row.seconds_b128 / 128;
    Json energy = sample_figure(joules, "J", "modelled", "CPU seconds x 5.8 W per core", 0.021);
    energy["systematic_ratio"] = {0.5, 3.0};
    Json carbon = sample_figure(joules / 3.6e6 * 473, "g", "modelled", "energy x 473 g/kWh", 0.021);
    carbon["systematic_ratio"] = {0.5, 3.0};
    Json json = {
        {"format", "coppice-measurement"},
        {"version", 1},
        {"stage", row.name},
        {"model_file", "model.pt"},
        {"quality",
         {{"metric", "top1"},
          {"value", row.top1},
          {"points", 100 * row.top1},
          {"higher_is_better", true},
          {"figure", figure_of_share(row.top1, 10000)},
          {"split", "test"},
          {"data", "CIFAR-10, 10,000 test images"},
          {"examples", 10000}}},
        {"metrics",
         {{"top1", figure_of_share(row.top1, 10000)},
          {"top5", figure_of_share(row.top5, 10000)},
          {"loss", sample_figure(row.loss, "1", "measured", "mean cross-entropy", 0.03)},
          {"agreement", figure_of_share(row.agreement, 10000)}}},
        {"figures",
         {{"file_bytes", sample_figure(row.file_bytes, "B", "measured", "size of model.pt on disk")},
          {"parameters", sample_figure(row.parameters, "1", "derived", "elements of all parameters")},
          {"nonzero_parameters", sample_figure(row.nonzero, "1", "derived", "elements that are not zero")},
          {"weight_bytes",
           sample_figure(row.parameters * (row.file_bytes < 2e5 ? 1 : 4), "B", "derived", "storage of all weights")},
          {"macs", sample_figure(row.macs, "1", "derived", "multiply-adds from observed shapes, batch 1")},
          {"flops", sample_figure(2 * row.macs, "1", "derived", "2 x multiply-adds")},
          {"peak_memory_bytes", sample_figure(row.peak, "B", "measured", "largest resident set of a run", 0.01)},
          {"power_w", sample_unavailable("W", "no counter in this virtual machine")},
          {"idle_power_w", sample_unavailable("W", "no counter in this virtual machine")},
          {"energy_per_inference_j", energy},
          {"carbon_per_inference_g", carbon}}},
        {"latency", Json::array()},
        {"environment", environment()},
        {"carbon",
         {{"grid", "WORLD"},
          {"grid_g_per_kwh", 473},
          {"year", 2024},
          {"basis", "lifecycle, generation"},
          {"attribution", "Grid intensity: Ember and Energy Institute, by Our World in Data, CC BY 4.0."},
          {"pue", 1.0}}}};
    const int batches[] = {1, 128};
    for (int i = 0; i < 2; ++i) {
        const double s = seconds[i];
        Json entry = {{"batch", batches[i]},
                      {"threads", 2},
                      {"p50_s", sample_figure(s, "s", "measured", "median of interleaved windows", 0.012)},
                      {"p90_s", sample_figure(1.11 * s, "s", "measured", "90th percentile", 0.03)},
                      {"p99_s", i == 0 ? sample_figure(1.38 * s, "s", "measured", "99th percentile", 0.07)
                                       : sample_unavailable("s", "needs 662 queries, 214 were made")},
                      {"throughput_per_s", sample_figure(batches[i] / s, "1/s", "derived", "batch / median", 0.012)},
                      {"ratio_to_baseline",
                       sample_figure(s / base_seconds[i], "1", "measured", "paired log-ratio over blocks", 0.008)},
                      {"steady", !(i == 0 && row.peak == 271e6)},
                      {"pairs", 214}};
        json["latency"].push_back(std::move(entry));
    }
    if (row.made_in > 0)
        json["compression"] = {
            {"seconds", sample_figure(row.made_in, "s", "measured", "wall clock")},
            {"cpu_seconds", sample_figure(1.9 * row.made_in, "s", "measured", "user and system time")},
            {"energy_j", sample_figure(11.0 * row.made_in, "J", "modelled", "CPU seconds x 5.8 W per core", 0.05)},
            {"carbon_g", sample_figure(11.0 * row.made_in / 3.6e6 * 473, "g", "modelled", "energy x 473 g/kWh", 0.05)}};
    return json;
}

std::string layer_name(int i) {
    if (i == 0) return "conv1";
    if (i == 19) return "fc";
    return "layer" + std::to_string(1 + (i - 1) / 6) + "." + std::to_string((i - 1) % 6 / 2) + ".conv" +
           std::to_string(1 + (i - 1) % 2);
}

Json stage_of(const Row& row) {
    const std::string name = row.name;
    Json json = {{"format", "coppice-stage"},
                 {"version", 1},
                 {"stage", name},
                 {"options", Json::object()},
                 {"kept", row.kept},
                 {"verdict", row.verdict},
                 {"changes", Json::array()},
                 {"facts", Json::object()},
                 {"layers", Json::array()},
                 {"seconds", row.made_in},
                 {"warnings", Json::array()}};
    if (name == "prune.channel")
        json["options"] = {{"criterion", {{"taylor", {{"batches", 8}}}}},
                           {"allocation", "global"},
                           {"macs_ratio", 0.5},
                           {"round_to", 8}};
    if (name == "train.finetune")
        json["options"] = {
            {"epochs", 8}, {"lr", 0.02}, {"schedule", "cosine"}, {"teacher", "baseline"}, {"loss", "distill.logits"}};
    if (name == "quantize.static")
        json["options"] = {{"observer", "histogram"}, {"per_channel", true}, {"engine", "x86"}};
    if (name == "prune.channel" || name == "lowrank.svd" || name == "quantize.static")
        for (int i = 0; i < 20; ++i) {
            const int width = i == 0 ? 16 : 16 << ((i - 1) / 6);
            std::string action = name == "quantize.static" ? "int8" : name == "lowrank.svd" ? "factorised" : "pruned";
            std::string before = std::to_string(width) + " channels",
                        after = std::to_string(width * 5 / 8) + " channels", reason;
            if (action == "int8") before = "float32", after = "int8, per channel";
            if (action == "factorised")
                before = "rank " + std::to_string(width), after = "rank " + std::to_string(width / 2);
            if (i == 19 && action != "int8") action = "kept", after = before, reason = "its outputs are the classes";
            json["changes"].push_back({{"layer", layer_name(i)},
                                       {"action", action},
                                       {"before", before},
                                       {"after", after},
                                       {"reason", reason}});
        }
    if (name == "deploy")
        json["changes"].push_back({{"layer", "<script>alert(1)</script>"},
                                   {"action", "kept"},
                                   {"before", "a & b"},
                                   {"after", "\"quoted\" | piped"},
                                   {"reason", "a name that a page must not run"}});
    if (name == "prune.channel")
        json["facts"] = {{"channels_before", 688}, {"channels_removed", 228}, {"macs_before", 40812544}};
    if (name == "train.finetune") json["facts"] = {{"epochs_run", 8}, {"best_epoch", 8}, {"final_loss", 0.31274}};
    for (int i = 0; i < 20; ++i) {
        const int width = i == 0    ? 16
                          : i == 19 ? 10
                                    : 16 << ((i - 1) / 6),
                  size = i == 0    ? 32
                         : i == 19 ? 1
                                   : 32 >> ((i - 1) / 6);
        Json shape = i == 19 ? Json{1, 10} : Json{1, width, size, size};
        json["layers"].push_back({{"name", layer_name(i)},
                                  {"op", i == 19 ? "aten::linear" : "aten::_convolution"},
                                  {"input_shape", shape},
                                  {"output_shape", shape},
                                  {"parameters", 9 * width * width},
                                  {"macs", 9 * width * width * size * size},
                                  {"activation_bytes", 4 * width * size * size}});
    }
    if (name == "lowrank.svd") json["warnings"].push_back("Rank 8 of layer1.0.conv1 keeps 71 % of its energy.");
    return json;
}

}  // namespace

Json sample_figure(double value, const std::string& unit, const std::string& provenance, const std::string& method,
                   double interval) {
    Json json = {
        {"value", value}, {"unit", unit}, {"provenance", provenance}, {"method", method}, {"interval", nullptr}};
    if (interval > 0) json["interval"] = {value * (1 - interval), value * (1 + interval)};
    return json;
}

Json sample_unavailable(const std::string& unit, const std::string& reason) {
    return {{"value", nullptr}, {"unit", unit},        {"provenance", "unavailable"},
            {"method", ""},     {"interval", nullptr}, {"reason", reason}};
}

void write_sample_run(const fs::path& folder) {
    const Json manifest = {
        {"format", "coppice-run"},
        {"version", 1},
        {"coppice", "0.1.0"},
        {"libtorch", "2.15.0"},
        {"recipe_sha256", "5f0c7a1be2d94c66"},
        {"model", {{"path", "models/resnet20.pt"}, {"sha256", "9d41f6c2a7b3e805"}}},
        {"data", {{"test", {{"description", "CIFAR-10, 10,000 test images"}, {"sha256", "c1f0aa52"}}}}},
        {"seed", 0},
        {"environment", environment()},
        {"task", "classification"},
        {"metric", "top1"},
        {"created", "2026-11-22T01:00:00Z"}};
    write(folder / "manifest.json", manifest.dump(1));
    write(folder / "recipe.yaml",
          "model: {path: models/resnet20.pt, input: [1, 3, 32, 32]}\nstages:\n  - prune.channel: {criterion: taylor, "
          "macs_ratio: 0.5}\n"
          "  - train.finetune: {epochs: 8, teacher: baseline, loss: distill.logits}\n  - quantize.static: {observer: "
          "histogram}\n");
    int index = 0;
    for (const Row& row : kRows) {
        const fs::path stage = folder / ("0" + std::to_string(index++) + "-" + row.name);
        write(stage / "measurement.json", measurement_of(row, kRows[0]).dump(1));
        write(stage / "stage.json", stage_of(row).dump(1));
    }
}

}  // namespace coppice::testing
