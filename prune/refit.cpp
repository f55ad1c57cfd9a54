// Before: y = W x + b, x with all channels. After: y' = W' x' + b', x' with those that stay. W' and b' minimise
//   E |y - W' x' - b'|^2 + ridge * mean(x'^2) * |W' - W_cut|^2
// over the calibration data, where y is what the layer of the uncut model puts out (of the outputs that stay) and x'
// what the layer reads in the cut model, behind layers that were fitted before it: errors made upstream are corrected
// as far as they can be (asymmetric reconstruction, as in He et al., arXiv 1707.06168). The change D = W' - W_cut comes
// from normal equations in float64, D = (A + ridge) ^-1 B with A = E[x' x'^T], B = E[x' (y - W_cut x' - b)^T]. The
// ridge keeps the weights where there are fewer examples than inputs.
#include "criteria/readers.h"

#include <set>

namespace coppice::prune {
namespace {

constexpr const char* kWhere = "prune.channel.refit";

/// Indices along a dimension of a parameter that stay.
at::Tensor kept(const Groups& groups, const Removal& removal, const std::string& name, int64_t dim, int64_t size) {
    std::vector<bool> stays(static_cast<size_t>(size), true);
    for (size_t g = 0; g < removal.size(); ++g) {
        const std::set<int64_t> gone(removal[g].begin(), removal[g].end());
        for (const auto& slice : groups.all()[g].slices) {
            if (slice.name != name || slice.dim != dim) continue;
            for (size_t i = 0; i < slice.channel_of.size(); ++i)
                if (gone.count(slice.channel_of[i])) stays[i] = false;
        }
    }
    std::vector<int64_t> indices;
    for (size_t i = 0; i < stays.size(); ++i)
        if (stays[i]) indices.push_back(static_cast<int64_t>(i));
    return at::tensor(indices, at::kLong);
}

/// What a node's input held; the run stops there.
at::Tensor input_of(const Model& model, const Inputs& inputs, const Reader& reader) {
    struct Reached {};
    at::Tensor x;
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& values) {
        if (node != reader.node) return;
        x = values[reader.input].toTensor();
        throw Reached();
    };
    try {
        run_nodes(model, inputs, hooks);
    } catch (const Reached&) {
    }
    return x;  // undefined when these inputs take another branch
}

/// The normal equations of one layer.
class Fit {
public:
    Fit(const Reader& before, const Reader& after, const Model& original, const Model& smaller, const Groups& groups,
        const Removal& removal)
        : before_(before), after_(after) {
        const auto weight = get_attribute(original, before.weight).toTensor();
        const auto rows = kept(groups, removal, before.weight, before.weight_out, weight.size(before.weight_out));
        original_ = before.matrix(weight).index_select(0, rows).flatten(1).to(at::kDouble);               // [out', n]
        cut_ = after.matrix(get_attribute(smaller, after.weight).toTensor()).flatten(1).to(at::kDouble);  // [out', n']
        if (original_.size(0) != cut_.size(0))
            throw InternalError(kWhere, before.weight + " has other outputs than its group says", "");
        const int64_t unknowns = cut_.size(1) + (after.bias.empty() ? 0 : 1);
        a_ = at::zeros({unknowns, unknowns}, at::kDouble);
        b_ = at::zeros({unknowns, cut_.size(0)}, at::kDouble);
    }

    void add(const at::Tensor& x, const at::Tensor& smaller_x, int64_t positions, uint64_t seed) {
        const auto y = at::matmul(before_.rows(x, positions, seed).to(at::kDouble), original_.t());
        auto rows = after_.rows(smaller_x, positions, seed).to(at::kDouble);
        const auto missing = y - at::matmul(rows, cut_.t());
        if (!missing.isfinite().all().item<bool>())
            throw UnsupportedModel(std::string(kWhere) + " at " + before_.weight,
                                   "the calibration data gives NaN or infinity", "Check data and checkpoint.");
        if (!after_.bias.empty()) rows = at::cat({rows, at::ones({rows.size(0), 1}, at::kDouble)}, 1);
        a_.addmm_(rows.t(), rows);
        b_.addmm_(rows.t(), missing);
        missing_ += missing.square().sum().item<double>();
        energy_ += y.square().sum().item<double>();
        count_ += static_cast<double>(rows.size(0));
    }

    /// Least squares through hardly more points than unknowns fit these points and nothing else.
    bool has_few_rows() const { return count_ < 2 * static_cast<double>(cut_.size(1)); }
    std::string layer() const { return before_.weight.substr(0, before_.weight.rfind('.')); }

    /// Writes weight and bias; {"layer", "error_before", "error_after"}.
    Json solve(Model& smaller, double ridge) const {
        const int64_t inputs = cut_.size(1);
        const auto a = a_ / count_, b = b_ / count_;
        const double scale = a.diagonal().slice(0, 0, inputs).mean().item<double>();
        auto added = at::full({a.size(0)}, ridge * scale, at::kDouble);
        added.slice(0, inputs).zero_();  // the bias is free
        // Inputs that are always zero, or sums of others, leave A singular: a little more than rounding on the
        // diagonal.
        const double least = 1e-12 * a.diagonal().max().item<double>() + 1e-300;
        const auto factor = at::linalg_cholesky(a + at::diag(added.clamp_min(least)));
        const auto change = at::cholesky_solve(b, factor);  // [n' (+ 1), out']
        const auto old_weight = get_attribute(smaller, after_.weight).toTensor();
        const auto weights = (cut_ + change.slice(0, 0, inputs).t()).reshape_as(after_.matrix(old_weight));
        auto shape = old_weight.movedim({after_.weight_out, after_.weight_in}, {0, 1}).sizes().vec();
        set_tensor(smaller, after_.weight,
                   weights.reshape(shape)
                       .movedim({0, 1}, {after_.weight_out, after_.weight_in})
                       .to(old_weight.scalar_type())
                       .contiguous());
        if (!after_.bias.empty()) {
            const auto old_bias = get_attribute(smaller, after_.bias).toTensor();
            set_tensor(smaller, after_.bias,
                       (old_bias.detach().to(at::kDouble) + change[inputs]).to(old_bias.scalar_type()));
        }
        const double before = missing_ / count_;
        const double after =
            before - 2 * (change * b).sum().item<double>() + (change * at::matmul(a, change)).sum().item<double>();
        const double energy = std::max(energy_ / count_, 1e-300);
        return {{"layer", layer()}, {"error_before", before / energy}, {"error_after", std::max(after, 0.0) / energy}};
    }

    bool seen() const { return count_ > 0; }

private:
    const Reader before_, after_;
    at::Tensor original_, cut_, a_, b_;
    double missing_ = 0, energy_ = 0, count_ = 0;
};

bool inside_loop(const Node* node) {
    for (const auto* block = node->owningBlock(); block->owningNode(); block = block->owningNode()->owningBlock())
        if (block->owningNode()->kind() == torch::jit::prim::Loop) return true;
    return false;
}

}  // namespace

void refit(Model& smaller, const Model& original, const Groups& groups, const Removal& removal,
           const RefitOptions& options, Context& context) {
    if (options.observe.batches < 1 || options.observe.batch_size < 1 || options.positions < 1 || !(options.ridge >= 0))
        throw InvalidArgument(kWhere, "batches, batch_size and positions must be at least 1, ridge at least 0",
                              "The defaults are 8, 64, 16 and 0.001.");
    if (!context.data.calibration || context.data.calibration->size() == 0)
        throw InvalidArgument(kWhere, "there is no calibration data", "Give `calibration` in `data:`, or refit: none.");
    torch::NoGradGuard no_grad;
    const EvalMode original_eval(original), smaller_eval(smaller);
    std::map<std::string, std::vector<Reader>> before, after;  // by weight
    std::vector<Reader> order = readers(original);
    for (const auto& reader : order) before[reader.weight].push_back(reader);
    for (const auto& reader : readers(smaller)) after[reader.weight].push_back(reader);
    context.facts["refit"] = Json::array();
    std::set<std::string> done;
    std::vector<std::string> few;
    for (const auto& first : order) {
        // All layers that read the same value are fitted in one pass over the data.
        std::vector<std::pair<Reader, Fit>> fits;
        for (const auto& reader : order) {
            if (reader.value() != first.value() || done.count(reader.weight)) continue;
            done.insert(reader.weight);
            const auto old_weight = get_attribute(original, reader.weight).toTensor();
            const auto new_weight = get_attribute(smaller, reader.weight).toTensor();
            if (old_weight.size(reader.weight_in) == new_weight.size(reader.weight_in)) continue;
            const auto& twins = after[reader.weight];
            if (before[reader.weight].size() != 1 || twins.size() != 1 || !reader.has_patches() ||
                inside_loop(reader.node)) {
                context.log->info(std::string(kWhere) + ": " + reader.weight + " stays as it is (" +
                                  (reader.has_patches() ? "shared or inside a loop" : "a transposed convolution") +
                                  ")");
                continue;
            }
            fits.emplace_back(twins[0], Fit(reader, twins[0], original, smaller, groups, removal));
        }
        if (fits.empty()) continue;
        BatchIterator batches(*context.data.calibration, options.observe.batch_size, /*shuffle=*/true, context.seed);
        for (int64_t count = 0; count < options.observe.batches; ++count) {
            const auto batch = batches.next();
            if (!batch) break;
            if (context.interrupted()) throw Interrupted(kWhere, "stopped", "");
            const auto x = input_of(original, batch->inputs, first);
            const auto smaller_x = input_of(smaller, batch->inputs, fits[0].first);
            if (!x.defined() || !smaller_x.defined()) continue;
            for (auto& [twin, fit] : fits)
                fit.add(x, smaller_x, options.positions, context.seed + static_cast<uint64_t>(count));
        }
        for (auto& [twin, fit] : fits)
            if (fit.seen()) {
                context.facts["refit"].push_back(fit.solve(smaller, options.ridge));
                if (fit.has_few_rows()) few.push_back(fit.layer());
            }
        context.log->progress("re-fit", static_cast<double>(done.size()), static_cast<double>(before.size()), "");
    }
    if (!few.empty())
        context.log->warning(
            std::string(kWhere) + ": " + std::to_string(few.size()) + (few.size() > 1 ? " layers (" : " layer (") +
            few.front() + (few.size() > 1 ? ", ..." : "") +
            ") fitted to fewer than two rows of calibration data per input, which fits those rows and little else; "
            "give several times as many by data: {calibration: N} or positions");
    for (size_t g = 0; g < removal.size(); ++g)
        for (const auto& slice : groups.all()[g].slices)
            if (!removal[g].empty() && slice.parameter && !slice.produces && slice.tensor.dim() > 1 &&
                done.insert(slice.name).second)
                context.log->info(std::string(kWhere) + ": " + slice.name +
                                  " stays as it is (no plain convolution, linear or recurrent layer)");
}

}  // namespace coppice::prune
