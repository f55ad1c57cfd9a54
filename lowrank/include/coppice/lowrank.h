/// Low-rank factorisation: a layer becomes two thinner ones that compute nearly the same.
///
///     coppice::lowrank::SvdOptions options;
///     options.rank = coppice::lowrank::energy(0.9);
///     auto smaller = coppice::lowrank::svd(options)->apply(model, context);
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <coppice/graph.h>
#include <coppice/registry.h>
#include <coppice/stage.h>

namespace coppice::lowrank {

// ----------------------------------------------------------------------------------------------------- decomposition

/// How a weight is laid out as a matrix and its two factors as layers.
enum class Form {
    /// Linear [out, in] -> [r, in], [out, r]; convolution [C_out, C_in, k...] -> k... with r filters, then 1x1:
    /// SVD of [C_out, C_in k...] (arXiv 1404.0736, 1411.4229).
    kChannel,
    /// 2-d convolution [C_out, C_in, kH, kW] -> 1 x kW with r filters, then kH x 1: SVD of [C_in kW, kH C_out]
    /// (arXiv 1405.3866, closed form of arXiv 1511.06067).
    kSpatial,
};

/// Two weights that replace one: y = second * (first * x).
struct Factors {
    at::Tensor first;   ///< V: [r, in], [r, C_in, k...] or [r, C_in, 1, kW]
    at::Tensor second;  ///< U: [out, r], [C_out, r, 1...] or [C_out, r, kH, 1]
};

/// Singular value decomposition of a weight, computed in float64.
class Decomposition {
public:
    /// @param weight [out, in] or [C_out, C_in, k...], ungrouped. @throws UnsupportedModel on NaN or infinity,
    /// InvalidArgument when the form does not fit the shape
    Decomposition(const at::Tensor& weight, Form form);

    int64_t full_rank() const { return static_cast<int64_t>(values_.size()); }
    /// Descending.
    const std::vector<double>& singular_values() const { return values_; }
    /// Squared Frobenius error of the best approximation of rank `rank`: the sum of the dropped squared singular
    /// values.
    double squared_error(int64_t rank) const;
    /// The best approximation of rank `rank`, in [1, full_rank()], in the weight's dtype. Both factors get the root of
    /// the singular values, so that neither trains with gradients of another size.
    Factors factors(int64_t rank) const;

private:
    Form form_;
    std::vector<int64_t> shape_;
    at::ScalarType dtype_;
    at::Tensor u_, s_, vh_;  // float64
    std::vector<double> values_;
};

// -------------------------------------------------------------------------------------------------------------- ranks

/// What a rank rule chooses from.
struct RankQuestion {
    std::vector<double> singular_values;  ///< descending, at least one
    double macs = 0, macs_per_rank = 0;   ///< of the layer as it is; of both factors together per unit of rank
    double parameters = 0, parameters_per_rank = 0;
};

/// Chooses the rank of one layer.
class RankRule {
public:
    virtual ~RankRule() = default;
    /// In [1, number of singular values]; the latter leaves the layer as it is.
    virtual int64_t rank(const RankQuestion& question) const = 0;
};

/// The smallest rank whose squared singular values add up to at least `keep` of the sum. @param keep in (0, 1]; 1: full
/// rank
std::unique_ptr<RankRule> energy(double keep = 0.9);

/// The largest rank at which both factors cost at most `keep` of the layer's multiply-adds ("macs") or weights
/// ("parameters"), at least 1. @param keep in (0, 1]; 1 is full rank: nothing is to be saved
std::unique_ptr<RankRule> ratio(double keep = 0.5, const std::string& of = "macs");

/// Rows: energy, ratio.
const std::vector<Entry<RankRule>>& rank_rules();

// -------------------------------------------------------------------------------------------------------------- stage

/// Settings of svd().
struct SvdOptions {
    std::shared_ptr<const RankRule> rank;  ///< null: energy()
    /// "channel", "spatial" (of k x k convolutions with both sides above 1; other layers have the channel form only),
    /// or "auto": the form with the least squared error at equal multiply-adds, those of the cheaper form at its rank.
    std::string method = "auto";
    std::vector<std::string> ignore;  ///< ECMAScript regular expressions; a layer whose whole name matches one is kept
    int64_t min_size = 1024;          ///< layers with fewer weights are kept
    int64_t round_to = 1;             ///< ranks are rounded up to a multiple, which suits vector units
};

/// Stage lowrank.svd: replaces linear layers and ungrouped convolutions (1-3d) by two of lower rank where that needs
/// fewer multiply-adds. Stride, padding (also "same") and dilation go to the factor that has the kernel side; the bias
/// to the second. The factors are parameters `<weight>_v` and `<weight>_u` beside the old one, which goes. A weight
/// that several layers share is factorised once for all. Layers are kept, with the reason, where explain() says so,
/// where the rank asked for does not save anything, or where `ignore` or `min_size` says so. Needs no data; train
/// afterwards.
/// @throws UnsupportedModel when the model has no layer that can be factorised
std::unique_ptr<Stage> svd(SvdOptions options = {});

/// One layer with weights, as `coppice inspect` shows it.
struct Explanation {
    std::string layer;  ///< as in LayerNames
    std::string op;     ///< "aten::conv2d"
    bool factorisable = false;
    std::string reason;           ///< why not; empty for those that can be
    int64_t full_rank = 0;        ///< of the channel form
    int64_t break_even_rank = 0;  ///< largest rank with fewer multiply-adds than now, over all forms
};

/// Every operator with weights, in order of execution: whether lowrank.svd can factorise it, or why not. No
/// decomposition is computed.
std::vector<Explanation> explain(const Model& model, const Inputs& example);

/// Rows: lowrank.svd.
const std::vector<Entry<Stage>>& stages();

}  // namespace coppice::lowrank
