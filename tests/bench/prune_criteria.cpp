// What each pruning criterion leaves of a model's quality before any fine-tuning, at 1.5, 2 and 3 times fewer
// multiply-adds.
//
//   prune_criteria DATA MODEL [option=value ...]     a Markdown table on standard output
//   prune_criteria DATA MODEL removal CRITERION SCOPE FACTOR [option=value ...]
//                                                    the channels that stay, as JSON
//
// DATA is the folder of the development data; MODEL one of resnet20, fashion, minilm, cnn_gru, light_ts. Options:
// examples (calibration examples, 512), test (test examples, all), seeds (3), round_to (1), threads (1), scopes (any of
// the allocations, "uniform;global"), only (rows, "a;b"), refit_of (rows to re-fit as well, "a;b" or "none"; the best
// two at 2x).
//
// Criteria that need data, and scope sensitivity, see `examples` training examples, drawn by the seed; none sees a test
// example. A cell is the mean over the seeds with the lowest and highest value.
#include <ATen/Parallel.h>
#include <coppice/eval.h>
#include <coppice/prune.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <numeric>
#include <sstream>

namespace {

using namespace coppice;
namespace fs = std::filesystem;

Setting list(const std::vector<std::string>& items) {
    Setting result;
    result.kind = Setting::Kind::kList;
    for (const auto& item : items) result.items.push_back(Setting::scalar(item));
    return result;
}

std::shared_ptr<const Dataset> open(const std::string& format, std::vector<std::pair<std::string, Setting>> settings) {
    Options options("data", Setting::map(std::move(settings)));
    return find_entry(dataset_formats(), "format", format, "data").make(options);
}

struct Workload {
    std::string title, metric;
    fs::path file;
    Task task = Task::kClassification;
    std::shared_ptr<const Dataset> train, test;
};

Workload workload(const fs::path& data, const std::string& name) {
    const auto path = [&](const std::string& file) {
        return std::make_pair(std::string("path"), Setting::scalar((data / file).string()));
    };
    const auto scalar = [](const std::string& key, const std::string& value) {
        return std::make_pair(key, Setting::scalar(value));
    };
    if (name == "resnet20")
        return {"ResNet-20 on CIFAR-10 (JPEG copy)",
                "top1",
                data / "cifar10/resnet20.pt",
                Task::kClassification,
                open("cifar10", {path("cifar10/train.bin")}),
                open("cifar10", {path("cifar10/test.bin")})};
    if (name == "fashion") {
        // Debian: dataset-fashion-mnist. Without it the last 1,000 test images calibrate and the others judge.
        const fs::path train = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz";
        const auto images = path("fashion/t10k-images-idx3-ubyte");
        const bool whole = fs::exists(train);
        return {whole ? "CNN on Fashion-MNIST" : "CNN on Fashion-MNIST (calibrated on the last 1,000 test images)",
                "top1",
                data / "fashion/cnn.pt",
                Task::kClassification,
                whole ? open("idx", {scalar("path", train.string()), {"rows", list({"0", "6000"})}})
                      : open("idx", {images, {"rows", list({"9000", "10000"})}}),
                whole ? open("idx", {images}) : open("idx", {images, {"rows", list({"0", "9000"})}})};
    }
    if (name == "cnn_gru") {
        const auto clips = [&](const char* file) {
            return open("tensors", {path(file), scalar("inputs", "waveform"), scalar("target", "label"),
                                    scalar("divide", "32768"), scalar("unsqueeze", "1")});
        };
        return {"CNN and GRU on spoken digits", "top1",
                data / "fsdd/cnn_gru.pt",       Task::kClassification,
                clips("fsdd/train.pt"),         clips("fsdd/test.pt")};
    }
    if (name == "minilm") {
        const auto pairs = [&](const char* file) {
            return open("tensors", {path(file),
                                    {"inputs",
                                     [] {
                                         auto inputs = list({"ids"});
                                         inputs.items.push_back(Setting::map(
                                             {{"ids", Setting::map({{"mask", Setting::scalar("true")}})}}));
                                         return inputs;
                                     }()},
                                    scalar("pairs", "true"),
                                    scalar("target", "score")});
        };
        return {"MiniLM-L6 on STS-B",   "spearman",           data / "stsb/minilm_l6.pt", Task::kSimilarity,
                pairs("stsb/train.pt"), pairs("stsb/test.pt")};
    }
    if (name == "light_ts") {
        const auto rows = [&](const char* from, const char* to) {
            return open("csv",
                        {path("etth1/ETTh1.csv"), {"standardise", list({"0", "8640"})}, {"rows", list({from, to})}});
        };
        return {"LightTS on ETTh1",    "mse", data / "etth1/light_ts.pt", Task::kRegression, rows("96", "8640"),
                rows("11520", "14400")};
    }
    throw InvalidArgument("prune_criteria", "unknown model \"" + name + "\"",
                          "Known: resnet20, fashion, minilm, cnn_gru, light_ts.");
}

/// One row: a criterion as a recipe names it, and how scopes global and greedy make its scores comparable.
struct Row {
    std::string name, criterion;
    std::vector<std::pair<std::string, std::string>> options;
    std::string normaliser;
    bool seeded;  ///< depends on the seed: random, or needs data
};

std::vector<Row> rows() {
    return {
        {"random", "random", {}, "none", true},
        {"magnitude", "magnitude", {}, "mean", false},
        {"magnitude, reduce max", "magnitude", {{"reduce", "max"}}, "mean", false},
        {"magnitude, reduce first", "magnitude", {{"reduce", "first"}}, "mean", false},
        {"magnitude, reduce prod", "magnitude", {{"reduce", "prod"}}, "mean", false},
        {"bn_scale", "bn_scale", {{"elsewhere", "magnitude"}}, "mean", false},
        {"lamp", "lamp", {}, "none", false},
        {"fpgm", "fpgm", {}, "mean", false},
        {"apoz", "apoz", {}, "mean", true},
        {"mean_activation", "mean_activation", {}, "mean", true},
        {"hrank", "hrank", {}, "mean", true},
        {"chip", "chip", {}, "mean", true},
        {"wanda", "wanda", {}, "mean", true},
        {"wanda, weights made", "wanda", {{"weights", "made"}}, "mean", true},
        {"taylor", "taylor", {}, "none", true},
        {"taylor, normaliser mean", "taylor", {}, "mean", true},
        {"taylor, form absolute", "taylor", {{"form", "absolute"}}, "none", true},
        {"taylor, form elementwise", "taylor", {{"form", "elementwise"}}, "none", true},
        {"taylor, at gates", "taylor", {{"at", "gates"}}, "none", true},
        {"taylor, at gates, normaliser mean", "taylor", {{"at", "gates"}}, "mean", true},
        {"taylor, batch_size 1", "taylor", {{"batches", "512"}, {"batch_size", "1"}}, "none", true},
        {"fisher", "fisher", {}, "none", true},
        {"reconstruction", "reconstruction", {}, "none", true},
        {"reconstruction, refit", "reconstruction", {{"refit", "true"}}, "none", true},
    };
}

struct Settings {
    int64_t examples = 512, test = 0, seeds = 3, round_to = 1;
    int threads = 1;
    std::string only, refit_of;
    std::vector<std::string> scopes;
};

/// What a recipe calls `scope`. Isomorphic compares scores of one kind as they are, whatever the row says.
std::unique_ptr<prune::Allocation> allocation_of(const std::string& scope, const std::string& normaliser) {
    std::vector<std::pair<std::string, std::string>> given;
    if (scope == "global" || scope == "greedy") given.emplace_back("normaliser", normaliser);
    Options options(scope, given);
    auto allocation = find_entry(prune::allocations(), "scope", scope, "prune_criteria").make(options);
    options.done();
    return allocation;
}

/// Is `name` among the names that semicolons separate?
bool contains(const std::string& names, const std::string& name) {
    return (";" + names + ";").find(";" + name + ";") != std::string::npos;
}

struct Cell {
    std::vector<double> values;
    double points = 0;  ///< mean, higher is better
};

class Bench {
public:
    Bench(Workload work, Settings settings) : work_(std::move(work)), settings_(std::move(settings)) {
        if (settings_.test > 0 && settings_.test < work_.test->size()) {
            std::vector<int64_t> first(static_cast<size_t>(settings_.test));
            std::iota(first.begin(), first.end(), 0);
            work_.test = subset(work_.test, first);
        }
        model_ = Model::load(work_.file);
        example_ = work_.test->batch({0, 1}).inputs;
        facts_ = Facts::observe(model_, example_);
        groups_ = prune::find_groups(model_, facts_);
        cost_.emplace(model_, example_, groups_);
    }

    Context context(uint64_t seed) const {
        Context context;
        context.example = example_;
        context.task = work_.task;
        context.seed = seed;
        context.data.calibration = calibration_subset(work_.train, settings_.examples, seed);
        return context;
    }

    std::vector<at::Tensor> scores(const Row& row, uint64_t seed) const {
        auto settings = row.options;
        if (row.criterion == "random") settings.emplace_back("seed", std::to_string(seed));
        Options options("criterion", settings);
        const auto criterion = find_entry(prune::criteria(), "criterion", row.criterion, "bench").make(options);
        options.done();
        auto with_data = context(seed);
        return criterion->scores(model_, groups_, with_data);
    }

    prune::Removal allocate(const Row& row, const std::vector<at::Tensor>& scores, uint64_t seed,
                            const std::string& scope, double factor) {
        prune::Target target;
        target.macs_ratio = 1 / factor;
        target.round_to = settings_.round_to;
        const auto allocation = allocation_of(scope, row.normaliser);
        if (const auto ratios = allocation->sensitivity_ratios(); !ratios.empty()) {
            auto& curves = curves_[{row.name, seed}];  // the same for every target
            if (curves.empty()) {
                auto with_data = context(seed);
                with_data.evaluate = [&](const Model& model) {
                    return evaluate(model, *with_data.data.calibration).second;
                };
                curves = prune::sensitivity_curves(model_, facts_, groups_, scores, target, ratios, with_data);
            }
            target.sensitivity = curves;
        }
        return allocation->allocate(groups_, scores, *cost_, target);
    }

    /// @param repair  "", "bn", "refit"
    std::pair<double, double> quality(const prune::Removal& removal, const std::string& repair, uint64_t seed) {
        const auto key = std::make_tuple(removal, repair, repair.empty() ? 0 : seed);
        if (const auto found = known_.find(key); found != known_.end()) return found->second;
        auto smaller = prune::cut(model_, facts_, groups_, removal);
        auto with_data = context(seed);
        if (repair == "refit") prune::refit(smaller, model_, groups_, removal, {}, with_data);
        if (repair == "bn") prune::reestimate_batch_norm(smaller, *with_data.data.calibration, 4, 128, seed);
        return known_[key] = evaluate(smaller, *work_.test);
    }

    void table() {
        const auto baseline = evaluate(model_, *work_.test);
        std::printf(
            "## %s\n\n%lld test examples, %lld calibration examples, %lld seeds, round_to %lld, %s. Uncut: %s. ",
            work_.title.c_str(), static_cast<long long>(work_.test->size()),
            static_cast<long long>(std::min(settings_.examples, work_.train->size())),
            static_cast<long long>(settings_.seeds), static_cast<long long>(settings_.round_to), work_.metric.c_str(),
            text(baseline.first).c_str());
        std::printf("%zu groups.\n\n", groups_.all().size());
        std::string head = "| criterion", line = "| ---";
        for (const auto& scope : settings_.scopes) {
            for (const char* factor : {"1.5x", "2x", "3x"}) head += " | " + scope + " " + factor;
            line += " | --- | --- | ---";
        }
        std::printf("%s | s |\n%s | --- |\n", head.c_str(), line.c_str());
        std::vector<std::pair<double, Row>> ranking;
        for (const auto& row : rows()) {
            if (!settings_.only.empty() && !contains(settings_.only, row.name)) continue;
            ranking.emplace_back(print(row, {""}), row);
        }
        std::stable_sort(ranking.begin(), ranking.end(),
                         [](const auto& a, const auto& b) { return a.first > b.first; });
        std::vector<Row> best;
        for (const auto& [points, row] : ranking) {
            const bool chosen = settings_.refit_of.empty() ? best.size() < 2 : contains(settings_.refit_of, row.name);
            if (chosen) best.push_back(row);
        }
        for (const auto& row : best) print(row, {"bn", "refit"});
        std::printf("\n");
    }

    void print_removal(const Row& row, const std::string& scope, double factor) {
        const auto removal = allocate(row, scores(row, 0), 0, scope, factor);
        Json groups = Json::array();
        std::vector<int64_t> kept;
        for (size_t g = 0; g < removal.size(); ++g) {
            const auto& group = groups_.all()[g];
            Json stays = Json::array();
            for (int64_t c = 0; c < group.channels; ++c)
                if (!std::binary_search(removal[g].begin(), removal[g].end(), c)) stays.push_back(c);
            kept.push_back(static_cast<int64_t>(stays.size()));
            groups.push_back({{"name", group.name},
                              {"layers", group.layers},
                              {"channels", group.channels},
                              {"kept", std::move(stays)}});
        }
        const auto smaller = prune::cut(model_, facts_, groups_, removal);
        std::cout << Json{{"macs_ratio", cost(smaller, example_).macs / cost(model_, example_).macs},
                          {work_.metric, evaluate(smaller, *work_.test).first},
                          {"groups", groups}}
                         .dump(1)
                  << "\n";
    }

private:
    /// Value and points of the model.
    std::pair<double, double> evaluate(const Model& model, const Dataset& data) const {
        const auto evaluation = eval::evaluate(model, data, {work_.metric}, work_.task, 250);
        const auto* metric = evaluation.find(work_.metric);
        return {work_.metric == "top1" ? metric->points : metric->figure.value.value(), metric->points};
    }

    std::string text(double value) const {
        char buffer[32];
        std::snprintf(buffer, sizeof buffer, work_.metric == "top1" ? "%.1f" : "%.3f", value);
        return buffer;
    }

    /// One line per repair; returns the mean of the points at 2x over the scopes.
    double print(const Row& row, const std::vector<std::string>& repairs) {
        const auto begin = std::chrono::steady_clock::now();
        std::vector<std::vector<at::Tensor>> by_seed;
        const int64_t seeds = row.seeded ? settings_.seeds : 1;
        for (int64_t seed = 0; seed < seeds; ++seed) by_seed.push_back(scores(row, static_cast<uint64_t>(seed)));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() /
                               static_cast<double>(seeds);
        double points = 0;
        for (const auto& repair : repairs) {
            std::string line = "| " + row.name + (repair.empty() ? "" : " + " + repair);
            for (const auto& scope : settings_.scopes) {
                for (const double factor : {1.5, 2.0, 3.0}) {
                    Cell cell;
                    // What repairs a model is calibrated by the seed as well.
                    const int64_t runs = repair.empty() ? seeds : settings_.seeds;
                    for (int64_t seed = 0; seed < runs; ++seed) {
                        const int64_t scored = std::min(seed, seeds - 1);
                        const auto removal = allocate(row, by_seed[static_cast<size_t>(scored)],
                                                      static_cast<uint64_t>(scored), scope, factor);
                        const auto [value, better] = quality(removal, repair, static_cast<uint64_t>(seed));
                        cell.values.push_back(value);
                        cell.points += better / static_cast<double>(runs);
                    }
                    if (factor == 2.0) points += cell.points / static_cast<double>(settings_.scopes.size());
                    const auto [low, high] = std::minmax_element(cell.values.begin(), cell.values.end());
                    const double mean = std::accumulate(cell.values.begin(), cell.values.end(), 0.0) /
                                        static_cast<double>(cell.values.size());
                    line += " | " + text(mean);
                    if (cell.values.size() > 1) line += " (" + text(*low) + "-" + text(*high) + ")";
                }
            }
            std::printf("%s | %.1f |\n", line.c_str(), seconds);
            std::fflush(stdout);
        }
        return points;
    }

    Workload work_;
    Settings settings_;
    Model model_;
    Inputs example_;
    Facts facts_;
    prune::Groups groups_;
    std::optional<prune::CostModel> cost_;
    std::map<std::tuple<prune::Removal, std::string, uint64_t>, std::pair<double, double>> known_;
    std::map<std::pair<std::string, uint64_t>, std::vector<prune::SensitivityPoint>> curves_;
};

}  // namespace

int main(int argc, char** argv) try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() < 2) {
        std::fprintf(stderr, "usage: prune_criteria DATA MODEL [removal CRITERION SCOPE FACTOR] [option=value ...]\n");
        return 2;
    }
    const bool removal = arguments.size() >= 6 && arguments[2] == "removal";
    std::vector<std::pair<std::string, std::string>> given;
    for (size_t i = removal ? 6 : 2; i < arguments.size(); ++i) {
        const auto equals = arguments[i].find('=');
        given.emplace_back(arguments[i].substr(0, equals),
                           equals == std::string::npos ? "" : arguments[i].substr(equals + 1));
    }
    Options options("prune_criteria", given);
    Settings settings;
    settings.examples = options.integer("examples", settings.examples, 1);
    settings.test = options.integer("test", settings.test, 0);
    settings.seeds = options.integer("seeds", settings.seeds, 1);
    settings.round_to = options.integer("round_to", settings.round_to, 1);
    settings.threads = static_cast<int>(options.integer("threads", settings.threads, 1));
    settings.only = options.text("only", "");
    settings.refit_of = options.text("refit_of", "");
    std::istringstream scopes(options.text("scopes", "uniform;global"));
    for (std::string scope; std::getline(scopes, scope, ';');) settings.scopes.push_back(scope);
    if (removal) settings.scopes = {arguments[4]};
    for (const auto& scope : settings.scopes) allocation_of(scope, "mean");  // an unknown one is refused here
    options.done();
    at::set_num_threads(settings.threads);
    Bench bench(workload(arguments[0], arguments[1]), settings);
    if (!removal) {
        bench.table();
        return 0;
    }
    for (const auto& row : rows()) {
        if (row.name != arguments[3]) continue;
        bench.print_removal(row, arguments[4], std::stod(arguments[5]));
        return 0;
    }
    throw InvalidArgument("prune_criteria", "no row is called \"" + arguments[3] + "\"", "See the table.");
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", message_of(error).c_str());
    return 1;
}
