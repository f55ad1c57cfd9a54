// The losses that need nothing but the output and the target.
#include <coppice/error.h>
#include <coppice/train.h>

namespace coppice {
namespace {

class CrossEntropy final : public Loss {
public:
    explicit CrossEntropy(double label_smoothing) : label_smoothing_(label_smoothing) {}

    Needs needs() const override {
        Needs needs;
        needs.labels = true;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const auto scores = selected(output, batch);  // [N, C, ...]
        if (scores.dim() < 2)
            throw InvalidArgument("loss cross_entropy",
                                  "the output has " + std::to_string(scores.dim()) + " dimensions",
                                  "It must be [N, classes]; for values use mse.");
        return at::cross_entropy_loss(scores, batch.target, {}, at::Reduction::Mean, -100, label_smoothing_);
    }

private:
    const double label_smoothing_;
};

class MeanSquaredError final : public Loss {
public:
    Needs needs() const override {
        Needs needs;
        needs.labels = true;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        const auto values = selected(output, batch);
        if (values.sizes() != batch.target.sizes())  // mse_loss would broadcast [N, 1] against [N] to [N, N]
            throw InvalidArgument("loss mse",
                                  c10::str("the output is ", values.sizes(), ", the target ", batch.target.sizes()),
                                  "Shapes must agree.");
        return at::mse_loss(values, batch.target.to(values.scalar_type()));
    }
};

class PairSimilarity final : public Loss {
public:
    Needs needs() const override {
        Needs needs;
        needs.labels = true;
        return needs;
    }

    at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
        if (!batch.pairs || output.dim() != 2 || output.size(0) != 2 * batch.target.size(0))
            throw InvalidArgument("loss pair_similarity",
                                  c10::str("the output is ", output.sizes(), ", targets are ", batch.target.sizes(),
                                           batch.pairs ? "" : ", not of pairs"),
                                  "It takes embeddings [2N, D] of pairs with N scores: set pairs: true in data.");
        const auto pairs = output.reshape({-1, 2, output.size(1)});  // [N, 2, D]
        const auto similarity = at::cosine_similarity(pairs.select(1, 0), pairs.select(1, 1), 1);
        // 5: STS-B's highest score (Cer et al., arXiv 1708.00055)
        return at::mse_loss(similarity, batch.target.to(similarity.scalar_type()) / 5.0);
    }
};

}  // namespace

std::unique_ptr<Loss> cross_entropy(double label_smoothing) {
    if (!(label_smoothing >= 0 && label_smoothing < 1))
        throw InvalidArgument("loss cross_entropy", "label_smoothing is " + std::to_string(label_smoothing),
                              "It must be in [0, 1).");
    return std::make_unique<CrossEntropy>(label_smoothing);
}

std::unique_ptr<Loss> mean_squared_error() {
    return std::make_unique<MeanSquaredError>();
}

std::unique_ptr<Loss> pair_similarity() {
    return std::make_unique<PairSimilarity>();
}

}  // namespace coppice
