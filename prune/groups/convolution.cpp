// Convolutions of any dimension, transposed and grouped ones included.
//
// Weights are [C_out, C_in/groups, k...], transposed [C_in, C_out/groups, k...]. Grouped convolutions keep their number
// of groups and lose the same channels of each, unless a group has a single input or output (depthwise): then whole
// groups vanish.
#include "groups/relations.h"

namespace coppice::prune {
namespace {

struct Channels {
    int64_t dim;        ///< of input and output: 1, or 0 without a batch
    int64_t in, out;    ///< per group
    bool whole_groups;  ///< groups vanish as a whole
};

Channels channels_of(const ConvView& view, const std::vector<int64_t>& input, const std::vector<int64_t>& output) {
    Channels c;
    c.dim = static_cast<int64_t>(input.size()) - view.dims - 1;
    c.in = input[c.dim] / view.groups;
    c.out = output[c.dim] / view.groups;
    c.whole_groups = view.groups > 1 && (c.in == 1 || c.out == 1);
    return c;
}

void relate(Relations& r, const Node* node) {
    const auto view = as_conv(const_cast<Node*>(node));
    if (!view) return r.refuse(node, "has settings that are computed at run time");
    const TensorId x = r.tensor(view->input), w = r.tensor(view->weight), y = r.output(node);
    const TensorId b = view->has_bias ? r.tensor(view->bias) : kNoTensor;
    if (x == kNoTensor || w == kNoTensor || y == kNoTensor) return r.refuse(node, "was not reached");
    const auto c = channels_of(*view, r.shape(x), r.shape(y));
    if (c.dim == 1) r.tie(x, 0, y, 0);
    for (int64_t i = 1; i <= view->dims; ++i) {
        for (const TensorId id : {x, y}) r.freeze(id, -i, "is a spatial dimension of " + r.name_of(node));
        r.freeze(w, -i, "is a spatial dimension of " + r.name_of(node));
    }
    const int64_t in_dim = view->transposed ? 0 : 1, out_dim = view->transposed ? 1 : 0;
    if (view->groups == 1) {
        r.tie(x, c.dim, w, in_dim);
        r.tie(y, c.dim, w, out_dim);
    } else if (c.whole_groups) {
        for (int64_t g = 0; g < view->groups; ++g) {
            for (int64_t i = 1; i < c.in; ++i) r.tie(x, c.dim, g * c.in, x, c.dim, g * c.in + i);
            for (int64_t o = 0; o < c.out; ++o) r.tie(x, c.dim, g * c.in, y, c.dim, g * c.out + o);
        }
        r.tie(view->transposed ? x : y, c.dim, w, 0);
        r.freeze(w, 1, "is the width of one group of " + r.name_of(node));
    } else {
        for (int64_t g = 1; g < view->groups; ++g) {
            for (int64_t i = 0; i < c.in; ++i) r.tie(x, c.dim, i, x, c.dim, g * c.in + i);
            for (int64_t o = 0; o < c.out; ++o) r.tie(y, c.dim, o, y, c.dim, g * c.out + o);
        }
        r.tie(view->transposed ? x : y, c.dim, w, 0);
        const TensorId inner = view->transposed ? y : x;
        for (int64_t i = 0; i < r.size(w, 1); ++i) r.tie(inner, c.dim, i, w, 1, i);
    }
    r.tie(b, 0, y, c.dim);
    // A whole-group transposed convolution stores its outputs per group along dimension 0, with the inputs.
    r.produces(view->weight, view->groups > 1 && c.whole_groups ? 0 : out_dim, node);
}

void edit(Cutter& cut, const Node* before, Node* after) {
    const auto view = as_conv(const_cast<Node*>(before));
    if (!view || view->groups == 1) return;
    const TensorId x = cut.input(before, 0), y = cut.output(before);
    const auto c = channels_of(*view, cut.relations().shape(x), cut.relations().shape(y));
    if (c.whole_groups && cut.touched(x, c.dim))
        cut.set_constant(after, argument_index(before, "groups"), cut.new_size(x, c.dim) / c.in);
}

}  // namespace

const RuleTable& convolution_rules() {
    static const RuleTable kTable = {
        {"aten::_convolution", {relate, edit}},     {"aten::conv1d", {relate, edit}},
        {"aten::conv2d", {relate, edit}},           {"aten::conv3d", {relate, edit}},
        {"aten::conv_transpose1d", {relate, edit}}, {"aten::conv_transpose2d", {relate, edit}},
        {"aten::conv_transpose3d", {relate, edit}}, {"aten::convolution", {relate, edit}},
    };
    return kTable;
}

}  // namespace coppice::prune
