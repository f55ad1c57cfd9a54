#include <coppice/distill.h>

namespace coppice::distill {
namespace {

double temperature(Options& o, double default_value) {
    return o.number_in("temperature", default_value, 0.01, 100, "softens both distributions");
}

double weight(Options& o, const std::string& name, double default_value, const std::string& help) {
    return o.number_in(name, default_value, 0, 1e6, help);
}

double label_smoothing(Options& o) {
    return o.number_in("label_smoothing", 0, 0, 0.999, "of the cross entropy with the labels");
}

std::unique_ptr<Loss> make_kd(Options& o) {
    KdOptions options;
    options.temperature = temperature(o, options.temperature);
    options.alpha = o.number_in("alpha", options.alpha, 0, 1, "share of the teacher's term; 1 needs no labels");
    options.label_smoothing = label_smoothing(o);
    return kd(options);
}

std::unique_ptr<Loss> make_dkd(Options& o) {
    DkdOptions options;
    options.temperature = temperature(o, options.temperature);
    options.alpha = weight(o, "alpha", options.alpha, "weight of the target class against the rest");
    options.beta = weight(o, "beta", options.beta, "weight of the relation among the other classes");
    options.ce_weight = weight(o, "ce_weight", options.ce_weight, "weight of the cross entropy with the labels");
    options.label_smoothing = label_smoothing(o);
    return dkd(options);
}

std::unique_ptr<Loss> make_dist(Options& o) {
    DistOptions options;
    options.temperature = temperature(o, options.temperature);
    options.beta = weight(o, "beta", options.beta, "weight of the relation between classes");
    options.gamma = weight(o, "gamma", options.gamma, "weight of the relation between examples");
    options.ce_weight = weight(o, "ce_weight", options.ce_weight, "weight of the cross entropy with the labels");
    options.label_smoothing = label_smoothing(o);
    return dist(options);
}

std::unique_ptr<Loss> make_kd_zscore(Options& o) {
    KdZscoreOptions options;
    options.temperature = temperature(o, options.temperature);
    options.kd_weight = weight(o, "kd_weight", options.kd_weight, "weight of the teacher's term");
    options.ce_weight = weight(o, "ce_weight", options.ce_weight, "weight of the cross entropy with the labels");
    options.label_smoothing = label_smoothing(o);
    return kd_zscore(options);
}

std::unique_ptr<Loss> make_mse(Options& o) {
    MseOptions options;
    options.alpha = o.number_in("alpha", options.alpha, 0, 1, "share of the teacher's term; 1 needs no labels");
    return mse(options);
}

// The default weights make the term about as large as the softened one is at the start of a recovery after pruning.
FeatureOptions feature_options(Options& o, double default_weight) {
    FeatureOptions options;
    options.layers =
        o.texts("layers", {}, "regular expressions on the names of the layers to compare; []: sums of two branches");
    options.weight = weight(o, "weight", default_weight, "of the features against the loss on the outputs");
    return options;
}

std::shared_ptr<const Loss> output_loss(Options& o) {
    return make<Loss>(o, "loss", "distill.logits", losses(), "on the outputs, beside the features");
}

std::unique_ptr<Loss> make_attention(Options& o) {
    auto loss = output_loss(o);
    return attention(std::move(loss), feature_options(o, 10));
}

std::unique_ptr<Loss> make_hints(Options& o) {
    auto loss = output_loss(o);
    return hints(std::move(loss), feature_options(o, 1));
}

}  // namespace

const std::vector<Entry<Loss>>& losses() {
    static const std::vector<Entry<Loss>> table = {
        {"distill.attention", "maps of energy inside both models, beside a loss on the outputs (arXiv 1612.03928)",
         make_attention},
        {"distill.dist", "correlation between classes and between examples (arXiv 2205.10536)", make_dist},
        {"distill.dkd", "decoupled target and other classes (arXiv 2203.08679)", make_dkd},
        {"distill.hints", "features inside both models, beside a loss on the outputs (arXiv 1412.6550)", make_hints},
        {"distill.kd", "another name of distill.logits", make_kd},
        {"distill.kd_zscore", "softened probabilities of standardised logits (arXiv 2403.01427)", make_kd_zscore},
        {"distill.logits", "softened probabilities of the teacher (arXiv 1503.02531)", make_kd},
        {"distill.mse", "the teacher's output as target, for values and embeddings (arXiv 1312.6184)", make_mse},
    };
    return table;
}

}  // namespace coppice::distill
