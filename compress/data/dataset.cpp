// Datasets made of others, and batches in a seeded order.
#include <coppice/error.h>

#include <cstring>

#include "data/formats.h"

namespace coppice {
namespace {

void hash_tensor(std::string& text, const at::Tensor& tensor) {
    const auto values = tensor.contiguous();
    text += c10::str(values.scalar_type(), " ", values.sizes(), " ");
    text += sha256_of(std::string(static_cast<const char*>(values.const_data_ptr()), values.nbytes())) + "\n";
}

class TensorDataset final : public Dataset {
public:
    TensorDataset(std::vector<at::Tensor> inputs, at::Tensor target, std::string description)
        : inputs_(std::move(inputs)), target_(std::move(target)), description_(std::move(description)) {
        if (inputs_.empty()) throw InvalidArgument(description_, "has no input", "Give at least one tensor.");
        for (size_t i = 0; i < inputs_.size(); ++i) {
            if (!inputs_[i].defined() || inputs_[i].dim() == 0 || inputs_[i].size(0) != inputs_[0].size(0))
                throw InvalidArgument(description_, "input " + std::to_string(i) + " holds another number of examples",
                                      "All tensors share their first dimension.");
            inputs_[i] = inputs_[i].detach().contiguous();
        }
        if (target_.defined()) {
            if (target_.dim() == 0 || target_.size(0) != size())
                throw InvalidArgument(description_, "the target holds another number of examples than the inputs",
                                      "All tensors share their first dimension.");
            target_ = target_.detach().contiguous();
        }
        std::string text = "tensors\n";
        for (const auto& input : inputs_) hash_tensor(text, input);
        if (target_.defined()) hash_tensor(text, target_);
        fingerprint_ = sha256_of(text);
    }

    int64_t size() const override { return inputs_.front().size(0); }
    std::string description() const override { return description_; }
    std::string fingerprint() const override { return fingerprint_; }

    Batch batch(const std::vector<int64_t>& indices) const override {
        formats::check_indices(indices, size(), description_);
        const auto index = at::tensor(indices, at::kLong);
        Batch batch;
        for (const auto& input : inputs_) batch.inputs.emplace_back(input.index_select(0, index));
        if (target_.defined()) batch.target = target_.index_select(0, index);
        return batch;
    }

private:
    std::vector<at::Tensor> inputs_;
    at::Tensor target_;
    std::string description_, fingerprint_;
};

class Subset final : public Dataset {
public:
    Subset(std::shared_ptr<const Dataset> base, std::vector<int64_t> indices)
        : base_(std::move(base)), indices_(std::move(indices)) {
        formats::check_indices(indices_, base_->size(), base_->description());
    }

    int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
    std::string description() const override { return std::to_string(size()) + " examples of " + base_->description(); }
    std::string fingerprint() const override {
        std::string text = "subset\n" + base_->fingerprint();
        for (const int64_t index : indices_) text += " " + std::to_string(index);
        return sha256_of(text);
    }
    Batch batch(const std::vector<int64_t>& indices) const override {
        formats::check_indices(indices, size(), description());
        std::vector<int64_t> of_base;
        of_base.reserve(indices.size());
        for (const int64_t index : indices) of_base.push_back(indices_[index]);
        return base_->batch(of_base);
    }

private:
    const std::shared_ptr<const Dataset> base_;
    const std::vector<int64_t> indices_;
};

}  // namespace

std::shared_ptr<Dataset> tensor_dataset(std::vector<at::Tensor> inputs, at::Tensor target,
                                        const std::string& description) {
    return std::make_shared<TensorDataset>(std::move(inputs), std::move(target), description);
}

std::shared_ptr<Dataset> subset(std::shared_ptr<const Dataset> base, std::vector<int64_t> indices) {
    return std::make_shared<Subset>(std::move(base), std::move(indices));
}

BatchIterator::BatchIterator(const Dataset& dataset, int64_t batch_size, bool shuffle, uint64_t seed, int64_t epoch,
                             bool drop_last)
    : dataset_(dataset), batch_size_(batch_size), drop_last_(drop_last) {
    if (batch_size < 1)
        throw InvalidArgument("batches", "batch_size is " + std::to_string(batch_size), "It must be at least 1.");
    if (shuffle) {
        order_ = formats::shuffled(dataset.size(), seed, static_cast<uint64_t>(epoch) + 1);
    } else {
        order_.resize(static_cast<size_t>(dataset.size()));
        for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int64_t>(i);
    }
}

int64_t BatchIterator::batches() const {
    const auto size = static_cast<int64_t>(order_.size());
    return drop_last_ ? size / batch_size_ : (size + batch_size_ - 1) / batch_size_;
}

std::optional<Batch> BatchIterator::next() {
    const auto size = static_cast<int64_t>(order_.size());
    const int64_t end = std::min(next_ + batch_size_, size);
    if (next_ >= end || (drop_last_ && end - next_ < batch_size_)) return std::nullopt;
    const std::vector<int64_t> indices(order_.begin() + next_, order_.begin() + end);
    next_ = end;
    return dataset_.batch(indices);
}

}  // namespace coppice
