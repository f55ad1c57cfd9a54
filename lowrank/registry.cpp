#include <coppice/lowrank.h>

namespace coppice::lowrank {
namespace {

std::unique_ptr<RankRule> make_energy(Options& o) {
    return energy(o.number_in("keep", 0.9, 1e-6, 1, "share of the squared singular values to keep; 1: full rank"));
}

std::unique_ptr<RankRule> make_ratio(Options& o) {
    const double keep = o.number_in("keep", 0.5, 1e-6, 1, "share of each layer's cost to keep; 1: full rank");
    return ratio(keep, o.choice("of", "macs", {"macs", "parameters"}, "the cost that counts"));
}

std::unique_ptr<Stage> make_svd(Options& o) {
    SvdOptions options;
    options.rank = make(o, "rank", "energy", rank_rules(), "rule that chooses each layer's rank");
    options.method = o.choice("method", options.method, {"auto", "channel", "spatial"},
                              "form of convolutions: k x k then 1x1, 1xk then kx1, or the better of both");
    options.ignore = o.texts("ignore", {}, "regular expressions of layers to keep");
    options.min_size = o.integer("min_size", options.min_size, 0, INT64_MAX, "layers with fewer weights are kept");
    options.round_to = o.integer("round_to", options.round_to, 1, 4096, "ranks are rounded up to a multiple");
    return svd(std::move(options));
}

}  // namespace

const std::vector<Entry<RankRule>>& rank_rules() {
    static const std::vector<Entry<RankRule>> table = {
        {"energy", "smallest rank that keeps a share of the squared singular values", make_energy},
        {"ratio", "largest rank at a share of the layer's multiply-adds or weights", make_ratio},
    };
    return table;
}

const std::vector<Entry<Stage>>& stages() {
    static const std::vector<Entry<Stage>> table = {
        {"lowrank.svd", "linear and convolution as two thinner layers (arXiv 1404.0736, 1511.06067)", make_svd},
    };
    return table;
}

}  // namespace coppice::lowrank
