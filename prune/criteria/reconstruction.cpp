// Channels go in the order in which the layers that read them miss them least (ThiNet, Luo et al., arXiv 1707.06342,
// algorithm 1): in every step the channel whose removal, on top of those gone already, adds least to the reconstruction
// error E |W x - W' x'|^2. The score is that error when the channel goes, as a share of E |W x|^2, added up over the
// layers that read the channel: comparable between groups as it is.
//
// Where ThiNet draws one output value per sampled position, all outputs of a position count here, by the moments
// M = E[x x^T] of what a layer reads (x: the patch of a convolution). Without a re-fit the error of removing the
// channels T is the sum over c, d in T of K[c, d], K[c, d] = sum over i of c, j of d of (W^T W)[i, j] M[i, j].
//
// With refit the error is what remains when the weights of the other inputs are fitted anew. Removing channel c, with
// H = M^-1, costs tr(W_c (H_cc)^-1 W_c^T), then W -= W_c (H_cc)^-1 H_c: and H -= H_:c (H_cc)^-1 H_c: (optimal brain
// surgeon for blocks, as in Kurtic et al., arXiv 2302.04089).
#include "criteria/readers.h"

#include <limits>

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.reconstruction";

/// One layer as a linear map of what it reads.
struct Map {
    at::Tensor weight;   // [out, n]
    at::Tensor moments;  // [n, n]
    double energy = 0;   // E |W x|^2
};

/// The columns of a map by channel: [C, columns of a channel].
struct Read {
    const Map* map;
    at::Tensor columns;
};

/// Marks the order of removal: errors[c] never falls from one removed channel to the next.
class Ranking {
public:
    explicit Ranking(int64_t channels) : scores_(at::zeros({channels}, at::kDouble)) {}
    void remove(int64_t channel, double error) {
        // Errors of channels that cancel one another may fall; the step keeps the order where they do not rise.
        constexpr double kStep = 1e-9;
        last_ = std::max(last_ + kStep, error);
        scores_[channel] = last_;
    }
    const at::Tensor& scores() const { return scores_; }

private:
    at::Tensor scores_;
    double last_ = 0;
};

/// @param k [C, C] as above
at::Tensor greedy(const at::Tensor& k) {
    const int64_t channels = k.size(0);
    Ranking ranking(channels);
    auto costs = k.diagonal().clone();  // what each channel would add
    double error = 0;
    for (int64_t step = 0; step < channels; ++step) {
        const int64_t channel = costs.argmin().item<int64_t>();
        error += costs[channel].item<double>();
        ranking.remove(channel, error);
        costs += 2 * k.select(1, channel);
        costs[channel] = std::numeric_limits<double>::infinity();
    }
    return ranking.scores();
}

class Refitted {
public:
    Refitted(const Read& read, double ridge) : columns_(read.columns), energy_(read.map->energy) {
        weight_ = read.map->weight.clone();
        const auto& m = read.map->moments;
        inverse_ = at::cholesky_inverse(
            at::linalg_cholesky(m + (ridge * m.diagonal().mean()).clamp_min(1e-30) * at::eye(m.size(0), at::kDouble)));
    }
    /// [C] what removing each channel adds, as a share of the output; rubbish for channels that are gone.
    at::Tensor costs() const {
        const auto flat = columns_.flatten();
        const int64_t channels = columns_.size(0), width = columns_.size(1);
        const auto w = weight_.index_select(1, flat).reshape({-1, channels, width}).permute({1, 2, 0});  // [C, w, out]
        return (w * at::linalg_solve(blocks(columns_), w)).sum({1, 2}) / energy_;
    }
    void remove(int64_t channel) {
        const auto c = columns_[channel];
        const auto rows = at::linalg_solve(blocks(c.unsqueeze(0))[0], inverse_.index_select(0, c));  // [w, n]
        weight_ -= at::matmul(weight_.index_select(1, c), rows);
        inverse_ -= at::matmul(inverse_.index_select(1, c), rows);
        // Gone: exact zeros, and a unit block so that costs() can be solved for all channels at once.
        weight_.index_fill_(1, c, 0);
        inverse_.index_fill_(0, c, 0).index_fill_(1, c, 0).diagonal().index_fill_(0, c, 1);
    }

private:
    at::Tensor blocks(const at::Tensor& columns) const {  // [C, w] -> [C, w, w]
        const auto rows = columns.unsqueeze(2).expand({-1, -1, columns.size(1)});
        const auto others = columns.unsqueeze(1).expand({-1, columns.size(1), -1});
        return at::index(inverse_, c10::List<std::optional<at::Tensor>>({rows, others}));
    }

    at::Tensor columns_, weight_, inverse_;
    double energy_;
};

at::Tensor greedy(std::vector<Refitted> reads, int64_t channels) {
    Ranking ranking(channels);
    auto gone = at::zeros({channels}, at::kDouble);
    double error = 0;
    for (int64_t step = 0; step < channels; ++step) {
        auto costs = gone.clone();
        for (const auto& read : reads) costs += read.costs();
        const int64_t channel = costs.argmin().item<int64_t>();
        error += costs[channel].item<double>();
        ranking.remove(channel, error);
        for (auto& read : reads) read.remove(channel);
        gone[channel] = std::numeric_limits<double>::infinity();
    }
    return ranking.scores();
}

class Reconstruction final : public Criterion {
public:
    explicit Reconstruction(ReconstructionOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        torch::NoGradGuard no_grad;
        std::vector<Reader> layers;
        for (auto& reader : readers(model))
            if (reader.has_patches()) layers.push_back(reader);
        const auto maps = observe_maps(model, layers, context);
        std::vector<std::vector<Read>> reads(groups.all().size());
        for (size_t i = 0; i < layers.size(); ++i) {
            if (maps[i].energy <= 0) continue;  // nothing arrives there, nothing is lost
            const int64_t positions = maps[i].weight.size(1) / layers[i].inputs;
            for (const auto& tap : taps_of_reader(groups, layers[i])) {
                const auto columns = tap.indices.unsqueeze(2) * positions + at::arange(positions);
                reads[tap.group].push_back({&maps[i], columns.flatten(1)});
            }
        }
        std::vector<at::Tensor> scores, energies;
        for (size_t g = 0; g < reads.size(); ++g) {
            if (context.interrupted()) throw Interrupted(kWhere, "stopped", "");
            if (reads[g].empty()) {
                // Nothing to reconstruct but the channels themselves.
                if (energies.empty()) energies = own_energies(model, groups, context);
                scores.push_back(greedy(at::diag(energies[g] / energies[g].sum().clamp_min(1e-30))));
            } else if (options_.refit) {
                std::vector<Refitted> fitted;
                for (const auto& read : reads[g]) fitted.emplace_back(read, options_.ridge);
                scores.push_back(greedy(std::move(fitted), groups.all()[g].channels));
            } else {
                scores.push_back(greedy(products(reads[g], groups.all()[g].channels)));
            }
        }
        return scores;
    }

private:
    std::vector<Map> observe_maps(const Model& model, const std::vector<Reader>& layers, Context& context) const {
        std::vector<Map> maps(layers.size());
        // Linear layers that read the same value (queries, keys, values) share its moments.
        std::map<std::pair<const Value*, const Node*>, at::Tensor> sums;
        const auto key = [](const Reader& reader) {
            return std::make_pair(reader.value(), reader.conv ? reader.node : nullptr);
        };
        std::vector<Reader> distinct;
        for (const auto& reader : layers)
            if (sums.emplace(key(reader), at::Tensor()).second) distinct.push_back(reader);
        std::map<std::pair<const Value*, const Node*>, double> counts;
        uint64_t draw = context.seed;
        observe(model, {kWhere, options_.observe.batches, options_.observe.batch_size}, context, distinct,
                [&](const Reader& reader, const at::Tensor& x) {
                    const auto rows = reader.rows(x, options_.positions, draw++).to(at::kDouble);
                    auto& sum = sums[key(reader)];
                    if (!sum.defined()) sum = at::zeros({rows.size(1), rows.size(1)}, at::kDouble);
                    sum.addmm_(rows.t(), rows);
                    counts[key(reader)] += static_cast<double>(rows.size(0));
                });
        for (size_t i = 0; i < layers.size(); ++i) {
            const auto& sum = sums[key(layers[i])];
            if (!sum.defined()) continue;  // a branch that the calibration data did not take
            const auto w = layers[i].matrix(get_attribute(model, layers[i].weight).toTensor()).to(at::kDouble);
            if (!w.isfinite().all().item<bool>())
                throw UnsupportedModel(kWhere, layers[i].weight + " holds NaN or infinity", "Check the checkpoint.");
            maps[i].weight = w.flatten(1);
            maps[i].moments = sum / counts[key(layers[i])];
            maps[i].energy = (at::matmul(maps[i].weight, maps[i].moments) * maps[i].weight).sum().item<double>();
        }
        return maps;
    }

    /// K of the head of this file, as shares, added up over the layers that read the group.
    static at::Tensor products(const std::vector<Read>& reads, int64_t channels) {
        auto k = at::zeros({channels, channels}, at::kDouble);
        for (const auto& read : reads) {
            const auto flat = read.columns.flatten();
            const int64_t width = read.columns.size(1);
            const auto w = read.map->weight.index_select(1, flat);
            const auto m = read.map->moments.index_select(0, flat).index_select(1, flat);
            k += (at::matmul(w.t(), w) * m).reshape({channels, width, channels, width}).sum({1, 3}) / read.map->energy;
        }
        return k;
    }

    /// E |x[c]|^2 of what each group writes: [C].
    std::vector<at::Tensor> own_energies(const Model& model, const Groups& groups, Context& context) const {
        return mean_over_maps(
            model, groups, {kWhere, options_.observe.batches, options_.observe.batch_size}, context,
            [](const at::Tensor& maps) { return maps.to(at::kDouble).square().transpose(0, 1).flatten(1).mean(1); });
    }

    const ReconstructionOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> reconstruction(ReconstructionOptions options) {
    check_observation(kWhere, options.observe);
    if (options.positions < 1 || !(options.ridge >= 0))
        throw InvalidArgument(kWhere, "positions must be at least 1 and ridge at least 0",
                              "The defaults are 16 and 0.01.");
    return std::make_unique<Reconstruction>(options);
}

}  // namespace coppice::prune
