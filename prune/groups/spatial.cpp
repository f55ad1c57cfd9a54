// Pooling and resampling: leading dimensions pass, spatial ones stay.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

template <int kSpatial>
void pool(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0);
    if (x == kNoTensor) return r.refuse(node, "was not reached");
    for (size_t i = 0; i < node->outputs().size(); ++i) {
        const TensorId y = r.output(node, i);
        if (y == kNoTensor) return r.refuse(node, "was not reached");
        for (int64_t dim = 0; dim < r.rank(x); ++dim) {
            if (dim + kSpatial < r.rank(x)) {
                r.tie(x, dim, y, dim);
                continue;
            }
            r.freeze(x, dim, "is a spatial dimension of " + r.name_of(node));
            r.freeze(y, dim, "is a spatial dimension of " + r.name_of(node));
        }
    }
}

// x [N, C * f^2, H, W] -> y [N, C, f*H, f*W], channel c from c*f^2 .. (c+1)*f^2 - 1
void pixel_shuffle(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const bool shuffles = node->kind() == torch::jit::aten::pixel_shuffle;
    const TensorId wide = shuffles ? x : y, narrow = shuffles ? y : x;
    for (int64_t dim = 0; dim + 3 < r.rank(x); ++dim) r.tie(x, dim, y, dim);
    const int64_t factor = r.size(wide, -3) / r.size(narrow, -3);
    for (int64_t c = 0; c < r.size(wide, -3); ++c) r.tie(wide, -3, c, narrow, -3, c / factor);
    for (const TensorId id : {x, y})
        for (const int64_t dim : {-1, -2}) r.freeze(id, dim, "is a spatial dimension of " + r.name_of(node));
}

// x [N, g * n, ...] -> y, channel i * n + j becomes j * g + i: the g channels of one j go together, so that n shrinks.
void channel_shuffle(Relations& r, const Node* node) {
    const TensorId x = r.input(node, 0), y = r.output(node);
    const auto groups = r.integer(node->input(1));
    for (int64_t dim = 0; dim < r.rank(x); ++dim)
        if (dim != 1) r.tie(x, dim, y, dim);
    if (!groups) {
        for (const TensorId id : {x, y}) r.freeze(id, 1, "is shuffled in a number of groups that is computed");
        return;
    }
    const int64_t each = r.size(x, 1) / *groups;
    for (int64_t i = 0; i < *groups; ++i)
        for (int64_t j = 0; j < each; ++j) {
            r.tie(x, 1, i * each + j, y, 1, j * *groups + i);
            r.tie(x, 1, i * each + j, x, 1, j);
        }
}

}  // namespace

const RuleTable& spatial_rules() {
    static const RuleTable kTable = {
        {"aten::_upsample_bicubic2d_aa", {pool<2>}},
        {"aten::_upsample_bilinear2d_aa", {pool<2>}},
        {"aten::_upsample_nearest_exact1d", {pool<1>}},
        {"aten::_upsample_nearest_exact2d", {pool<2>}},
        {"aten::_upsample_nearest_exact3d", {pool<3>}},
        {"aten::adaptive_avg_pool1d", {pool<1>}},
        {"aten::adaptive_avg_pool2d", {pool<2>}},
        {"aten::adaptive_avg_pool3d", {pool<3>}},
        {"aten::adaptive_max_pool1d", {pool<1>}},
        {"aten::adaptive_max_pool2d", {pool<2>}},
        {"aten::adaptive_max_pool3d", {pool<3>}},
        {"aten::avg_pool1d", {pool<1>}},
        {"aten::avg_pool2d", {pool<2>}},
        {"aten::avg_pool3d", {pool<3>}},
        {"aten::channel_shuffle", {channel_shuffle}},
        {"aten::max_pool1d", {pool<1>}},
        {"aten::max_pool1d_with_indices", {pool<1>}},
        {"aten::max_pool2d", {pool<2>}},
        {"aten::max_pool2d_with_indices", {pool<2>}},
        {"aten::max_pool3d", {pool<3>}},
        {"aten::max_pool3d_with_indices", {pool<3>}},
        {"aten::native_channel_shuffle", {channel_shuffle}},
        {"aten::pixel_shuffle", {pixel_shuffle}},
        {"aten::pixel_unshuffle", {pixel_shuffle}},
        {"aten::upsample_bicubic2d", {pool<2>}},
        {"aten::upsample_bilinear2d", {pool<2>}},
        {"aten::upsample_linear1d", {pool<1>}},
        {"aten::upsample_nearest1d", {pool<1>}},
        {"aten::upsample_nearest2d", {pool<2>}},
        {"aten::upsample_nearest3d", {pool<3>}},
        {"aten::upsample_trilinear3d", {pool<3>}},
    };
    return kTable;
}

}  // namespace coppice::prune
