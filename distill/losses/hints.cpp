// |s - t|^2 / |t|^2 of whole layers, after arXiv 1412.6550.
#include "losses/features.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.hints";

at::Tensor term(const std::string& name, const at::Tensor& student, const at::Tensor& teacher) {
    if (student.sizes() != teacher.sizes())
        throw_shapes(
            kWhere, name, student, teacher,
            "Name layers that kept their width, or use distill.attention, which compares without the channels.");
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12);
}

}  // namespace

std::unique_ptr<Loss> hints(std::shared_ptr<const Loss> loss, FeatureOptions options) {
    return with_features(kWhere, std::move(loss), std::move(options), term);
}

}  // namespace coppice::distill
