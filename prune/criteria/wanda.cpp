// score[c] = sum of |W[o, i]| |x[i]| over the weights of channel c, where |x[i]| is the root mean square of what the
// layer reads at input i over the calibration data (Sun et al., arXiv 2306.11695, whose metric is for single weights;
// the root of the mean instead of the sum makes layers with more positions comparable). Summed over the weights that
// read the channel, as in FLAP's structured form of it (arXiv 2312.11983); over those that make it; or over both.
#include "criteria/readers.h"

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.wanda";

class Wanda final : public Criterion {
public:
    explicit Wanda(WandaOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<at::Tensor> scores(const Model& model, const Groups& groups, Context& context) const override {
        const auto all = readers(model);
        std::map<std::string, std::pair<at::Tensor, double>> squares;  // by weight: sum of x^2 [in], and of how many
        observe(model, {kWhere, options_.observe.batches, options_.observe.batch_size}, context, all,
                [&](const Reader& reader, const at::Tensor& x) {
                    const auto rows = x.movedim(reader.channel_dim(x.dim()), -1).to(at::kDouble);
                    auto& [sum, count] = squares[reader.weight];
                    const auto flat = rows.reshape({-1, rows.size(-1)});
                    const auto added = flat.square().sum(0);
                    sum = sum.defined() ? sum + added : added;
                    count += static_cast<double>(flat.size(0));
                });
        torch::NoGradGuard no_grad;
        std::map<std::string, std::pair<const Reader*, at::Tensor>> products;  // |W| |x| as [out, in]
        for (const auto& reader : all) {
            const auto found = squares.find(reader.weight);
            if (found == squares.end() || products.count(reader.weight)) continue;
            const auto w = reader.matrix(get_attribute(model, reader.weight).toTensor()).to(at::kDouble);
            if (!w.isfinite().all().item<bool>())
                throw UnsupportedModel(kWhere, reader.weight + " holds NaN or infinity", "Check the checkpoint.");
            const auto norm = (found->second.first / found->second.second).sqrt();
            products[reader.weight] = {&reader, w.abs().sum(2) * norm};
        }
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) {
            auto read = at::zeros({group.channels}, at::kDouble), made = read.clone();
            bool is_read = false, is_made = false;
            for (const auto& slice : group.slices) {
                const auto found = products.find(slice.name);
                if (found == products.end()) continue;
                const auto& [reader, product] = found->second;
                const bool reads = slice.dim == reader->weight_in;
                (reads ? read : made) += per_channel(product.sum(reads ? 0 : 1), slice, group.channels);
                (reads ? is_read : is_made) = true;
            }
            if (!is_read && !is_made)
                throw UnsupportedModel(std::string(kWhere) + " at " + group.name,
                                       "no convolution or linear layer reads or makes its channels",
                                       "Use criterion magnitude.");
            // A group that nothing reads (queries and keys) has only the weights that make it, and the other way round.
            const bool both = options_.weights == WandaWeights::kBoth;
            const bool take_read = is_read && (both || options_.weights == WandaWeights::kRead || !is_made);
            const bool take_made = is_made && (both || options_.weights == WandaWeights::kMade || !is_read);
            scores.push_back((take_read ? read : at::zeros_like(read)) + (take_made ? made : at::zeros_like(made)));
        }
        return scores;
    }

private:
    const WandaOptions options_;
};

}  // namespace

std::unique_ptr<Criterion> wanda(WandaOptions options) {
    check_observation(kWhere, options.observe);
    return std::make_unique<Wanda>(options);
}

}  // namespace coppice::prune
