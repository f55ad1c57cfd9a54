// alpha mean((s - t)^2) + (1 - alpha) L(s, target): the teacher's output as target of a regression, arXiv 1312.6184
// (there on logits). For embeddings, a part per dimension keeps every direction, where a loss on similarities keeps the
// angles only.
#include <coppice/distill.h>
#include <coppice/train.h>

#include "losses/logits.h"

namespace coppice::distill {
namespace {

const char* const kWhere = "distill.mse";

class Mse final : public Loss {
public:
    explicit Mse(MseOptions options) : options_(options) {}

    Needs needs() const override {
        Needs needs;
        needs.teacher = options_.alpha > 0;
        needs.labels = options_.alpha < 1;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        at::Tensor loss;
        if (options_.alpha > 0) {
            if (!teacher.defined())
                throw InvalidArgument(kWhere, "the teacher's output is missing",
                                      "Give the training stage a teacher, for example \"teacher: baseline\".");
            if (output.sizes() != teacher.sizes()) {
                std::ostringstream problem;
                problem << "the student gives " << output.sizes() << " and the teacher " << teacher.sizes();
                throw InvalidArgument(kWhere, problem.str(), "Use a teacher with outputs of the same shape.");
            }
            loss = (widened(output) - widened(teacher.detach())).square().mean() * options_.alpha;
        }
        if (options_.alpha < 1) {
            const auto of_task = batch.pairs                                                   ? pair_similarity()
                                 : batch.target.defined() && !batch.target.is_floating_point() ? cross_entropy()
                                                                                               : mean_squared_error();
            const auto labels = (*of_task)(output, {}, batch) * (1 - options_.alpha);
            loss = loss.defined() ? loss + labels : labels;
        }
        return loss;
    }

private:
    const MseOptions options_;
};

}  // namespace

std::unique_ptr<Loss> mse(MseOptions options) {
    check_share(kWhere, "alpha", options.alpha);
    return std::make_unique<Mse>(options);
}

}  // namespace coppice::distill
