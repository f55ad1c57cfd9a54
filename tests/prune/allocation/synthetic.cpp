#include "prune/allocation/synthetic.h"

namespace coppice::testing {

prune::Groups groups_of(const std::vector<int64_t>& channels, int64_t multiplicity) {
    std::vector<prune::ChannelGroup> groups;
    for (size_t i = 0; i < channels.size(); ++i) {
        prune::ChannelGroup group;
        group.name = "layer" + std::to_string(i);
        group.channels = channels[i];
        group.multiplicity = multiplicity;
        groups.push_back(group);
    }
    return prune::Groups(std::move(groups));
}

std::vector<at::Tensor> rising(const prune::Groups& groups) {
    std::vector<at::Tensor> scores;
    for (const auto& group : groups.all()) scores.push_back(at::arange(1, group.channels + 1, at::kDouble));
    return scores;
}

prune::Target plain(double ratio) {
    prune::Target target;
    target.ratio = ratio;
    target.round_to = 1;
    return target;
}

std::vector<std::vector<int64_t>> all_widths(const prune::Groups& groups, int64_t step) {
    std::vector<std::vector<int64_t>> all = {{}};
    for (const auto& group : groups.all()) {
        std::vector<std::vector<int64_t>> longer;
        for (const auto& begun : all)
            for (int64_t width = 1; width <= group.channels; ++width) {
                if (width % step != 0 && width != group.channels) continue;
                longer.push_back(begun);
                longer.back().push_back(width);
            }
        all = std::move(longer);
    }
    return all;
}

double weight_elements(const std::string& op, const std::vector<std::vector<int64_t>>& shapes) {
    if (op != "aten::conv2d" && op != "aten::linear") return 0;
    return static_cast<double>(c10::multiply_integers(shapes.at(1)));
}

std::vector<double> SyntheticWatch::seconds(const std::vector<prune::OperatorRun>& runs, int64_t) const {
    std::vector<double> seconds;
    for (const auto& run : runs) {
        operators.insert(run.op());
        seconds.push_back(formula_(run.op(), run.shapes()));
    }
    return seconds;
}

double SyntheticWatch::of(const Model& model) const {
    double seconds = constant_;
    for (auto* node : all_nodes(*model.graph())) {
        const auto conv = as_conv(node);
        const auto linear = as_linear(node);
        if (!conv && !linear) continue;
        const auto weight = parameter_of(model, conv ? conv->weight : linear->weight);
        seconds += formula_(node->kind().toQualString(), {{}, weight->sizes().vec()});
    }
    return seconds;
}

prune::TimeRatio SyntheticWatch::ratio(const Model& before, const Model& after, const Inputs&) const {
    ++ratios;
    prune::TimeRatio ratio;
    ratio.median = ratio.low = ratio.high = of(after) / of(before);
    ratio.before_ms = of(before);
    ratio.after_ms = of(after);
    ratio.pairs = 1;
    return ratio;
}

}  // namespace coppice::testing
