// How much faster a model really is without some of its channels, in the form that a run of `coppice compress` ends
// with, against the original as torch::jit::freeze leaves it.
//
//   prune_speed MODEL.pt BATCH THREADS SECONDS FORM SETTINGS...
//
// FORM is that of deploy: auto, which measures, or one of its names. SETTINGS are those of prune.channel,
// "macs_ratio=0.5,scope=greedy,round_to=auto". All variants, the frozen original
// and the deployed original are called once per round in random order for SECONDS. Printed are medians of the ratios
// to the frozen original within a round with their 95 % interval (order statistics), by the wall clock and by the CPU
// seconds of all threads; on a busy machine the latter say more (with OMP_WAIT_POLICY=passive, so that waiting threads
// do not count).
#include <ATen/Parallel.h>
#include <coppice/deploy.h>
#include <coppice/graph.h>
#include <coppice/prune.h>
#include <torch/csrc/jit/passes/freeze_module.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <random>
#include <sstream>

namespace {

using coppice::Context;
using coppice::Inputs;
using coppice::Model;
using torch::jit::Module;

double wall_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_s() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Module reloaded(const Module& module) {
    std::stringstream archive;
    module.save(archive);
    auto copy = torch::jit::load(archive, at::kCPU);
    copy.eval();
    return copy;
}

/// After the stage deploy, so that the sum of both stages is what a user gets.
/// @param form  as asked for; becomes the one that was taken
Module deployed(const Model& model, const Inputs& example, std::string& form) {
    Context context;
    context.example = example;
    coppice::DeployOptions options;
    options.batch = {};
    options.form = form;
    const auto result = coppice::deploy(options)->apply(model, context);
    form = context.facts["form"].get<std::string>();
    return reloaded(result.module());
}

struct Variant {
    std::string name, form;
    double macs_ratio = 1, parameter_ratio = 1, seconds = 0;
    Module module;
    std::vector<double> wall, cpu;
};

std::string interval(const std::vector<double>& times, const std::vector<double>& base) {
    std::vector<double> speed_ups;
    for (size_t i = 0; i < times.size(); ++i) speed_ups.push_back(base[i] / times[i]);
    std::sort(speed_ups.begin(), speed_ups.end());
    const auto n = static_cast<double>(speed_ups.size());
    const auto low = static_cast<size_t>(std::max(0.0, std::floor((n - 1.96 * std::sqrt(n)) / 2)));
    char text[64];
    std::snprintf(text, sizeof text, "%5.2fx [%.2f, %.2f]", speed_ups[speed_ups.size() / 2], speed_ups[low],
                  speed_ups[speed_ups.size() - 1 - low]);
    return text;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

std::vector<std::pair<std::string, std::string>> parsed(const std::string& settings) {
    std::vector<std::pair<std::string, std::string>> pairs;
    std::istringstream stream(settings);
    for (std::string item; std::getline(stream, item, ',');) {
        const auto equals = item.find('=');
        if (equals == std::string::npos) throw std::runtime_error("not name=value: " + item);
        pairs.emplace_back(item.substr(0, equals), item.substr(equals + 1));
    }
    return pairs;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 7) {
        std::fprintf(stderr, "usage: prune_speed MODEL.pt BATCH THREADS SECONDS FORM SETTINGS...\n");
        return 2;
    }
    const int64_t batch = std::stoll(argv[2]);
    at::set_num_threads(std::stoi(argv[3]));
    const double budget_s = std::stod(argv[4]);
    torch::NoGradGuard no_grad;
    const auto model = Model::load(argv[1]);
    const Inputs example = {at::arange(batch * 3 * 224 * 224, at::kFloat).sin().reshape({batch, 3, 224, 224})};
    const auto whole = coppice::cost(model, example);

    std::vector<Variant> variants(2);
    auto original = torch::jit::load(argv[1], at::kCPU);
    original.eval();
    variants[0].name = "original, frozen";
    variants[0].module = torch::jit::freeze_module(original);
    variants[1].name = "original, deployed";
    variants[1].form = argv[5];
    variants[1].module = deployed(model, example, variants[1].form);
    for (int i = 6; i < argc; ++i) {
        Variant variant;
        variant.name = argv[i];
        const double start = wall_s();
        coppice::Options options("prune.channel", parsed(argv[i]));
        const auto stage =
            coppice::find_entry(coppice::prune::stages(), "stage", "prune.channel", "prune_speed").make(options);
        options.done();
        Context context;
        context.example = example;
        const auto smaller = stage->apply(model, context);
        variant.seconds = wall_s() - start;
        const auto cost = coppice::cost(smaller, example);
        variant.macs_ratio = cost.macs / whole.macs;
        variant.parameter_ratio = static_cast<double>(cost.parameters) / static_cast<double>(whole.parameters);
        for (const char* fact : {"latency", "round_to"})
            if (context.facts.contains(fact))
                std::printf("%s %s: %s\n", argv[i], fact, context.facts[fact].dump().c_str());
        for (const auto& change : context.changes)
            if (change.reason.find("no speed") != std::string::npos)
                std::printf("  %s: %s\n", change.layer.c_str(), change.reason.c_str());
        variant.form = argv[5];
        variant.module = deployed(smaller, example, variant.form);
        variants.push_back(std::move(variant));
        std::fflush(stdout);
    }

    std::vector<size_t> order;
    for (size_t i = 0; i < variants.size(); ++i) order.push_back(i);
    for (auto& variant : variants)
        for (int run = 0; run < 3; ++run) variant.module.forward(example);
    std::mt19937_64 random(0);
    double spent = 0;
    int rounds = 0;
    for (; rounds < 11 || (rounds < 1001 && spent < budget_s); ++rounds) {
        std::shuffle(order.begin(), order.end(), random);
        for (const size_t i : order) {
            const double wall = wall_s(), cpu = cpu_s();
            variants[i].module.forward(example);
            variants[i].cpu.push_back(cpu_s() - cpu);
            variants[i].wall.push_back(wall_s() - wall);
            spent += variants[i].wall.back();
        }
    }
    std::printf("%s, batch %lld, %d threads, %d rounds\n", argv[1], static_cast<long long>(batch),
                at::get_num_threads(), rounds);
    std::printf("%-58s %6s %6s %9s %9s  %-20s %-20s %s\n", "variant", "MACs", "params", "wall ms", "CPU ms",
                "faster, wall", "faster, CPU", "form");
    for (const auto& variant : variants)
        std::printf("%-58s %6.3f %6.3f %9.2f %9.2f  %-20s %-20s %s\n", variant.name.c_str(), variant.macs_ratio,
                    variant.parameter_ratio, 1e3 * median(variant.wall), 1e3 * median(variant.cpu),
                    interval(variant.wall, variants[0].wall).c_str(), interval(variant.cpu, variants[0].cpu).c_str(),
                    variant.form.c_str());
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
