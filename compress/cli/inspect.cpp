// coppice inspect: what a model consists of, what it costs, and what could be done about it.
#include <ATen/Parallel.h>
#include <coppice/eval.h>
#include <coppice/lowrank.h>
#include <coppice/pipeline.h>
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
    const eval::OperatorProfile* profile = nullptr;
    Treatment prune, factorise, quantize;
};

// An explanation that fails must not take the table with it: every row then says why.
template <typename Explain, typename Set>
void explain_all(std::vector<Row>& rows, const std::string& family, std::vector<std::string>& notes, Explain explain,
                 Set set) {
    try {
        for (const auto& info : explain())
            for (auto& row : rows)
                if (row.profile->cost.name == info.layer) set(row, info);
    } catch (const std::exception& error) {
        notes.push_back("what can be " + family + " is not known: " + message_of(error));
    }
}

/// Attention in one fused operator is written out before it is pruned, and LayerNames then counts other readers of a
/// weight: what was "attn#9" is "attn". Each layer gets the name of the row that does its work; what only exists
/// written out (the second projection) has no row, and a note instead.
std::vector<prune::PrunableInfo> named_as_in(const std::vector<Row>& rows,
                                             const std::vector<prune::PrunableInfo>& infos,
                                             std::vector<std::string>& notes) {
    std::vector<prune::PrunableInfo> named;
    std::string rest;
    for (auto info : infos) {
        int best = 0;
        std::string name;
        for (const auto& row : rows) {
            const auto& cost = row.profile->cost;
            const bool same_op = cost.op == info.op, computes = cost.op.rfind("prim::", 0) != 0;
            const bool exact = cost.name == info.layer;
            const bool counted = cost.name.substr(0, cost.name.rfind('#')) == info.layer;
            const int fit = exact && same_op ? 4 : exact && computes ? 3 : counted && same_op ? 2 : counted && computes;
            if (fit <= best) continue;
            best = fit;
            name = cost.name;
        }
        if (best > 0) {
            info.layer = name;
            named.push_back(info);
        } else if (info.prunable > 0) {
            rest += (rest.empty() ? "" : ", ") + info.layer + " " + std::to_string(info.prunable) + " of " +
                    std::to_string(info.channels);
        }
    }
    if (!rest.empty()) notes.push_back("prunable once attention is written out, as prune.channel does: " + rest);
    return named;
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

std::string energy_text(const eval::Figure& figure) {
    if (!figure.value) return "-";
    const double joules = *figure.value;
    char text[32];
    std::snprintf(text, sizeof text, "%.3g %s",
                  joules < 1e-3 ? 1e6 * joules
                  : joules < 1  ? 1e3 * joules
                                : joules,
                  joules < 1e-3 ? "uJ"
                  : joules < 1  ? "mJ"
                                : "J");
    return text;
}

void print_notes(const std::vector<std::string>& notes) {
    for (const auto& note : notes) std::cout << "\n" << wrapped("Note: " + note, 100, 2) << "\n";
}

void print_unknown(const Cost& costs) {
    if (!costs.unknown_operators.empty()) {
        std::string list;
        for (const auto& op : costs.unknown_operators) list += (list.empty() ? "" : ", ") + op;
        std::cout << "\n" << wrapped("Operators whose FLOPs are not counted: " + list, 100, 2) << "\n";
    }
}

// Where time, memory and energy go, operator by operator: the most expensive first.
void print_profile(const eval::Profile& profile, const std::string& file, bool all) {
    std::vector<const eval::OperatorProfile*> rows;
    for (const auto& row : profile.operators) rows.push_back(&row);
    std::stable_sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) { return a->seconds > b->seconds; });
    Table table{
        {"layer", "operator", "output", "time", "%", "MACs", "FLOPs", "parameters", "bytes", "activation", "energy"},
        {false, false, false, true, true, true, true, true, true, true, true},
        {}};
    size_t hidden = 0;
    double hidden_ratio = 0;
    for (const auto* row : rows) {
        if (!all && row->time_ratio < 0.005) {
            ++hidden;
            hidden_ratio += row->time_ratio;
            continue;
        }
        const auto& layer = row->cost;
        const auto count = [](double value) { return value > 0 ? count_text(value) : std::string(); };
        const auto bytes = [](int64_t value) { return value ? bytes_text(static_cast<double>(value)) : std::string(); };
        char time[32];
        std::snprintf(time, sizeof time, "%.3g us", 1e6 * row->seconds);
        table.rows.push_back({layer.name, short_op(layer.op), shape_text(layer.output_shape), time,
                              percent(row->time_ratio), count(layer.macs), layer.known ? count(layer.flops) : "unknown",
                              count(static_cast<double>(layer.parameters)), bytes(layer.parameter_bytes),
                              bytes(layer.activation_bytes), energy_text(row->energy_j)});
    }
    std::cout << table.text();
    if (hidden)
        std::cout << hidden << " further operators take " << percent(hidden_ratio)
                  << " % of the time; --all shows them\n";
    const auto& energy = profile.energy_j;
    std::cout << "\n"
              << wrapped(file + ": one run takes " + duration_text(profile.seconds) + " operator by operator on " +
                             std::to_string(at::get_num_threads()) +
                             (at::get_num_threads() == 1 ? " thread, " : " threads, ") +
                             (energy.available()
                                  ? energy_text(energy) + " (" + eval::name_of(energy.provenance) + ": " +
                                        energy.method + "); that of an operator is modelled: its share of the CPU time"
                                  : "energy unavailable: " + energy.reason),
                         100, 2)
              << "\n";
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
        found->second.push_back(row.profile->cost.name);
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
        "  coppice inspect resnet18.pt --input 1,3,224,224 --profile --trace trace.json\n"
        "  coppice inspect minilm.pt --input 'int64<30522:1,128' --input int64:1,128 --json\n");
    line.add()("i,input",
               "shape of an input, as often as forward has inputs: 1,3,224,224 (float32), int64:1,128 (ones), "
               "int64<30522:1,128 (values below 30522)",
               cxxopts::value<std::vector<std::string>>(), "SHAPE")(
        "all", "also operators without parameters and multiply-adds that take less than 1 % of the time")(
        "threads", "threads (default: LibTorch's choice)", cxxopts::value<int>()->default_value("0"), "N")(
        "repeat", "runs per operator; their median is its time", cxxopts::value<int>()->default_value("5"), "N")(
        "profile", "where time and energy go: time, FLOPs, bytes, activations and energy of every operator")(
        "trace", "write one run as a trace for chrome://tracing or ui.perfetto.dev", cxxopts::value<std::string>(),
        "FILE")("energy", "source: auto, one that coppice doctor lists, or a+b for a sum",
                cxxopts::value<std::string>()->default_value("auto"), "SOURCE")("json", "as JSON");
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
    eval::EnergyOptions energy;
    energy.source = line.text("energy");
    const auto meter = eval::make_energy_meter(energy);
    eval::ProfileOptions profiling;
    profiling.runs = repeats;
    const auto profile = eval::profile(model, example, profiling, meter.get());
    const auto& costs = profile.cost;
    if (line.given("trace")) {
        write_atomically(line.text("trace"),
                         profile.chrome_trace(files[0]).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
        std::cerr << "trace " << line.text("trace") << ": open it in ui.perfetto.dev or chrome://tracing\n";
    }
    std::vector<std::string> notes = model.notes(), without_rule;
    for (const auto& warning : quantize::int8_warnings(model)) notes.push_back(files[0] + ": " + warning);
    if (line.given("profile") && !line.given("json")) {
        print_profile(profile, files[0], line.given("all"));
        print_unknown(costs);
        print_notes(notes);
        return kDone;
    }
    std::vector<Row> rows;
    for (const auto& row : profile.operators) rows.push_back({&row, {}, {}, {}});
    const double total_seconds = profile.seconds;
    explain_all(
        rows, "pruned", notes,
        [&] {
            const auto apart = prune::unfuse_attention(model);
            const auto groups = prune::find_groups(apart, Facts::observe(apart, example));
            without_rule = groups.unknown_operators();
            return named_as_in(rows, groups.layers(), notes);
        },
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
        auto measured = profile.to_json();
        for (size_t i = 0; i < rows.size(); ++i) {
            auto& layer = measured["layers"][i];
            layer["prune"] = treatment_json(rows[i].prune);
            layer["factorise"] = treatment_json(rows[i].factorise);
            layer["quantize"] = treatment_json(rows[i].quantize);
        }
        Json inputs = Json::array();
        for (const auto& spec : specs) inputs.push_back(spec.to_string());
        const Json out = {{"format", "coppice-inspect"},
                          {"version", 1},
                          {"model", files[0]},
                          {"inputs", inputs},
                          {"threads", at::get_num_threads()},
                          {"totals", measured["totals"]},
                          {"layers", measured["layers"]},
                          {"unknown_operators", measured["unknown_operators"]},
                          {"operators_without_rule", without_rule},
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
        const bool shown = line.given("all") || row.profile->cost.parameters > 0 || row.profile->cost.macs > 0 ||
                           row.prune.asked || row.factorise.asked || row.quantize.asked ||
                           row.profile->seconds >= 0.01 * total_seconds;
        if (!shown) {
            ++hidden;
            hidden_seconds += row.profile->seconds;
            continue;
        }
        table.rows.push_back(
            {row.profile->cost.name, short_op(row.profile->cost.op), shape_text(row.profile->cost.output_shape),
             row.profile->cost.parameters ? count_text(static_cast<double>(row.profile->cost.parameters)) : "",
             row.profile->cost.macs > 0 ? count_text(row.profile->cost.macs) : "",
             total_seconds > 0 ? percent(row.profile->seconds / total_seconds) : "", cell(row.prune),
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
    if (!without_rule.empty()) {
        std::string list;
        for (const auto& op : without_rule) list += (list.empty() ? "" : ", ") + op;
        std::cout << "\n"
                  << wrapped("Operators without a pruning rule, which keep the channels of what they touch: " + list,
                             100, 2)
                  << "\n";
    }
    print_reasons("Not factorised", rows, &Row::factorise);
    print_reasons("Not quantized", rows, &Row::quantize);
    print_unknown(costs);
    if (!model.other_methods().empty()) {
        std::string list;
        for (const auto& method : model.other_methods()) list += (list.empty() ? "" : ", ") + method;
        std::cout << "\n" << wrapped("Methods besides forward: " + list, 100, 2) << "\n";
    }
    print_notes(notes);
    return kDone;
}

}  // namespace coppice::cli
