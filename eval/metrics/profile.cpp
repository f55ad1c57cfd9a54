// What each operator of a model costs: counts from the cost model, times from a walk over the graph, and a share of the
// energy of a whole run, because no counter is fast enough for a single operator.
#include <ATen/Parallel.h>

#include <coppice/eval.h>

#include <unordered_map>

namespace coppice::eval {
namespace {

constexpr double kMicroseconds = 1e6;  // trace events count time in them

double median(std::vector<double> values) {
    return values.empty() ? 0.0 : quantile(std::move(values), 0.5);
}

// Joules of a run of the whole model, without hooks, over as many runs as the source asks for.
Figure energy_of_a_run(const Model& model, const Inputs& example, const ProfileOptions& options, EnergyMeter& meter) {
    const double least = std::max(options.energy_seconds, meter.minimum_window_s());
    int64_t runs = 0;
    meter.start();
    const double start = wall_seconds();
    do {
        run_nodes(model, example);
        ++runs;
    } while (wall_seconds() - start < least);
    const auto energy = meter.stop();
    return quotient(energy, Figure::measured(static_cast<double>(runs), "1", "runs"), "J",
                    "mean of " + std::to_string(runs) + " runs; " + energy.method);
}

}  // namespace

Profile profile(const Model& model, const Inputs& example, const ProfileOptions& options, EnergyMeter* meter) {
    if (options.runs < 1)
        throw InvalidArgument("profile", "runs is " + std::to_string(options.runs) + ", must be at least 1", "");
    const torch::NoGradGuard no_grad;
    Profile result;
    result.cost = coppice::cost(model, example);
    std::unordered_map<const torch::jit::Node*, std::pair<std::vector<double>, std::vector<double>>> times;
    for (int run = 0; run < options.runs; ++run) {
        result.timeline = operator_timeline(model, example, run == 0 ? 1 : 0);
        std::unordered_map<const torch::jit::Node*, std::pair<double, double>> sums;
        for (const auto& execution : result.timeline) {
            sums[execution.node].first += execution.seconds;
            sums[execution.node].second += execution.cpu_s;
        }
        for (const auto& [node, sum] : sums) {
            times[node].first.push_back(sum.first);
            times[node].second.push_back(sum.second);
        }
    }
    result.energy_j = meter ? energy_of_a_run(model, example, options, *meter)
                            : Figure::unavailable("J", "no energy source was given");
    for (const auto& layer : result.cost.layers) {
        OperatorProfile row;
        row.cost = layer;
        if (const auto found = times.find(layer.node); found != times.end()) {
            row.seconds = median(found->second.first);
            row.cpu_s = median(found->second.second);
        }
        result.operators.push_back(std::move(row));
    }
    // Operators that touch no tensor have no row, but their time is part of a run.
    for (const auto& [node, series] : times) {
        result.seconds += median(series.first);
        result.cpu_s += median(series.second);
    }
    for (auto& row : result.operators) {
        row.time_ratio = result.seconds > 0 ? row.seconds / result.seconds : 0;
        const double share = result.cpu_s > 0 ? row.cpu_s / result.cpu_s : 0;
        row.energy_j = product(result.energy_j, Figure::modelled(share, "ratio", "share of the CPU time"), "J",
                               "share of the CPU time of all operators x energy of a run; " + result.energy_j.method);
    }
    return result;
}

Json Profile::to_json() const {
    Json layers = Json::array();
    for (const auto& row : operators)
        layers.push_back({{"name", row.cost.name},
                          {"op", row.cost.op},
                          {"input_shape", row.cost.input_shape},
                          {"output_shape", row.cost.output_shape},
                          {"parameters", row.cost.parameters},
                          {"parameter_bytes", row.cost.parameter_bytes},
                          {"activation_bytes", row.cost.activation_bytes},
                          {"macs", row.cost.macs},
                          {"flops", row.cost.flops},
                          {"flops_known", row.cost.known},
                          {"seconds", row.seconds},
                          {"cpu_seconds", row.cpu_s},
                          {"time_ratio", row.time_ratio},
                          {"energy_j", row.energy_j.to_json()}});
    return {{"totals",
             {{"macs", cost.macs},
              {"flops", cost.flops},
              {"parameters", cost.parameters},
              {"nonzero_parameters", cost.nonzero_parameters},
              {"parameter_bytes", cost.parameter_bytes},
              {"buffer_bytes", cost.buffer_bytes},
              {"activation_bytes", cost.activation_bytes},
              {"seconds", seconds},
              {"cpu_seconds", cpu_s},
              {"energy_j", energy_j.to_json()}}},
            {"layers", layers},
            {"unknown_operators", cost.unknown_operators}};
}

Json Profile::chrome_trace(const std::string& model_name) const {
    std::unordered_map<const torch::jit::Node*, const OperatorProfile*> rows;
    for (const auto& row : operators) rows[row.cost.node] = &row;
    Json events = Json::array();
    events.push_back({{"ph", "M"}, {"name", "process_name"}, {"pid", 1}, {"tid", 1}, {"args", {{"name", model_name}}}});
    events.push_back({{"ph", "M"},
                      {"name", "thread_name"},
                      {"pid", 1},
                      {"tid", 1},
                      {"args", {{"name", "operators, " + std::to_string(at::get_num_threads()) + " threads"}}}});
    for (const auto& execution : timeline) {
        const auto found = rows.find(execution.node);
        Json arguments = {{"cpu_us", kMicroseconds * execution.cpu_s}};
        std::string name = execution.node->kind().toQualString(), category = name;
        if (found != rows.end()) {
            const auto& layer = found->second->cost;
            name = layer.name;
            category = layer.op;
            arguments["op"] = layer.op;
            arguments["input_shape"] = layer.input_shape;
            arguments["output_shape"] = layer.output_shape;
            arguments["macs"] = layer.macs;
            arguments["flops"] = layer.known ? Json(layer.flops) : Json(nullptr);
            arguments["parameters"] = layer.parameters;
            arguments["parameter_bytes"] = layer.parameter_bytes;
            arguments["activation_bytes"] = layer.activation_bytes;
            arguments["energy_j"] = found->second->energy_j.to_json();
        }
        events.push_back({{"ph", "X"},  // a slice with a duration
                          {"name", name},
                          {"cat", category},
                          {"pid", 1},
                          {"tid", 1},
                          {"ts", kMicroseconds * execution.start_s},
                          {"dur", kMicroseconds * execution.seconds},
                          {"args", arguments}});
    }
    return {{"traceEvents", events},
            {"displayTimeUnit", "ms"},
            {"otherData", {{"format", "coppice-trace"}, {"model", model_name}}}};
}

}  // namespace coppice::eval
