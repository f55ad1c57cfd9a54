// Blocks of rows x columns (outputs x inputs) go together; a block's score is the mean of its weights' scores.
#include "weights/weights.h"

namespace coppice::prune {
namespace {

class Block final : public WeightPattern {
public:
    Block(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {}

    std::string name() const override { return std::to_string(rows_) + "x" + std::to_string(columns_); }
    int64_t rows() const override { return rows_; }
    int64_t columns() const override { return columns_; }

    at::Tensor units(const at::Tensor& scores) const override {  // [groups, rows / r, columns / c]
        return scores.reshape({scores.size(0), scores.size(1) / rows_, rows_, scores.size(2) / columns_, columns_})
            .mean(at::IntArrayRef{2, 4});
    }
    at::Tensor expand(const at::Tensor& units, const at::Tensor& scores) const override {
        return units.unsqueeze(2).unsqueeze(4).expand({-1, -1, rows_, -1, columns_}).reshape(scores.sizes());
    }

private:
    const int64_t rows_, columns_;
};

}  // namespace

std::unique_ptr<WeightPattern> block(int64_t rows, int64_t columns) {
    if (rows < 1 || columns < 1 || rows * columns < 2)
        throw InvalidArgument("prune.weight",
                              "block " + std::to_string(rows) + "x" + std::to_string(columns) + " is no block",
                              "4x1 takes four outputs of one input together; for single weights use unstructured.");
    return std::make_unique<Block>(rows, columns);
}

}  // namespace coppice::prune
