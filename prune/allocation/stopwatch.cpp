// Times of single operators and of pairs of models, by this machine's clocks.
//
// An operator inside a model finds its input in a cache, where there is room, because the operator before has just
// written it, and its weights in memory, unless all weights of the model fit in a cache. So a run is done twice, with
// the same activations and with weights from two places of a pool as large as the model's weights, and the second one
// is timed.
#include <ATen/Parallel.h>

#include <coppice/clock.h>
#include <coppice/deploy.h>
#include <coppice/error.h>
#include <coppice/prune.h>

#include <cmath>
#include <mutex>
#include <random>
#include <sstream>

#include "allocation/allocation.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.latency";
// A pool much larger than any cache is as cold as memory gets.
constexpr int64_t kLargestPool = int64_t{256} << 20;

class Clock final : public Stopwatch {
public:
    Clock(bool cpu, std::function<bool()> interrupted) : cpu_(cpu), interrupted_(std::move(interrupted)) {}

    std::vector<double> seconds(const std::vector<OperatorRun>& runs, int64_t weight_bytes) const override {
        torch::NoGradGuard no_grad;
        // Known from before, under the same conditions.
        static std::mutex mutex;
        static std::map<std::string, double> cache;
        std::lock_guard<std::mutex> lock(mutex);
        int64_t pool_bytes = int64_t{1} << 20;
        while (pool_bytes < weight_bytes && pool_bytes < kLargestPool) pool_bytes *= 2;
        std::vector<std::string> keys;
        std::map<std::string, const OperatorRun*> open;
        for (const auto& run : runs) {
            keys.push_back((cpu_ ? "cpu " : "wall ") + std::to_string(at::get_num_threads()) + " threads, pool " +
                           std::to_string(pool_bytes) + ", " + run.key);
            if (!cache.count(keys.back())) open.emplace(keys.back(), &run);
        }
        if (!open.empty()) {
            std::vector<const OperatorRun*> distinct;
            for (const auto& [key, run] : open) distinct.push_back(run);
            const auto measured = measure(distinct, pool_bytes);
            size_t i = 0;
            for (const auto& [key, run] : open) cache[key] = measured[i++];
        }
        std::vector<double> result;
        for (const auto& key : keys) result.push_back(cache.at(key));
        return result;
    }

    TimeRatio ratio(const Model& before, const Model& after, const Inputs& example) const override {
        torch::NoGradGuard no_grad;
        torch::jit::Module modules[2] = {deployed(before, example), deployed(after, example)};
        for (auto& module : modules)  // the executor profiles its first two runs and compiles in the third
            for (int run = 0; run < 3; ++run) module.forward(example);
        const double once = timed([&] { modules[0].forward(example); });
        const int calls = static_cast<int>(std::clamp(5e-3 / std::max(once, 1e-7), 1.0, 1000.0));
        std::mt19937_64 random(0);
        std::vector<double> times[2], logs;
        double spent = 0;
        // At least 11 pairs; up to 101 within ten seconds.
        for (int pair = 0; pair < 101 && (pair < 11 || spent < 10); ++pair) {
            poll();
            double taken[2];
            const size_t first = random() & 1;
            for (const size_t which : {first, 1 - first}) {
                taken[which] = timed([&] {
                    for (int call = 0; call < calls; ++call) modules[which].forward(example);
                });
                times[which].push_back(taken[which] / calls);
                spent += taken[which];
            }
            logs.push_back(std::log(taken[1] / taken[0]));
        }
        std::sort(logs.begin(), logs.end());
        TimeRatio ratio;
        ratio.pairs = static_cast<int64_t>(logs.size());
        // 95 % interval of the median from order statistics: ranks n/2 -+ 0.98 sqrt(n), which is exact enough from 11
        // on.
        const auto n = static_cast<double>(logs.size());
        const auto half = static_cast<size_t>(std::floor((n - 1.96 * std::sqrt(n)) / 2));
        ratio.median = std::exp(logs[logs.size() / 2]);
        ratio.low = std::exp(logs[half]);
        ratio.high = std::exp(logs[logs.size() - 1 - half]);
        ratio.before_ms = 1e3 * middle(times[0]);
        ratio.after_ms = 1e3 * middle(times[1]);
        return ratio;
    }

private:
    /// Memory that arguments are views of.
    struct Arena {
        at::Tensor activations, weights;
        int64_t next_weight = 0;
    };

    static int64_t padded(int64_t elements) { return (elements + 15) / 16 * 16; }  // a cache line of floats

    static int64_t elements_of(const OperatorRun& run, bool weight) {
        int64_t elements = 0;
        for (size_t i = 0; i < run.arguments.size(); ++i) {
            if (run.weight[i] != weight || !(run.arguments[i].isTensor() || run.arguments[i].isTensorList())) continue;
            for (const auto& tensor : all_tensors(run.arguments[i]))
                if (tensor.scalar_type() == at::kFloat) elements += padded(tensor.numel());
        }
        return elements;
    }

    static at::Tensor real(const at::Tensor& meta, bool weight, Arena& arena, int64_t& next_activation) {
        if (meta.scalar_type() != at::kFloat)
            return at::zeros(meta.sizes(), meta.options().device(at::kCPU)).as_strided(meta.sizes(), meta.strides());
        auto& next = weight ? arena.next_weight : next_activation;
        const auto& pool = weight ? arena.weights : arena.activations;
        if (next + padded(meta.numel()) > pool.numel()) next = 0;
        const auto tensor = pool.as_strided(meta.sizes(), meta.strides(), next);
        next += padded(meta.numel());
        return tensor;
    }

    static torch::jit::Stack stack_of(const OperatorRun& run, Arena& arena) {
        torch::jit::Stack stack;
        int64_t next_activation = 0;
        for (size_t i = 0; i < run.arguments.size(); ++i) {
            const auto& argument = run.arguments[i];
            if (argument.isTensor() && argument.toTensor().defined()) {
                stack.emplace_back(real(argument.toTensor(), run.weight[i], arena, next_activation));
            } else if (argument.isTensorList()) {
                c10::List<at::Tensor> tensors;
                for (const auto& tensor : argument.toTensorVector())
                    tensors.push_back(real(tensor, run.weight[i], arena, next_activation));
                stack.emplace_back(tensors);
            } else {
                stack.push_back(argument);
            }
        }
        return stack;
    }

    std::vector<double> measure(const std::vector<const OperatorRun*>& runs, int64_t pool_bytes) const {
        Arena arena;
        int64_t activations = 16, weights = pool_bytes / int64_t{sizeof(float)};
        for (const auto* run : runs) {
            activations = std::max(activations, elements_of(*run, false));
            weights = std::max(weights, elements_of(*run, true));
        }
        const auto fill = at::arange(1, 17, at::kFloat).div(64);  // ordinary numbers, however often they are added up
        const auto filled = [&](int64_t elements) { return fill.repeat({(elements + 15) / 16}).contiguous(); };
        arena.activations = filled(activations);
        arena.weights = filled(weights);
        std::vector<torch::jit::Operation> operations;
        std::vector<double> best(runs.size(), std::numeric_limits<double>::infinity());
        std::vector<size_t> order;
        const double begin = cpu_seconds(/*with_children=*/false);
        for (size_t i = 0; i < runs.size(); ++i) {
            poll();
            operations.push_back(runs[i]->node->getOperation());
            try {
                auto stack = stack_of(*runs[i], arena);
                operations[i](stack);
                stack = stack_of(*runs[i], arena);
                best[i] = timed([&] { operations[i](stack); });
                order.push_back(i);
            } catch (const c10::Error&) {
                best[i] = std::numeric_limits<double>::quiet_NaN();
            } catch (const std::runtime_error&) {
                best[i] = std::numeric_limits<double>::quiet_NaN();
            }
        }
        // Rounds for about twenty seconds of CPU time, but at least four and at most eight: a busy machine, where each
        // takes longer, needs no fewer.
        const int rounds =
            static_cast<int>(std::clamp(20.0 / std::max(cpu_seconds(/*with_children=*/false) - begin, 1e-6), 4.0, 8.0));
        std::mt19937_64 random(0);
        for (int round = 0; round < rounds; ++round) {
            std::shuffle(order.begin(), order.end(), random);
            arena.activations.copy_(filled(activations).narrow(0, 0, arena.activations.numel()));
            for (const size_t i : order) {
                poll();
                // An operator below 100 us is called as often as fills them, so that the clock's own time is small.
                const int calls = static_cast<int>(std::clamp(1e-4 / std::max(best[i], 1e-7), 1.0, 100.0));
                auto warm = stack_of(*runs[i], arena);
                operations[i](warm);
                std::vector<torch::jit::Stack> stacks;
                for (int call = 0; call < calls; ++call) stacks.push_back(stack_of(*runs[i], arena));
                const double taken = timed([&] {
                    for (auto& stack : stacks) operations[i](stack);
                });
                best[i] = std::min(best[i], taken / calls);
            }
        }
        return best;
    }

    static torch::jit::Module deployed(const Model& model, const Inputs& example) {
        auto copy = model.clone();
        copy.eval();
        fold_batch_norm(copy, example);
        fuse_elementwise(copy, example);
        to_channels_last(copy, example);
        std::stringstream archive;
        copy.module().save(archive);
        auto module = torch::jit::load(archive, at::kCPU);
        module.eval();
        return module;
    }

    double now() const { return cpu_ ? cpu_seconds(/*with_children=*/false) : wall_seconds(); }

    double timed(const std::function<void()>& call) const {
        const double start = now();
        call();
        return now() - start;
    }

    static double middle(std::vector<double> values) {
        std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
        return values[values.size() / 2];
    }

    void poll() const {
        if (interrupted_ && interrupted_()) throw Interrupted(kWhere, "stopped by request", "");
    }

    const bool cpu_;
    const std::function<bool()> interrupted_;
};

}  // namespace

std::shared_ptr<const Stopwatch> wall_clock(std::function<bool()> interrupted) {
    return std::make_shared<Clock>(false, std::move(interrupted));
}

std::shared_ptr<const Stopwatch> cpu_clock(std::function<bool()> interrupted) {
    return std::make_shared<Clock>(true, std::move(interrupted));
}

}  // namespace coppice::prune
