// |q(s) - q(t)|^2 of unit maps of energy, arXiv 1612.03928.
#include "losses/features.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.attention";

// [N, C, ...] or [N, T, C] -> [N, positions], rows of norm 1; a row of zeros stays one.
at::Tensor map(const at::Tensor& features) {
    const auto energy = features.square().sum(features.dim() == 3 ? 2 : 1).flatten(1);
    return energy / energy.norm(2, 1, true).clamp_min(1e-12);
}

at::Tensor term(const std::string& name, const at::Tensor& student, const at::Tensor& teacher) {
    const auto fix = "Name layers that pruning left at one resolution, and that have positions.";
    if (student.dim() < 3 || student.dim() != teacher.dim() || student.size(0) != teacher.size(0))
        throw_shapes(kWhere, name, student, teacher, fix);
    const auto s = map(student), t = map(teacher);
    if (s.sizes() != t.sizes()) throw_shapes(kWhere, name, student, teacher, fix);
    return (s - t).square().sum(1).mean();
}

}  // namespace

std::unique_ptr<Loss> attention(std::shared_ptr<const Loss> loss, FeatureOptions options) {
    return with_features(kWhere, std::move(loss), std::move(options), term);
}

}  // namespace coppice::distill
