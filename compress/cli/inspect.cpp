// coppice inspect: what a model consists of, what it costs, and what could be done about it.
#include <ATen/Parallel.h>
#include <coppice/graph.h>
#include <coppice/lowrank.h>
#include <coppice/prune.h>
#include <coppice/quantize.h>

#include <iostream>
#include <numeric>

#include "commands.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

// What one family can do with a layer: "yes" or a number of channels in `text`, else the reason.
struct Treatment {
    bool asked = false, possible = false;
    std::string text, reason;
};

struct Row {
    LayerCost cost;
    double seconds = 0;
    Treatment prune, factorise, quantize;
};

// An explanation that fails must not take the table with it: every row then says why.
template <typename Explain, typename Set>
void explain_all(std::vector<Row>& rows, const std::string& family, std::vector<std::string>& notes, Explain explain,
                 Set set) {
    try {
        for (const auto& info : explain())
            for (auto& row : rows)
                if (row.cost.name == info.layer) set(row, info);
    } catch (const std::exception& error) {
        notes.push_back("what can be " + family + " is not known: " + message_of(error));
    }
}

std::string short_op(const std::string& op) {
    const auto colons = op.find("::");
    return colons == std::string::npos || op.substr(0, colons) != "aten" ? op : op.substr(colons + 2);
}

Json treatment_json(const Treatment& treatment) {
    if (!treatment.asked) return nullptr;
    return {{"possible", treatment.possible}, {"detail", treatment.text}, {"reason", treatment.reason}};
}

std::string cell(const Treatment& treatment) {
    return !treatment.asked ? "" : !treatment.text.empty() ? treatment.text : treatment.possible ? "yes" : "no";
}

std::string percent(double share) {
    char text[16];
    std::snprintf(text, sizeof text, "%.1f", 100 * share);
    return text;
}

// The same reason for many layers is one line: "layer1.conv1, layer1.conv2 and 14 more: reason".
void print_reasons(const std::string& title, const std::vector<Row>& rows, const Treatment Row::*which) {
    std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
    for (const auto& row : rows) {
        const auto& treatment = row.*which;
        if (!treatment.asked || treatment.reason.empty()) continue;
        auto found =
            std::find_if(reasons.begin(), reasons.end(), [&](const auto& r) { return r.first == treatment.reason; });
        if (found == reasons.end()) found = reasons.insert(reasons.end(), {treatment.reason, {}});
        found->second.push_back(row.cost.name);
    }
    if (reasons.empty()) return;
    std::cout << "\n" << title << "\n";
    for (const auto& [reason, layers] : reasons) {
        std::string names;
        for (size_t i = 0; i < layers.size() && i < 4; ++i) names += (i ? ", " : "") + layers[i];
        if (layers.size() > 4) names += " and " + std::to_string(layers.size() - 4) + " more";
        std::cout << "  " << wrapped(names + ": " + reason, 100, 4) << "\n";
    }
}

}  // namespace

int run_inspect(const Arguments& arguments) {
    CommandLine line(
        "inspect", "MODEL --input SHAPE [options]",
        "Shows the layers of a TorchScript model with shapes, parameters, multiply-adds and their share of the time,\n"
        "and what can be pruned, factorised and quantized, or why not. Without --input the shapes are not known.",
        "  coppice inspect resnet18.pt --input 1,3,224,224\n"
        "  coppice inspect minilm.pt --input 'int64<30522:1,128' --input int64:1,128 --json\n");
    line.add()("i,input",
               "shape of an input, as often as forward has inputs: 1,3,224,224 (float32), int64:1,128 (ones), "
               "int64<30522:1,128 (values below 30522)",
               cxxopts::value<std::vector<std::string>>(), "SHAPE")(
        "all", "also operators without parameters and multiply-adds that take less than 1 % of the time")(
        "threads", "threads (default: LibTorch's choice)", cxxopts::value<int>()->default_value("0"), "N")(
        "repeat", "runs per operator; their median is its time", cxxopts::value<int>()->default_value("5"), "N")(
        "json", "as JSON");
    if (!line.parse(arguments, "model")) return kDone;
    const auto files = line.texts("model");
    if (files.size() != 1)
        line.fail(files.empty() ? "no model is given" : "more than one model is given: " + files[1],
                  "Write coppice inspect model.pt --input 1,3,224,224.");
    std::vector<InputSpec> specs;
    for (const auto& text : line.texts("input")) specs.push_back(parse_input(text, "--input"));
    if (specs.empty())
        line.fail("no input is given", "Write one --input for each argument of forward, such as --input 1,3,224,224.");
    const int repeats = line.values()["repeat"].as<int>();
    if (repeats < 1) line.fail("--repeat is " + std::to_string(repeats) + ", must be at least 1");
    set_threads(line.values()["threads"].as<int>());

    const auto example = example_inputs(specs);
    const auto model = load_checked(files[0], example, "--input");
    const auto costs = cost(model, example);
    std::vector<std::string> notes = model.notes();
    std::vector<Row> rows;
    for (const auto& layer : costs.layers) rows.push_back({layer, 0, {}, {}, {}});
    double total_seconds = 0;
    {
        const auto seconds = operator_seconds(model, example, repeats);
        std::unordered_map<const torch::jit::Node*, double> by_node;
        for (const auto& [node, value] : seconds) by_node[node] += value, total_seconds += value;
        for (auto& row : rows)
            if (const auto found = by_node.find(row.cost.node); found != by_node.end()) row.seconds = found->second;
    }
    explain_all(
        rows, "pruned", notes, [&] { return prune::explain(model, example); },
        [](Row& row, const prune::PrunableInfo& info) {
            row.prune = {true, info.prunable > 0,
                         std::to_string(info.prunable) + " of " + std::to_string(info.channels), info.reason};
        });
    explain_all(
        rows, "factorised", notes, [&] { return lowrank::explain(model, example); },
        [](Row& row, const lowrank::Explanation& info) {
            row.factorise = {true, info.factorisable,
                             info.factorisable ? "rank <= " + std::to_string(info.break_even_rank) : "no", info.reason};
        });
    explain_all(
        rows, "quantized", notes, [&] { return quantize::explain(model, example); },
        [](Row& row, const quantize::LayerPlan& info) {
            row.quantize = {true, info.int8, info.int8 ? "int8" : "no", info.reason};
        });

    if (line.given("json")) {
        Json layers = Json::array();
        for (const auto& row : rows)
            layers.push_back({{"name", row.cost.name},
                              {"op", row.cost.op},
                              {"input_shape", row.cost.input_shape},
                              {"output_shape", row.cost.output_shape},
                              {"parameters", row.cost.parameters},
                              {"parameter_bytes", row.cost.parameter_bytes},
                              {"activation_bytes", row.cost.activation_bytes},
                              {"macs", row.cost.macs},
                              {"flops", row.cost.flops},
                              {"seconds", row.seconds},
                              {"time_ratio", total_seconds > 0 ? row.seconds / total_seconds : 0.0},
                              {"prune", treatment_json(row.prune)},
                              {"factorise", treatment_json(row.factorise)},
                              {"quantize", treatment_json(row.quantize)}});
        Json inputs = Json::array();
        for (const auto& spec : specs) inputs.push_back(spec.to_string());
        const Json out = {{"format", "coppice-inspect"},
                          {"version", 1},
                          {"model", files[0]},
                          {"inputs", inputs},
                          {"threads", at::get_num_threads()},
                          {"totals",
                           {{"macs", costs.macs},
                            {"flops", costs.flops},
                            {"parameters", costs.parameters},
                            {"nonzero_parameters", costs.nonzero_parameters},
                            {"parameter_bytes", costs.parameter_bytes},
                            {"buffer_bytes", costs.buffer_bytes},
                            {"activation_bytes", costs.activation_bytes},
                            {"seconds", total_seconds}}},
                          {"layers", layers},
                          {"unknown_operators", costs.unknown_operators},
                          {"other_methods", model.other_methods()},
                          {"notes", notes}};
        std::cout << out.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
        return kDone;
    }

    Table table{{"layer", "operator", "output", "parameters", "MACs", "time %", "prunable", "low rank", "int8"},
                {false, false, false, true, true, true, true, false, false},
                {}};
    size_t hidden = 0;
    double hidden_seconds = 0;
    for (const auto& row : rows) {
        const bool shown = line.given("all") || row.cost.parameters > 0 || row.cost.macs > 0 || row.prune.asked ||
                           row.factorise.asked || row.quantize.asked || row.seconds >= 0.01 * total_seconds;
        if (!shown) {
            ++hidden;
            hidden_seconds += row.seconds;
            continue;
        }
        table.rows.push_back({row.cost.name, short_op(row.cost.op), shape_text(row.cost.output_shape),
                              row.cost.parameters ? count_text(static_cast<double>(row.cost.parameters)) : "",
                              row.cost.macs > 0 ? count_text(row.cost.macs) : "",
                              total_seconds > 0 ? percent(row.seconds / total_seconds) : "", cell(row.prune),
                              cell(row.factorise), cell(row.quantize)});
    }
    std::cout << table.text();
    if (hidden)
        std::cout << hidden << " further operators take "
                  << percent(total_seconds > 0 ? hidden_seconds / total_seconds : 0)
                  << " % of the time; --all shows them\n";
    std::cout << "\n"
              << files[0] << ": " << count_text(static_cast<double>(costs.parameters)) << " parameters ("
              << bytes_text(static_cast<double>(costs.parameter_bytes)) << "), " << count_text(costs.macs) << " MACs, "
              << count_text(costs.flops) << " FLOPs, " << bytes_text(static_cast<double>(costs.activation_bytes))
              << " of activations; one run takes about " << duration_text(total_seconds) << " operator by operator on "
              << at::get_num_threads() << (at::get_num_threads() == 1 ? " thread\n" : " threads\n");
    print_reasons("Channels that cannot be pruned", rows, &Row::prune);
    print_reasons("Not factorised", rows, &Row::factorise);
    print_reasons("Not quantized", rows, &Row::quantize);
    if (!costs.unknown_operators.empty()) {
        std::string list;
        for (const auto& op : costs.unknown_operators) list += (list.empty() ? "" : ", ") + op;
        std::cout << "\n" << wrapped("Operators whose FLOPs are not counted: " + list, 100, 2) << "\n";
    }
    if (!model.other_methods().empty()) {
        std::string list;
        for (const auto& method : model.other_methods()) list += (list.empty() ? "" : ", ") + method;
        std::cout << "\n" << wrapped("Methods besides forward: " + list, 100, 2) << "\n";
    }
    for (const auto& note : notes) std::cout << "\n" << wrapped("Note: " + note, 100, 2) << "\n";
    return kDone;
}

}  // namespace coppice::cli
