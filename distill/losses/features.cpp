#include "losses/features.h"

#include <regex>
#include <sstream>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

class WithFeatures final : public FeatureLoss {
public:
    WithFeatures(std::shared_ptr<const Loss> loss, FeatureOptions options, FeatureTerm term)
        : loss_(std::move(loss)), options_(std::move(options)), term_(std::move(term)) {}

    Needs needs() const override {
        auto needs = loss_->needs();
        needs.teacher = true;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        return (*loss_)(output, teacher, batch);
    }

    const std::vector<std::string>& layers() const override { return options_.layers; }

    at::Tensor of_features(const std::vector<std::string>& names, const std::vector<at::Tensor>& student,
                           const std::vector<at::Tensor>& teacher) const override {
        at::Tensor sum;
        for (size_t i = 0; i < names.size(); ++i) {
            const auto term = term_(names[i], widened(student[i]), widened(teacher[i].detach()));
            sum = sum.defined() ? sum + term : term;
        }
        return sum * (options_.weight / static_cast<double>(names.size()));
    }

private:
    const std::shared_ptr<const Loss> loss_;
    const FeatureOptions options_;
    const FeatureTerm term_;
};

}  // namespace

std::unique_ptr<Loss> with_features(const std::string& where, std::shared_ptr<const Loss> loss, FeatureOptions options,
                                    FeatureTerm term) {
    if (!loss) throw InvalidArgument(where, "the loss on the outputs is missing", "Give one, for example kd().");
    if (dynamic_cast<const FeatureLoss*>(loss.get()))
        throw InvalidArgument(where, "its loss compares features itself",
                              "Give a loss on the outputs, for example kd().");
    check_weight(where, "weight", options.weight);
    for (const auto& layer : options.layers) {
        try {
            std::regex{layer};
        } catch (const std::regex_error& error) {
            throw InvalidArgument(where, "layers: \"" + layer + "\" is no regular expression: " + error.what(),
                                  "Use ECMAScript syntax; a dot in a name is \\\\.");
        }
    }
    return std::make_unique<WithFeatures>(std::move(loss), std::move(options), std::move(term));
}

void throw_shapes(const std::string& where, const std::string& name, const at::Tensor& student,
                  const at::Tensor& teacher, const std::string& fix) {
    std::ostringstream problem;
    problem << "layer " << name << " gives " << student.sizes() << " in the student and " << teacher.sizes()
            << " in the teacher";
    throw InvalidArgument(where, problem.str(), fix);
}

}  // namespace coppice::distill
