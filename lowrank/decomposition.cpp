// W ~ U_r S_r V_r^T, the best approximation of rank r in the Frobenius norm (Eckart and Young). As layers:
//   channel  W[o, (i, k...)] = sum_r U[o, r] V[r, (i, k...)]:           k... with r filters, then 1x1 with C_out
//   filters spatial  W[o, i, y, x]   = sum_r V[r, (i, x)] U[r, (y, o)]:         1 x kW over columns, then kH x 1 over
//   rows
#include <coppice/lowrank.h>

namespace coppice::lowrank {
namespace {

// The matrix that is decomposed, first factor's side second: [rows of the second layer, columns of the first].
at::Tensor as_matrix(const at::Tensor& weight, Form form) {
    if (form == Form::kChannel) return weight.flatten(1);  // [C_out, C_in k...]
    // [C_out, C_in, kH, kW] -> [C_out kH, C_in kW]
    return weight.permute({0, 2, 1, 3}).reshape({weight.size(0) * weight.size(2), weight.size(1) * weight.size(3)});
}

}  // namespace

Decomposition::Decomposition(const at::Tensor& weight, Form form)
    : form_(form), shape_(weight.sizes().vec()), dtype_(weight.scalar_type()) {
    const char* const where = "lowrank.svd";
    if (weight.dim() < 2 || (form == Form::kSpatial && weight.dim() != 4)) {
        std::ostringstream problem;
        problem << "a weight of shape " << weight.sizes() << " has no such form";
        throw InvalidArgument(where, problem.str(), "The spatial form is for 2-d convolutions.");
    }
    const auto matrix = as_matrix(weight.detach().to(at::kCPU, at::kDouble), form);
    if (!matrix.isfinite().all().item<bool>())
        throw UnsupportedModel(where, "a weight holds NaN or infinity", "Check the checkpoint.");
    std::tie(u_, s_, vh_) = at::linalg_svd(matrix, /*full_matrices=*/false);
    const auto values = s_.contiguous();
    values_.assign(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
}

double Decomposition::squared_error(int64_t rank) const {
    double sum = 0;
    for (size_t i = values_.size(); i > static_cast<size_t>(rank); --i) sum += values_[i - 1] * values_[i - 1];
    return sum;
}

Factors Decomposition::factors(int64_t rank) const {
    if (rank < 1 || rank > full_rank())
        throw InvalidArgument(
            "lowrank.svd", "rank is " + std::to_string(rank) + ", must be in [1, " + std::to_string(full_rank()) + "]",
            "");
    const auto root = s_.slice(0, 0, rank).sqrt();
    const auto u = u_.slice(1, 0, rank) * root;                // [rows, r]
    const auto v = vh_.slice(0, 0, rank) * root.unsqueeze(1);  // [r, columns]
    Factors factors;
    if (form_ == Form::kSpatial) {
        factors.first = v.reshape({rank, shape_[1], 1, shape_[3]});
        factors.second = u.reshape({shape_[0], shape_[2], rank, 1}).permute({0, 2, 1, 3});
    } else {
        auto first = shape_, second = shape_;
        first[0] = rank;
        second[1] = rank;
        std::fill(second.begin() + 2, second.end(), 1);
        factors.first = v.reshape(first);
        factors.second = u.reshape(second);
    }
    // contiguous: a slice would keep, and save, the whole matrix
    factors.first = factors.first.to(dtype_).contiguous().clone();
    factors.second = factors.second.to(dtype_).contiguous().clone();
    return factors;
}

}  // namespace coppice::lowrank
