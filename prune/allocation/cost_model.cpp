// Multiply-adds, parameters and bytes as a function of the channels kept per group.
//
// The count of one operator is proportional to the sizes of the dimensions it runs over: a convolution's to the
// elements of its weight (its output's size is fixed), a product of two computed tensors to its output times the
// contracted dimension. Each of these sizes is a fixed part plus, per group, kept channels times indices per channel.
#include "allocation/allocation.h"
#include "groups/relations.h"

namespace coppice::prune {

double Width::at(const std::vector<int64_t>& kept) const {
    double width = fixed;
    for (const auto& [group, per_channel] : terms) width += per_channel * static_cast<double>(kept[group]);
    return width;
}

Width width_of(const Relations& relations, const Groups& groups, int32_t tensor, int64_t dim) {
    Width width;
    width.original = static_cast<double>(std::max<int64_t>(relations.size(tensor, dim), 1));
    std::map<size_t, double> terms;
    for (int64_t i = 0; i < relations.size(tensor, dim); ++i) {
        const auto place = relations.places.find(relations.class_of(tensor, dim, i));
        if (place == relations.places.end())
            width.fixed += 1;
        else
            terms[static_cast<size_t>(place->second.group)] += 1;
    }
    for (const auto& [group, indices] : terms)
        width.terms.emplace_back(group, indices / static_cast<double>(groups.all()[group].channels));
    if (width.terms.empty()) width.fixed = width.original;
    return width;
}

double CostModel::total(const std::vector<Term>& terms, const std::vector<int64_t>& kept) const {
    std::vector<double> ratios;
    for (const auto& width : widths_) ratios.push_back(width.ratio(kept));
    double total = 0;
    for (const auto& term : terms) {
        double amount = term.amount;
        for (const size_t width : term.widths) amount *= ratios[width];
        total += amount;
    }
    return total;
}

double CostModel::macs(const std::vector<int64_t>& kept) const {
    return total(mac_terms_, kept);
}
double CostModel::parameters(const std::vector<int64_t>& kept) const {
    return total(parameter_terms_, kept);
}
double CostModel::bytes(const std::vector<int64_t>& kept) const {
    return total(byte_terms_, kept);
}
double CostModel::seconds(const std::vector<int64_t>& kept) const {
    if (!latency_)
        throw InvalidArgument("prune.cost", "the model has not been timed", "Give a LatencyModel to set_latency().");
    return latency_->seconds(kept);
}

CostModel::CostModel(const Groups& groups) {
    for (size_t g = 0; g < groups.all().size(); ++g) {
        const auto channels = static_cast<double>(groups.all()[g].channels);
        widths_.push_back({0, channels, {{g, 1.0}}});
        mac_terms_.push_back({channels, {g}});
        parameter_terms_.push_back({channels, {g}});
        byte_terms_.push_back({channels, {g}});
        baseline_macs_ += channels;
        baseline_parameters_ += channels;
    }
}

CostModel::CostModel(const Model& model, const Inputs& example, const Groups& groups) {
    const auto& relations = groups.relations();
    if (!relations) throw InvalidArgument("prune.cost", "the groups were made by hand", "Use find_groups().");
    const auto& r = *relations;
    std::map<std::pair<TensorId, int64_t>, size_t> known;
    const auto add_width = [&](Term& term, TensorId id, int64_t dim) {
        if (id == kNoTensor) return;
        dim = r.wrap(id, dim);
        auto [found, added] = known.emplace(std::make_pair(id, dim), widths_.size());
        if (added) widths_.push_back(width_of(r, groups, id, dim));
        if (!widths_[found->second].terms.empty()) term.widths.push_back(found->second);
    };
    const auto add_all = [&](Term& term, TensorId id) {
        if (id == kNoTensor) return;
        for (int64_t dim = 0; dim < r.rank(id); ++dim) add_width(term, id, dim);
    };
    const auto counted = coppice::cost(model, example);
    for (const auto& layer : counted.layers) {
        if (layer.macs <= 0) continue;
        baseline_macs_ += layer.macs;
        auto* node = const_cast<Node*>(layer.node);
        Term term{layer.macs, {}};
        if (const auto conv = as_conv(node)) {
            add_all(term, r.find_tensor(conv->weight));
        } else if (const auto linear = as_linear(node)) {
            add_all(term, r.find_tensor(linear->weight));
        } else if (const auto recurrent = as_recurrent(node)) {
            double elements = 0;
            for (const auto* weight : recurrent->weights)
                if (const TensorId id = r.find_tensor(weight); id != kNoTensor && r.rank(id) == 2)
                    elements += static_cast<double>(c10::multiply_integers(r.shape(id)));
            for (const auto* weight : recurrent->weights) {
                const TensorId id = r.find_tensor(weight);
                if (id == kNoTensor || r.rank(id) != 2) continue;
                Term part{layer.macs * static_cast<double>(c10::multiply_integers(r.shape(id))) / elements, {}};
                add_all(part, id);
                mac_terms_.push_back(part);
            }
            continue;
        } else if (const auto attention = as_attention(node)) {
            // q k^T counts L x S x E, the weighted sum of values L x S x Ev, for each head.
            const TensorId q = r.find_tensor(attention->query), v = r.find_tensor(attention->value);
            if (q != kNoTensor && v != kNoTensor) {
                const auto e = static_cast<double>(r.size(q, -1)), ev = static_cast<double>(r.size(v, -1));
                Term second{layer.macs * ev / (e + ev), {}};
                term.amount = layer.macs * e / (e + ev);
                add_all(term, q);
                for (int64_t dim = 0; dim + 1 < r.rank(q); ++dim) add_width(second, q, dim);
                add_width(second, v, -1);
                mac_terms_.push_back(second);
            }
        } else if (const auto product = as_matmul(node); product && node->kind() != torch::jit::aten::einsum) {
            add_all(term, r.find_tensor(node->output()));
            if (const TensorId left = r.find_tensor(product->left); left != kNoTensor) add_width(term, left, -1);
        }
        mac_terms_.push_back(std::move(term));
    }
    std::unordered_set<std::string> buffers;
    std::unordered_set<const at::TensorImpl*> seen;  // shared tensors have several names
    double fixed_bytes = 0;                          // of what no operator reads
    for (const auto& named : named_tensors(model)) {
        if (named.role == Role::kBuffer) buffers.insert(named.name);
        if (seen.insert(named.tensor.unsafeGetTensorImpl()).second)
            fixed_bytes += static_cast<double>(named.tensor.nbytes());
    }
    for (const auto& parameter : r.parameters()) {
        Term term{static_cast<double>(parameter.tensor.numel()), {}};
        add_all(term, parameter.id);
        byte_terms_.push_back({static_cast<double>(parameter.tensor.nbytes()), term.widths});
        fixed_bytes -= byte_terms_.back().amount;
        if (buffers.count(parameter.name)) continue;
        baseline_parameters_ += term.amount;
        parameter_terms_.push_back(std::move(term));
    }
    byte_terms_.push_back({fixed_bytes, {}});
}

}  // namespace coppice::prune
